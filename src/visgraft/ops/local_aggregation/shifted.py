"""Local aggregation by shifted slices: nothing is unfolded, and the backward is its own.

Each tap is one in-place multiply-add over a block of images. Where the output has the size of the
map, rows stay joined: a shift is an offset into the flattened map, and a copy of the block has
zeros in the columns that would wrap around. Long rows are what makes small maps fast; a block that
stays in the cache is what makes large ones fast.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from visgraft.ops._dispatch import Implementation, being_traced
from visgraft.ops.local_aggregation._taps import Geometry

__all__ = ["SHIFTED"]

_BLOCK = 1 << 19  # elements of x in a block, per CPU thread
_ALL = slice(None)


class _Plan:
    """The shapes of one call, and views of its tensors in these shapes.

    Blocks are contiguous, in float32 or wider, with joined rows where the geometry joins them; a
    block that is so already is not copied.
    """

    def __init__(self, x: Tensor, weight: Tensor, call: tuple[int, int, int, int]) -> None:
        (height, width), (out_height, out_width) = x.shape[2:], weight.shape[4:]
        self.geometry = Geometry(*call, (height, width), (out_height, out_width))
        self.num_heads, self.groups = weight.shape[1:3]
        self.dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
        self.out_shape = _out_shape(x, weight)

    def channels(self, block: Tensor) -> Tensor:
        """Returns ``(n, C, H, W)`` as ``(n, C / Cw, Cw, ...)``."""
        return self.rows(block).unflatten(1, (-1, self.groups))

    def heads(self, block: Tensor) -> Tensor:
        """Returns ``(n, M * C, Ho, Wo)`` as ``(n, M, C / Cw, Cw, ...)``."""
        return self.rows(block).unflatten(1, (self.num_heads, -1, self.groups))

    def rows(self, block: Tensor) -> Tensor:
        """Returns ``(..., H, W)`` with its rows joined where they are to be."""
        return self.geometry.join(block.to(self.dtype).contiguous())


def _out_shape(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    return (x.shape[0], weight.shape[1] * x.shape[1], *weight.shape[4:])


def _store(sums: Tensor, block: Tensor) -> None:
    """Rounds the sums into the block, unless they have been formed in place."""
    if sums.dtype != block.dtype:
        block.copy_(sums.view(block.shape))


@torch.library.custom_op("visgraft::local_aggregation", mutates_args=())
def _aggregate(
    x: Tensor, weight: Tensor, kernel_size: int, stride: int, padding: int, dilation: int
) -> Tensor:
    plan = _Plan(x, weight, (kernel_size, stride, padding, dilation))
    out = x.new_empty(plan.out_shape)
    for block in _blocks(x):
        source, weights = plan.channels(x[block]), plan.rows(weight[block])
        sums = plan.heads(out[block]).zero_()
        for shift, taps in plan.geometry.columns():
            cleared = plan.geometry.cleared(source, shift)
            for tap, head in product(taps, range(plan.num_heads)):
                by_group = weights[(_ALL, head, None, _ALL, tap.number, *tap.writes)]
                by_channel = cleared[(..., *tap.reads)]
                sums[(_ALL, head, ..., *tap.writes)].addcmul_(by_channel, by_group)
        _store(sums, out[block])
    return out


@torch.library.custom_op("visgraft::local_aggregation_backward", mutates_args=())
def _differentiate(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    plan = _Plan(x, weight, (kernel_size, stride, padding, dilation))
    grad_x = x.new_empty(x.shape if need_x else 0)
    grad_weight = weight.new_empty(weight.shape if need_weight else 0)
    for block in _blocks(x):
        source, weights = plan.channels(x[block]), plan.rows(weight[block])
        grads = plan.heads(grad[block])
        sums_x = plan.channels(grad_x[block]).zero_() if need_x else source
        sums_weight = plan.rows(grad_weight[block]).zero_() if need_weight else weights
        products = torch.empty_like(grads[:, 0])
        for head, (shift, taps) in product(range(plan.num_heads), plan.geometry.columns()):
            cleared = plan.geometry.cleared(grads[:, head], -shift)
            for tap in taps:
                upstream = cleared[(..., *tap.writes)]
                if need_x:
                    by_group = weights[(_ALL, head, None, _ALL, tap.number, *tap.writes)]
                    sums_x[(..., *tap.reads)].addcmul_(upstream, by_group)
                if need_weight:
                    by_channel = products[(..., *tap.writes)]
                    torch.mul(upstream, source[(..., *tap.reads)], out=by_channel)
                    by_group = sums_weight[(_ALL, head, _ALL, tap.number, *tap.writes)]
                    torch.sum(by_channel, 1, out=by_group)
        if need_x:
            _store(sums_x, grad_x[block])
        if need_weight:
            _store(sums_weight, grad_weight[block])
    return grad_x, grad_weight


def _blocks(x: Tensor) -> Iterator[slice]:
    """Cuts the batch into blocks of images; a GPU takes all at once."""
    step = max(1, x.shape[0])
    if x.device.type == "cpu":
        step = max(1, _BLOCK * torch.get_num_threads() // max(1, x[:1].numel()))
    for first in range(0, x.shape[0], step):
        yield slice(first, first + step)


@_aggregate.register_fake
def _(x: Tensor, weight: Tensor, *_: int) -> Tensor:
    return x.new_empty(_out_shape(x, weight))


@_differentiate.register_fake
def _(_grad: Tensor, x: Tensor, weight: Tensor, *call: int | bool) -> tuple[Tensor, Tensor]:
    need_x, need_weight = call[4:]
    grad_x = x.new_empty(x.shape if need_x else 0)
    return grad_x, weight.new_empty(weight.shape if need_weight else 0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    ctx.save_for_backward(*(i for i in inputs if isinstance(i, Tensor)))
    ctx.call = tuple(i for i in inputs if not isinstance(i, Tensor))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    need_x, need_weight = ctx.needs_input_grad[:2]
    grads = _differentiate(grad, *ctx.saved_tensors, *ctx.call, need_x, need_weight)
    return (grads[0] if need_x else None, grads[1] if need_weight else None, *[None] * 4)


def _double_backward(ctx: Any, along_x: Tensor, along_weight: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiates the backward, which is linear in each of its three tensors."""
    grad, x, weight = ctx.saved_tensors
    *call, need_x, need_weight = ctx.call
    along_x = along_x if need_x else torch.zeros_like(x)
    along_weight = along_weight if need_weight else torch.zeros_like(weight)
    along_grad = _aggregate(along_x, weight, *call) + _aggregate(x, along_weight, *call)
    return along_grad, *_differentiate(grad, along_x, along_weight, *call, True, True), *[None] * 6


_aggregate.register_autograd(_backward, setup_context=_keep)
_differentiate.register_autograd(_double_backward, setup_context=_keep)


@register_flop_formula(torch.ops.visgraft.local_aggregation)
def _forward_flops(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return _flops(x, weight)


@register_flop_formula(torch.ops.visgraft.local_aggregation_backward)
def _backward_flops(*call: Any, **__: Any) -> int:
    _, x, weight, *_, need_x, need_weight = call
    return (need_x + need_weight) * _flops(x, weight)


def _flops(x: Sequence[int], weight: Sequence[int]) -> int:
    """Two per multiply-add: each weight meets each channel that shares it."""
    return 2 * prod(weight) * x[1] // weight[2]


def _refusal(*_: Any) -> str | None:
    if being_traced():
        return "a compiler or exporter is tracing and gets ordinary operators instead"
    return None


SHIFTED = Implementation("shifted", _aggregate, _refusal)
