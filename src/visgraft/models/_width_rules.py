"""What each operation says about the layouts of what goes in and what comes out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from visgraft.models._width_layouts import Groups, Layout

__all__ = ["RULES", "Layouts", "Operation", "alike"]

Layouts = tuple[Layout, ...]
"""Of the dimensions of a tensor."""

_ALIKE = "clone detach alias lift_fresh _to_copy contiguous native_dropout bernoulli copy_ fill_ "
_ALIKE += "zeros_like ones_like empty_like rand_like full_like bernoulli_ uniform_ roll flip "
_ALIKE += "_softmax _log_softmax cumsum zero_ masked_fill where dropout silu_ hardtanh_"
_POOLS = "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool2d max_pool2d "
_POOLS += "adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d "
_POOLS += "_upsample_bilinear2d_aa _upsample_bicubic2d_aa constant_pad_nd reflection_pad2d"
_VIEWS = "view _unsafe_view reshape _reshape_alias unsqueeze squeeze flatten squeeze_ unsqueeze_ "
_VIEWS += "view_copy _reshape_copy"
_REDUCTIONS = "mean sum amax amin var std norm linalg_vector_norm max min var_mean logsumexp all"


@dataclass(frozen=True)
class Operation:
    """One operation of a run.

    Attributes:
        args: What it was called with.
        given: The tensors among them.
        results: The tensors that came out.
        groups: Of the network.
        layouts: Returns those of a tensor that went in.
        note_depthwise: Gets the weight of a convolution with as many groups as channels.
    """

    args: Sequence[Any]
    given: list[Tensor]
    results: list[Tensor]
    groups: Groups
    layouts: Callable[[Tensor], Layouts]
    note_depthwise: Callable[[Tensor], None]


Rule = Callable[[Operation], "list[Layouts] | None"]


def alike(op: Operation) -> list[Layouts]:
    """All dimensions correspond, from the last to the first; those of size one are repeated."""
    shape = tuple(op.results[0].shape) if op.results else ()
    found: list[Layout] = []
    for index in range(1, len(shape) + 1):
        own = [
            op.layouts(t)[-index]
            for t in op.given
            if index <= t.ndim and t.shape[-index] == shape[-index] and shape[-index] != 1
        ]
        layout = own[0] if own else None
        for other in own[1:]:
            layout = op.groups.equate(layout, other)
        found.append(layout)
    layouts = tuple(reversed(found))
    return [layouts if tuple(t.shape) == shape else (None,) * t.ndim for t in op.results]


def _convolution(op: Operation) -> list[Layouts]:
    images, weight, bias, *_, transposed, _, parts = op.args[:9]
    batch, channels, *positions = op.layouts(images)
    for layout in op.layouts(weight)[2:]:
        op.groups.freeze(layout)
    first, second = op.layouts(weight)[:2]
    if transposed:
        inner, outer = first, op.groups.scaled(second, parts)
        op.groups.equate(inner, channels)
    elif parts == images.shape[1] and parts > 1:
        op.note_depthwise(weight)
        outer = op.groups.equate(first, op.groups.scaled(channels, weight.shape[0], parts))
    else:
        op.groups.equate(second, op.groups.scaled(channels, 1, parts))
        outer = first
        if parts > 1:
            op.groups.scaled(outer, 1, parts)
    if bias is not None:
        outer = op.groups.equate(outer, op.layouts(bias)[0])
    kept = _kept(op, positions, images.shape[2:], op.results[0].shape[2:])
    return [(batch, outer, *kept)]


def _kept(
    op: Operation, layouts: Sequence[Layout], before: Sequence[int], after: Sequence[int]
) -> Layouts:
    """Returns the layouts of dimensions that an operation leaves alone where sizes are the same."""
    for layout, size, new in zip(layouts, before, after, strict=True):
        if size != new:
            op.groups.freeze(layout)
    return tuple(
        layout if size == new else None
        for layout, size, new in zip(layouts, before, after, strict=True)
    )


def _resampled(op: Operation) -> list[Layouts] | None:
    if op.given[0].ndim != op.results[0].ndim:
        return None
    kept = _kept(op, op.layouts(op.given[0]), op.given[0].shape, op.results[0].shape)
    return [kept] * len(op.results)


def _batch_norm(op: Operation) -> list[Layouts]:
    layouts = list(op.layouts(op.given[0]))
    for other in op.given[1:]:
        layouts[1] = op.groups.equate(layouts[1], op.layouts(other)[0])
    is_of_batch = [t.shape == op.given[0].shape[1:2] for t in op.results[1:]]
    return [tuple(layouts), *((layouts[1] if own else None,) for own in is_of_batch)]


def _layer_norm(op: Operation) -> list[Layouts]:
    layouts = list(op.layouts(op.given[0]))
    for other in op.given[1:]:
        for index, layout in enumerate(reversed(op.layouts(other)), 1):
            layouts[-index] = op.groups.equate(layouts[-index], layout)
    return [tuple(layouts), *((None,) * t.ndim for t in op.results[1:])]


def _group_norm(op: Operation) -> list[Layouts]:
    (layouts, *_) = _batch_norm(op)
    op.groups.scaled(layouts[1], 1, op.args[6])
    return [layouts, *((None,) * t.ndim for t in op.results[1:])]


def _viewed(op: Operation) -> list[Layouts]:
    """A dimension that is kept, or into which others are merged; one that is split is not known."""
    before, after = tuple(op.given[0].shape), tuple(op.results[0].shape)
    layouts = op.layouts(op.given[0])
    found: list[Layout] = [None] * len(after)
    for old, new in _blocks(before, after):
        labelled = [layouts[i] for i in old if layouts[i] is not None]
        if len(new) == 1 and len(labelled) == 1:
            size = next(before[i] for i in old if layouts[i] is not None)
            found[new[0]] = op.groups.scaled(labelled[0], prod(before[i] for i in old) // size)
        else:
            for layout in labelled:
                op.groups.freeze(layout)
    return [tuple(found)]


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yields which dimensions of a tensor become which others when it is reshaped."""
    olds = [i for i, size in enumerate(before) if size != 1]
    news = [i for i, size in enumerate(after) if size != 1]
    while olds and news:
        old, new = [olds.pop(0)], [news.pop(0)]
        while (have := prod(before[i] for i in old)) != (want := prod(after[i] for i in new)):
            if have < want:
                old.append(olds.pop(0))
            else:
                new.append(news.pop(0))
        yield old, new


def _permuted(op: Operation) -> list[Layouts]:
    layouts = op.layouts(op.given[0])
    return [tuple(layouts[i] for i in op.args[1])]


def _transposed(op: Operation) -> list[Layouts]:
    layouts = list(op.layouts(op.given[0]))
    first, second = op.args[1:3] if len(op.args) > 2 else (0, -1)
    if layouts:
        layouts[first], layouts[second] = layouts[second], layouts[first]
    return [tuple(layouts)]


def _expanded(op: Operation) -> list[Layouts]:
    layouts = op.layouts(op.given[0])
    return [(None,) * (op.results[0].ndim - len(layouts)) + layouts]


def _reduced(op: Operation) -> list[Layouts] | None:
    layouts, count = op.layouts(op.given[0]), op.given[0].ndim
    listed = [a for a in op.args[1:] if isinstance(a, list | tuple)]
    single = [a for a in op.args[1:2] if isinstance(a, int) and not isinstance(a, bool)]
    dims = {d % count for d in (listed[0] if listed else single)} if count else set()
    if not dims and any(layouts):
        return None
    kept = tuple(layout for i, layout in enumerate(layouts) if i not in dims)
    same = tuple(None if i in dims else layout for i, layout in enumerate(layouts))
    return [same if t.ndim == count else kept for t in op.results]


def _concatenated(op: Operation) -> list[Layouts]:
    dim = (op.args[1] if len(op.args) > 1 else 0) % op.results[0].ndim
    own = [op.layouts(t) for t in op.given if t.ndim == op.results[0].ndim]
    found = list(own[0])
    for other in own[1:]:
        for i, layout in enumerate(other):
            if i != dim:
                found[i] = op.groups.equate(found[i], layout)
    sizes = [t.shape[dim] for t in op.given if t.ndim == op.results[0].ndim]
    found[dim] = op.groups.joined([layouts[dim] for layouts in own], sizes)
    return [tuple(found)]


def _stacked(op: Operation) -> list[Layouts]:
    dim = (op.args[1] if len(op.args) > 1 else 0) % op.results[0].ndim
    found = list(op.layouts(op.given[0]))
    for other in op.given[1:]:
        found = [op.groups.equate(a, b) for a, b in zip(found, op.layouts(other), strict=True)]
    return [(*found[:dim], None, *found[dim:])]


def _divided(op: Operation) -> list[Layouts]:
    layouts = list(op.layouts(op.given[0]))
    dim = (op.args[2] if len(op.args) > 2 else 0) % op.given[0].ndim
    if layouts[dim] is None:
        return [tuple(layouts)] * len(op.results)
    parts = op.groups.cut(layouts[dim], [t.shape[dim] for t in op.results])
    return [(*layouts[:dim], part, *layouts[dim + 1 :]) for part in parts]


def _sliced(op: Operation) -> list[Layouts]:
    """Of one dimension, which keeps its size unless all of it is taken."""
    kept = _kept(op, op.layouts(op.given[0]), op.given[0].shape, op.results[0].shape)
    return [kept]


def _chosen(op: Operation) -> list[Layouts]:
    layouts = list(op.layouts(op.given[0]))
    dim = (op.args[1] if len(op.args) > 1 else 0) % op.given[0].ndim
    op.groups.freeze(layouts.pop(dim))
    return [tuple(layouts)] * len(op.results)


def _product(op: Operation) -> list[Layouts]:
    left, right = op.layouts(op.given[-2]), op.layouts(op.given[-1])
    op.groups.equate(left[-1], right[-2])
    batch = [op.groups.equate(a, b) for a, b in zip(left[:-2], right[:-2], strict=True)]
    found = [*batch, left[-2], right[-1]]
    if len(op.given) == 3:
        bias = op.layouts(op.given[0])
        for index in range(1, len(bias) + 1):
            if op.given[0].shape[-index] != 1:
                found[-index] = op.groups.equate(found[-index], bias[-index])
    return [tuple(found)]


def _named(rule: Rule, names: str) -> Iterable[tuple[str, Rule]]:
    return [(name, rule) for name in names.split()]


RULES: dict[str, Rule] = dict(
    [
        *_named(alike, _ALIKE),
        *_named(_resampled, _POOLS),
        *_named(_viewed, _VIEWS),
        *_named(_reduced, _REDUCTIONS),
        *_named(_convolution, "convolution _convolution"),
        *_named(_batch_norm, "native_batch_norm _native_batch_norm_legit cudnn_batch_norm"),
        *_named(_batch_norm, "_native_batch_norm_legit_no_training _batch_norm_no_update"),
        *_named(_batch_norm, "_batch_norm_with_update"),
        *_named(_layer_norm, "native_layer_norm _fused_rms_norm rms_norm"),
        *_named(_group_norm, "native_group_norm"),
        *_named(_permuted, "permute"),
        *_named(_transposed, "transpose t transpose_"),
        *_named(_expanded, "expand"),
        *_named(_concatenated, "cat"),
        *_named(_stacked, "stack"),
        *_named(_divided, "split split_with_sizes unsafe_split"),
        *_named(_sliced, "slice"),
        *_named(_chosen, "select unbind"),
        *_named(_product, "mm bmm addmm baddbmm"),
    ]
)
