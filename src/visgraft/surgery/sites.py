"""The places of a model that can take a block, found by running it on shapes alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from visgraft.surgery._graftable import check_model
from visgraft.surgery._trace import Addition, Call, Trace, Value, exclusive_ancestors, trace

__all__ = ["CONTAINERS", "KINDS", "Site", "Survey", "find_sites", "survey"]

KINDS = ("conv3x3", "downsample", "block_end", "stage_end")
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Site:
    """A layer that can take a block.

    Attributes:
        path: Name of the layer, as in ``model.named_modules()``.
        kind: ``'conv3x3'``: a 3 x 3 convolution, grouped, depthwise, dilated and strided ones
            included. ``'downsample'``: a convolution that shrinks the map and reads all of it.
            ``'block_end'``: the last layer of a residual branch, before the addition.
            ``'stage_end'``: the last residual block of a stage. ``'layer'``: any other layer, named
            by its path.
        stage: A stage is a row of residual blocks with maps of the same shape, counted from 1; a
            layer before a block belongs to the block's stage, all before the first block to stage
            0. In a network without residual blocks: how often the map has shrunk.
        in_channels: Of the layer's input map.
        out_channels: Of the layer's output map.
        kernel_size: ``(rows, columns)`` of a convolution, else None.
        stride: ``(rows, columns)``: of a convolution its own, else by how much the map shrinks.
        feature_size: ``(H, W)`` of the layer's output on the example.
        other_paths: Further names of the same layer, where it is shared.
    """

    path: str
    kind: str
    stage: int
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int] | None
    stride: tuple[int, int]
    feature_size: tuple[int, int]
    other_paths: tuple[str, ...] = ()


def find_sites(model: nn.Module, example: Any = None) -> list[Site]:
    """Lists the places of a model that can take a block, in the order in which they are run.

    The model is run on shapes alone: it needs no data, computes nothing and is not touched.

    Args:
        model: Any module that works on images or feature maps.
        example: What the model is called with: a tensor, the shape of one, a tuple of positional
            or a dict of keyword arguments. By default one image of the size the model asks for
            (timm's ``pretrained_cfg``), else of 224 x 224.

    Returns:
        The sites; a layer of two kinds (a strided 3 x 3 convolution) is listed twice. Insides of
        blocks that were grafted, or that come from the catalogue, are not listed.

    Raises:
        ValueError: The model does not run on the example, or is compiled, wrapped or quantised.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        >>> [(site.path, site.kind, site.feature_size) for site in find_sites(net, (1, 3, 32, 32))]
        [('0', 'conv3x3', (32, 32))]
    """
    return survey("find_sites", model, example).sites


@dataclass(frozen=True, repr=False)
class Survey:
    """A traced model and its sites."""

    run: Trace
    sites: list[Site]
    stage_of: Callable[[Call], int]

    def at_path(self, path: str) -> Site | None:
        """Returns the site at a path, of whatever kind; None if no call there returns a map."""
        site = next((s for s in self.sites if s.path == path), None)
        if site is not None or not path:
            return site
        call = next((c for c in self.run.calls.get(path, ()) if _maps(c, known_axes=False)), None)
        return call and _site(self.run, call, "layer", self.stage_of)


def survey(owner: str, model: nn.Module, example: Any = None) -> Survey:
    """Finds the sites of ``model``; ``owner`` complains when that cannot be done."""
    check_model(owner, model)
    run = trace(owner, model, example)
    residuals = _residuals(run)
    stage_of = _stages(run, residuals)
    found: dict[tuple[str, str], Call] = {}
    for path, calls in run.calls.items():
        layer = run.modules[path]
        if path and path not in run.opaque and isinstance(layer, nn.Conv2d) and _maps(calls[0]):
            for kind in _conv_kinds(layer, calls[0]):
                found[path, kind] = calls[0]
    for i, residual in enumerate(residuals):
        end = _last_of_branch(run, residual)
        if end is not None:
            found.setdefault((end.path, "block_end"), end)
        whole = residual.inside
        last = i + 1 == len(residuals) or residuals[i + 1].shape != residual.shape
        if last and whole.path and _maps(whole) and _shape(whole.output) == residual.shape:
            found.setdefault((whole.path, "stage_end"), whole)
    sites = [_site(run, call, kind, stage_of) for (_, kind), call in found.items()]
    order = {path: calls[0].end for path, calls in run.calls.items()}
    sites.sort(key=lambda s: (order[s.path], KINDS.index(s.kind)))
    return Survey(run, sites, stage_of)


@dataclass(frozen=True, repr=False)
class _Residual:
    """An addition that ends a residual block."""

    time: int
    shape: tuple[int, ...]  # (C, H, W)
    branch: Value
    start: int  # of the block
    inside: Call


def _residuals(run: Trace) -> list[_Residual]:
    """Picks the additions of a shortcut and a branch that has more convolutions.

    Both must have been computed in the call in which they are added, which leaves out the lateral
    additions of feature pyramids. Sums inside a branch, such as those of parallel convolutions,
    are part of the branch.
    """
    found: list[tuple[Addition, _Residual]] = []
    inner: set[Value] = set()
    for addition in run.additions:
        call = addition.inside
        both = exclusive_ancestors(*addition.operands)
        weights = [sum(v.weighs for v in only) for only in both]
        start = min((v.time for only in both for v in only), default=0)
        is_residual = weights[0] != weights[1] and start >= call.start
        if is_residual:
            branch = addition.operands[weights[1] > weights[0]]
            start = call.start if call.path else start
            end = addition.result.time
            found.append((addition, _Residual(end, branch.shape[1:], branch, start, call)))
        swallows_all = is_residual and bool(call.path)
        exclusive = {v for only in both for v in only}
        inner.update(
            earlier.result
            for earlier in run.additions
            if earlier.result in exclusive and (swallows_all or earlier.inside is call)
        )
    return [residual for addition, residual in found if addition.result not in inner]


def _stages(run: Trace, residuals: list[_Residual]) -> Callable[[Call], int]:
    """Returns the function from a call to the number of its stage."""
    if not residuals:
        return _stages_by_size(run)
    limits: list[tuple[int, int]] = []  # a call that starts before the time is of the stage
    stage = 0
    for i, residual in enumerate(residuals):
        if i == 0 or residual.shape != residuals[i - 1].shape:
            stage += 1
        closes = i + 1 == len(residuals) or residuals[i + 1].inside is not residual.inside
        is_whole = closes and residual.inside.path != ""
        limits.append((residual.inside.end if is_whole else residual.time, stage))
    first = residuals[0].start

    def stage_of(call: Call) -> int:
        if call.end <= first:
            return 0
        return next((s for limit, s in limits if call.start < limit), stage)

    return stage_of


def _stages_by_size(run: Trace) -> Callable[[Call], int]:
    drops: list[int] = []
    smallest = 0
    for call in run.in_order():
        if not _maps(call) or any(True for _ in run.modules[call.path].children()):
            continue
        rows, columns = _shape(call.output)[1:]
        before = _shape(call.input)[1] * _shape(call.input)[2]
        smallest = smallest or before
        if 1 < rows * columns < smallest:
            drops.append(call.end)
            smallest = rows * columns
    return lambda call: sum(time <= call.end for time in drops)


def _last_of_branch(run: Trace, residual: _Residual) -> Call | None:
    """Returns the call whose output is the branch, looking back over element-wise functions."""
    inside = [
        call
        for call in run.in_order()
        if residual.inside.encloses(call) and call.end < residual.time and not call.opaque
    ]
    value = residual.branch
    while True:
        givers = [c for c in inside if c.output is value and _maps(c)]
        givers = [c for c in givers if not isinstance(run.modules[c.path], CONTAINERS)] or givers
        if givers:
            outermost = [c for c in givers if not any(o.encloses(c) for o in givers)]
            return outermost[0]
        sources = {p for p in value.parents if p.shape == value.shape and p.is_map}
        if value.weighs or len(sources) != 1:
            return None
        value = sources.pop()


def _conv_kinds(layer: nn.Conv2d, call: Call) -> list[str]:
    kinds = ["conv3x3"] if layer.kernel_size == (3, 3) else []
    strided = max(layer.stride) > 1
    reads_all = all(k >= s for k, s in zip(layer.kernel_size, layer.stride, strict=True))
    shrinks = _shape(call.output)[1:] != _shape(call.input)[1:]
    return [*kinds, "downsample"] if strided and reads_all and shrinks else kinds


def _maps(call: Call, known_axes: bool = True) -> bool:
    """Whether a call turns a map into a map, the axes of the result being known."""
    given, made = call.input, call.output
    if given is None or made is None or len(given.shape) != 4 or len(made.shape) != 4:
        return False
    return made.is_map is not False and (made.is_map is True or not known_axes)


def _shape(value: Value | None) -> tuple[int, ...]:
    """Returns ``(C, H, W)``."""
    return () if value is None else value.shape[1:]


def _site(run: Trace, call: Call, kind: str, stage_of: Callable[[Call], int]) -> Site:
    layer = run.modules[call.path]
    in_channels, *in_size = _shape(call.input)
    out_channels, *out_size = _shape(call.output)
    is_conv = isinstance(layer, nn.Conv2d)
    shrinks = [max(1, -(-i // o)) if o else 1 for i, o in zip(in_size, out_size, strict=True)]
    return Site(
        path=call.path,
        kind=kind,
        stage=stage_of(call),
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=_pair(layer.kernel_size) if is_conv else None,
        stride=_pair(layer.stride if is_conv else shrinks),
        feature_size=_pair(out_size),
        other_paths=tuple(run.names[layer][1:]),
    )


def _pair(values: Any) -> tuple[int, int]:
    rows, columns = values
    return int(rows), int(columns)
