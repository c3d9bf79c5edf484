"""Checks, on shapes alone, that the block drafted for a site fits there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.flop_counter import FlopCounterMode

from visgraft._shapes import fake_copy, fake_mode, first_line, like_of, shapes_only
from visgraft.surgery._apart import units_around
from visgraft.surgery._draft import Draft, MisfitError, Order, draft
from visgraft.surgery.holders import Holder
from visgraft.surgery.sites import CONTAINERS, Site, Survey

__all__ = ["Fitted", "fit"]

Like = tuple[torch.device, torch.dtype]
Shape = tuple[int, ...]
STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@dataclass(frozen=True)
class Fitted:
    """A block that fits at a site.

    Attributes:
        site: Where.
        draft: The block, on the device and in the dtype of the layer.
        layer: The module that is replaced, or gets the hook.
        home: The module that gets the block as a child.
        like: Device and dtype of the layer, or of what is around it.
        units: What holds the layer and must not be folded any more.
        macs: Of the block, summed over the calls of the layer.
        notes: What the report should say.
    """

    site: Site
    draft: Draft
    layer: nn.Module
    home: nn.Module
    like: Like
    units: list[nn.Module]
    macs: int
    notes: tuple[str, ...]


def fit(survey: Survey, site: Site, order: Order) -> Fitted | None:
    """Builds the block for a site and checks it; None when the caller's function makes none.

    Raises:
        MisfitError: The layer cannot be grafted, or the block does not fit.
    """
    layer = survey.run.modules[site.path]
    made = draft(site, layer, order)
    if made is None:
        return None
    home = layer
    if made.how == "replace":
        _check_replaceable(layer)
        if order.start == "identity":
            _check_ties(survey, layer, made.block)
    else:
        home = _home(layer)
        if made.how == "after" and _gives_the_output_of(survey, home, layer):
            layer = home
        if any(isinstance(getattr(h, "__self__", None), Holder) for h in _hooks(layer)):
            inner = survey.run.names[layer][0]
            who = "" if inner == site.path else f"gives the map of {inner}, which "
            raise MisfitError(f"{who}has a graft already; undo that one first")
    like = like_of(_outwards(survey, site.path))
    block = made.block.to(*like).train(layer.training)
    if _is_channels_last(survey.run.modules[""]):
        block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    macs = _checked_macs(survey, site, made, like)
    frozen = [not p.requires_grad for p in layer.parameters()]
    notes = made.notes
    if frozen and all(frozen):
        notes = (*notes, "the layer is frozen, the new tensors are not")
    names = survey.run.names[layer]
    units = units_around(survey.run.modules, (site.path, *names))
    if units:
        held = ", ".join(survey.run.names[unit][0] for unit in units)
        notes = (*notes, f"{held} will not be fused")
    return Fitted(site, replace(made, block=block), layer, home, like, units, macs, notes)


def _home(layer: nn.Module) -> nn.Module:
    """Returns the module that can take another child: the layer, or one inside a container.

    A container runs or is read child by child, so a holder must not be among its children. Its
    last layer that is no container takes the holder, which then goes wherever that layer goes.
    """
    home = layer
    while isinstance(home, CONTAINERS):
        home = next(reversed(list(home.children())), None)
    if home is None:
        raise MisfitError("is a container without layers, which cannot hold a block")
    return home


def _gives_the_output_of(survey: Survey, inner: nn.Module, outer: nn.Module) -> bool:
    """Whether all that ``inner`` returns is what ``outer`` returns.

    A hook of the inner one then also acts where the children of a container are run without it,
    as feature extractors and activation checkpointing do.
    """
    made, wanted = (
        [call.output for call in survey.run.calls.get(survey.run.names[module][0], ())]
        for module in (inner, outer)
    )
    return made == wanted and None not in made


def _hooks(layer: nn.Module) -> list[Any]:
    return [*layer._forward_pre_hooks.values(), *layer._forward_hooks.values()]


def _check_replaceable(layer: nn.Module) -> None:
    if any(isinstance(module, Holder) for module in layer.modules()):
        raise MisfitError("holds a graft, which would go with it; undo that one first")
    if any(type(hook).__module__.startswith("torch.nn.utils") for hook in _hooks(layer)):
        raise MisfitError("a hook makes its weight (weight norm, pruning); remove that first")
    if any(is_parametrized(module) for module in layer.modules()):
        raise MisfitError("its weight is parametrized; remove that first, or use how='parallel'")
    if any(vars(layer)[name] for name in STATE_HOOKS):
        raise MisfitError("has hooks on its state dict, which would go; use how='parallel'")


def _check_ties(survey: Survey, layer: nn.Module, block: nn.Module) -> None:
    """Raises MisfitError if a block has a copy of what another layer shares with ``layer``."""
    copied = set(layer.parameters()).difference(block.parameters())
    for path, module in survey.run.modules.items():
        if module is not layer and not copied.isdisjoint(module.parameters(recurse=False)):
            raise MisfitError(
                f"shares a tensor with {path or 'the model'}, which the block would not; use "
                "how='parallel'"
            )


def _outwards(survey: Survey, path: str) -> Iterator[nn.Module]:
    while path:
        yield survey.run.modules[path]
        path = path.rpartition(".")[0]
    yield survey.run.modules[""]


def _is_channels_last(module: nn.Module) -> bool:
    return any(
        p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
        for p in module.parameters()
        if p.ndim == 4
    )


def _checked_macs(survey: Survey, site: Site, made: Draft, like: Like) -> int:
    """Runs the block on the shapes that the layer meets and returns what it costs.

    Raises:
        MisfitError: The block fails, or returns another shape than the layer.
    """
    pairs: list[tuple[Shape, Shape]] = []
    for call in survey.run.calls[site.path]:
        given = call.output if made.how == "after" else call.input
        if given is None or call.output is None or len(given.shape) != 4:
            raise MisfitError("some call of it is not on a map (B, C, H, W), which a block needs")
        if made.how != "after" and call.by_keyword:
            raise MisfitError("is called with its input by name, which a block is not")
        pairs.append((given.shape, call.output.shape))
    mode = fake_mode()
    block = fake_copy(made.block, mode)
    with FlopCounterMode(display=False) as flops:
        for given, expected in pairs:
            _check_shape(_shape_of(block, given, mode, like), given, expected)
    layer = survey.run.modules[site.path]
    if made.how != "after" and isinstance(layer, nn.Conv2d) and max(layer.stride) > 1:
        batch, channels, rows, columns = pairs[0][0]
        odd = (batch, channels, rows + 1, columns + 1)
        expected = _shape_of(fake_copy(layer, mode), odd, mode, like)
        _check_shape(_shape_of(block, odd, mode, like), odd, expected)
    return flops.get_total_flops() // 2


def _check_shape(made: Shape, given: Shape, expected: Shape) -> None:
    if made != expected:
        raise MisfitError(f"from a map {given} the block makes {made}, the layer {expected}")


def _shape_of(module: nn.Module, given: Shape, mode: FakeTensorMode, like: Like) -> Shape:
    device, dtype = like
    try:
        with shapes_only(mode):
            result = module(torch.empty(given, device=device, dtype=dtype))
    except Exception as error:
        raise MisfitError(first_line(error)) from error
    if not isinstance(result, Tensor):
        raise MisfitError(f"the block returns {type(result).__name__}, not a tensor")
    return tuple(result.shape)
