"""Builds the block for a site: from the catalogue, or by the caller's function."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args

import torch
from torch import nn

from visgraft._shapes import first_line, like_of
from visgraft.blocks import BlockInfo, block_info, create_block, list_blocks
from visgraft.surgery.sites import Site

__all__ = ["BlockMaker", "Draft", "How", "MisfitError", "Order", "Start", "check_order", "draft"]

How = Literal["replace", "after", "parallel"]
Start = Literal["identity", "paper"]
BlockMaker = Callable[[Site], nn.Module | None]
Pool = tuple[int, int, int]  # kernel_size, stride, padding


class MisfitError(Exception):
    """The block does not fit at a site; the text says why."""


@dataclass(frozen=True)
class Order:
    """What the caller of ``graft`` asked for.

    Attributes:
        block: Name in the catalogue, or the function that makes the block for a site.
        how: Where the block goes; None leaves it to block and layer.
        start: What the model computes right after grafting.
        options: Of the block.
    """

    block: str | BlockMaker
    how: How | None
    start: Start
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Draft:
    """A block that was built for a site.

    Attributes:
        block: The module.
        how: What will be done with it, which ``start="identity"`` may have changed.
        scaled: Whether a factor that starts at zero multiplies what it changes.
        pool: The average pooling that was put before the block.
        notes: What the report should say.
    """

    block: nn.Module
    how: How
    scaled: bool
    pool: Pool | None = None
    notes: tuple[str, ...] = ()


def check_order(owner: str, order: Order) -> None:
    """Raises ValueError if block, ``how``, ``start`` or options are not what they can be."""
    if isinstance(order.block, str):
        block_info(order.block)
    elif isinstance(order.block, (type, nn.Module)) or not callable(order.block):
        raise ValueError(
            f"{owner}: block must be a name of the catalogue or a function from a Site to a "
            f"module, such as lambda site: MyBlock(site.out_channels), got {order.block!r:.80}"
        )
    elif order.options:
        raise ValueError(
            f"{owner}: options ({', '.join(order.options)}) are for blocks of the catalogue; a "
            "function that makes the block sets its own"
        )
    for name, value, legal in (
        ("how", order.how, (*get_args(How), None)),
        ("start", order.start, get_args(Start)),
    ):
        if value not in legal:
            near = get_close_matches(str(value), [v for v in legal if v], n=1)
            hint = f"; nearest: {near[0]!r}" if near else ""
            raise ValueError(
                f"{owner}: {name} must be one of {', '.join(map(repr, legal))}, got {value!r}{hint}"
            )


def draft(site: Site, layer: nn.Module, order: Order) -> Draft | None:
    """Builds the block for a site; None when the caller's function makes none there.

    Raises:
        MisfitError: The block cannot be built for the layer.
    """
    if isinstance(order.block, str):
        return _from_catalogue(site, layer, block_info(order.block), order)
    block = order.block(site)
    if block is None:
        return None
    if not isinstance(block, nn.Module):
        raise MisfitError(f"the function made {type(block).__name__}, not a module")
    return _from_caller(site, layer, block, order)


def _from_catalogue(site: Site, layer: nn.Module, info: BlockInfo, order: Order) -> Draft:
    options = dict(order.options)
    wanted = order.how or _default_how(info.role, layer)
    transplant = getattr(info.cls, "from_conv", None)
    if wanted == "replace" and order.start == "identity" and transplant is not None:
        if not isinstance(layer, nn.Conv2d):
            raise MisfitError(f"{info.name} takes over convolutions, not {type(layer).__name__}")
        presets = info.aliases.get(str(order.block), {})
        block = _build(lambda: transplant(layer, **{**presets, **options}))
        _keep_frozen(layer, block)
        as_before = layer.state_dict().keys() <= block.state_dict().keys()
        note = "holds the layer's weights" + ("" if as_before else ", laid out anew")
        return Draft(block, "replace", scaled=False, notes=(note,))
    how, notes = _settled_how(wanted, order)
    pool = None
    if how != "after":
        options, pool, adapted = _adapted(site, layer, info, options)
        notes = (*notes, *adapted)
    if "feature_size" in info.options and "feature_size" not in options:
        strides = site.stride if how != "after" and pool is None else (1, 1)
        options["feature_size"] = tuple(
            n * s for n, s in zip(site.feature_size, strides, strict=True)
        )
    channels = site.out_channels if how == "after" else site.in_channels
    block = _build(lambda: create_block(str(order.block), channels, **options))
    identity = bool(getattr(block, "starts_as_identity", False))
    if pool is not None:
        block = nn.Sequential(OrderedDict(pool=nn.AvgPool2d(*pool), block=block))
    scaled = order.start == "identity" and not (how == "after" and identity)
    return Draft(block, how, scaled, pool, notes)


def _from_caller(site: Site, layer: nn.Module, block: nn.Module, order: Order) -> Draft:
    infos = (block_info(name) for name in list_blocks())
    role = next((info.role for info in infos if type(block) is info.cls), None)
    how, notes = _settled_how(order.how or _default_how(role, layer), order)
    scaled = order.start == "identity"
    if scaled and how == "after":
        identity = getattr(block, "starts_as_identity", None)
        scaled = not (_returns_its_input(block, site) if identity is None else identity)
    return Draft(block, how, scaled, notes=notes)


def _default_how(role: str | None, layer: nn.Module) -> How:
    """Mixers and downsamplers take the place of a convolution; all else goes after the layer."""
    takes_place = role in ("mixer", "downsample") and isinstance(layer, nn.Conv2d)
    return "replace" if takes_place else "after"


def _settled_how(wanted: How, order: Order) -> tuple[How, tuple[str, ...]]:
    """Under ``start="identity"`` a block that cannot hold the layer's weights stands beside it."""
    if wanted == "replace" and order.start == "identity":
        return "parallel", ("beside the layer, which stays",)
    return wanted, ()


def _adapted(
    site: Site, layer: nn.Module, info: BlockInfo, options: dict[str, Any]
) -> tuple[dict[str, Any], Pool | None, tuple[str, ...]]:
    """Returns options and pooling that give the block the layer's channels and stride."""
    options = dict(options)
    if site.in_channels != site.out_channels and "out_channels" not in options:
        if "out_channels" not in info.options:
            raise MisfitError(
                f"{info.name} keeps the number of channels, the layer changes it from "
                f"{site.in_channels} to {site.out_channels}"
            )
        options["out_channels"] = site.out_channels
    rows, columns = site.stride
    if (rows, columns) == (1, 1) or {"stride", "scale"} & options.keys():
        return options, None, ()
    if rows != columns:
        raise MisfitError(f"the layer's stride is {rows} in rows and {columns} in columns")
    name = next((n for n in ("stride", "scale") if n in info.options), None)
    if name is not None:
        options[name] = rows
        return options, None, (f"{name} {rows}",)
    pool = _pool_like(layer, rows)
    size = f"{pool[0]} x {pool[0]}"
    return options, pool, (f"{size} average pooling of stride {rows} before the block",)


def _pool_like(layer: nn.Module, stride: int) -> Pool:
    """Returns the pooling that shrinks maps of every size as the layer does.

    A convolution makes ``(n + excess) // stride + 1`` rows of n, with
    ``excess = 2 * padding - dilation * (kernel_size - 1) - 1``: -1 for a padded 3 x 3 one, and for
    layers that pad by the size of the map.
    """
    excess = -1
    if isinstance(layer, nn.Conv2d) and (type(layer) is nn.Conv2d or any(layer.padding)):
        padding = 0 if isinstance(layer.padding, str) else int(layer.padding[0])
        excess = 2 * padding - layer.dilation[0] * (layer.kernel_size[0] - 1) - 1
    if excess > 0:
        raise MisfitError("the layer pads more than any pooling does")
    padding = 1 if excess >= -1 else 0
    return 2 * padding - excess, stride, padding


def _returns_its_input(block: nn.Module, site: Site) -> bool:
    """Whether a block returns a random map unchanged, in training and in eval mode."""
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(2, site.out_channels, *site.feature_size, generator=noise)
    x = x.to(*like_of([block]))
    try:
        with torch.random.fork_rng(devices=()), torch.no_grad():
            trial = copy.deepcopy(block)
            return all(torch.equal(trial.train(mode)(x.clone()), x) for mode in (True, False))
    except Exception:  # what is wrong will be seen, and said, when the block is run on shapes
        return False


def _build(make: Callable[[], Any]) -> nn.Module:
    try:
        return make()
    except (ValueError, TypeError) as error:
        raise MisfitError(first_line(error)) from error


def _keep_frozen(layer: nn.Module, block: nn.Module) -> None:
    """Freezes in the block what was frozen in the layer whose tensors it took over."""
    frozen = {name for name, p in layer.named_parameters() if not p.requires_grad}
    for name, parameter in block.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
