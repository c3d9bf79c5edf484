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
OF_CONV = ("kernel_size", "dilation", "groups")  # what a block beside a convolution has from it


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
    how, notes = _settled_how(wanted, order)
    if wanted == "replace" and order.start == "identity" and hasattr(info.cls, "from_conv"):
        try:
            return _transplanted(layer, info, order)
        except MisfitError as misfit:
            if order.how is not None or info.role != "mixer" or not isinstance(layer, nn.Conv2d):
                raise
            notes = (f"beside the layer, which stays: {str(misfit).split(': ', 1)[-1]}",)
            options = {n: getattr(layer, n) for n in OF_CONV if n in info.options} | options
    pool = projection = None
    if how != "after":
        projection = _projection(site, info, how)
        options, pool, adapted = _adapted(site, layer, info, options)
        notes = (*notes, *adapted)
    if "feature_size" in info.options and "feature_size" not in options:
        strides = site.stride if how != "after" and pool is None else (1, 1)
        options["feature_size"] = tuple(
            n * s for n, s in zip(site.feature_size, strides, strict=True)
        )
    channels = site.out_channels if how == "after" else site.in_channels
    block = _build(lambda: create_block(str(order.block), channels, **options))
    notes = (*notes, *_stride_note(options, block)) if how != "after" and pool is None else notes
    identity = bool(getattr(block, "starts_as_identity", False))
    if projection is not None:
        notes = (*notes, f"then a 1 x 1 convolution from {site.in_channels} to {site.out_channels}")
    if pool is not None or projection is not None:
        before = {} if pool is None else {"pool": nn.AvgPool2d(*pool)}
        behind = {} if projection is None else {"projection": projection}
        block = nn.Sequential(OrderedDict(before | {"block": block} | behind))
    scaled = order.start == "identity" and not (how == "after" and identity)
    return Draft(block, how, scaled, pool, notes)


def _transplanted(layer: nn.Module, info: BlockInfo, order: Order) -> Draft:
    """Builds a block that computes what the layer does.

    Raises:
        MisfitError: It cannot.
    """
    if not isinstance(layer, nn.Conv2d):
        raise MisfitError(f"{info.name} takes over convolutions, not {type(layer).__name__}")
    options = {**info.aliases.get(str(order.block), {}), **order.options}
    transplant: Any = info.cls
    block = _build(lambda: transplant.from_conv(layer, **options))
    _share_tensors(layer, block)
    as_before = layer.state_dict().keys() <= block.state_dict().keys()
    note = "holds the layer's weights" + ("" if as_before else ", laid out anew")
    return Draft(block, "replace", scaled=False, notes=(note,))


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
    if site.in_channels != site.out_channels and "out_channels" in info.options:
        options.setdefault("out_channels", site.out_channels)
    rows, columns = site.stride
    if (rows, columns) == (1, 1) or {"stride", "scale"} & options.keys():
        return options, None, ()
    if rows != columns:
        raise MisfitError(f"the layer's stride is {rows} in rows and {columns} in columns")
    name = next((n for n in ("stride", "scale") if n in info.options), None)
    if name is not None:
        options[name] = rows
        return options, None, ()
    pool = _pool_like(layer, rows)
    size = f"{pool[0]} x {pool[0]}"
    return options, pool, (f"{size} average pooling of stride {rows} before the block",)


def _projection(site: Site, info: BlockInfo, how: How) -> nn.Conv2d | None:
    """Returns what brings the output of a block that keeps its channels to those of the layer.

    Raises:
        MisfitError: The block is to replace the layer, which is no place for more than the block.
    """
    if site.in_channels == site.out_channels or "out_channels" in info.options:
        return None
    if how != "parallel":
        raise MisfitError(
            f"{info.name} keeps the number of channels, the layer changes it from "
            f"{site.in_channels} to {site.out_channels}; how='parallel' can"
        )
    return nn.Conv2d(site.in_channels, site.out_channels, 1, bias=False)


def _stride_note(options: Mapping[str, Any], block: nn.Module) -> tuple[str, ...]:
    """Says how a block that has a stride, or a scale, of its own shrinks the map."""
    name = next((n for n in ("stride", "scale") if n in options), None)
    if name is None:
        return ()
    pool = getattr(block, "pool", None)
    if not isinstance(pool, nn.AvgPool2d):
        return (f"{name} {options[name]}",)
    size = pool.kernel_size
    rows, columns = size if isinstance(size, tuple) else (size, size)
    return (f"{name} {options[name]} by the block's {rows} x {columns} average pooling",)


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


def _share_tensors(layer: nn.Module, block: nn.Module) -> None:
    """Lets a block hold the very parameters that it took over, where name and values are the same.

    Optimisers that hold them, and layers that are tied to them, then go on working. Other
    parameters are frozen where those of the same name were.
    """
    own = dict(block.named_parameters(recurse=False))
    for name, parameter in layer.named_parameters(recurse=False):
        copied = own.get(name)
        if copied is None:
            continue
        alike = copied.shape == parameter.shape and copied.dtype == parameter.dtype
        if alike and (parameter.is_meta or torch.equal(copied, parameter)):
            block.register_parameter(name, parameter)
        elif not parameter.requires_grad:
            copied.requires_grad_(False)
