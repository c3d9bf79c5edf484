"""Selection with a backward in C: one pass over the maps for all three gradients."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visgraft.ops._derivatives import gradients, keep
from visgraft.ops._dispatch import Implementation, being_traced
from visgraft.ops._native import NativeLibrary, tensor_refusal, threads_for, unwatched
from visgraft.ops._strides import in_layout, is_channels_last, layout_of, new_map
from visgraft.ops.selection._derivatives import describe
from visgraft.ops.selection.reference import selection_reference

__all__ = ["NATIVE"]

_LIBRARY = NativeLibrary("selection", Path(__file__).with_name("cpu.c"))
_PER_VALUE = 4  # multiplications that a value counts for, when threads are counted


def _forward(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    return selection_reference(first, second, share)


def _backward(
    grad: Tensor, first: Tensor, second: Tensor, share: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    last = is_channels_last(first)
    maps = [in_layout(t.to(first.dtype), last=last) for t in (first, second, grad)]
    shares = share.float().contiguous()
    grads = new_map(first), new_map(first), torch.empty_like(shares)
    b, c, h, w = first.shape
    threads = threads_for(_PER_VALUE * first.numel())
    numbers = b, c, h * w, first.dtype == torch.bfloat16, last, threads
    _LIBRARY.call("backward", (*maps[:2], shares, maps[2], *grads), *numbers)
    return grads[0], grads[1], grads[2].to(share.dtype)


_select = torch.library.custom_op("visgraft::selection_native", _forward, mutates_args=())
_differentiate = torch.library.custom_op(
    "visgraft::selection_native_backward", _backward, mutates_args=()
)


def _differentiate_fast(grad: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
    run = _backward if unwatched(grad, *saved) else _differentiate
    return run(grad, *saved)


_gradients = gradients(selection_reference, _differentiate_fast)
describe(_select, _differentiate, _gradients)


class _Direct(torch.autograd.Function):
    """The operator, without PyTorch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        keep(ctx, inputs, inputs[0])
        return _forward(*inputs)

    backward = staticmethod(_gradients)  # pyright: ignore[reportAssignmentType]


def _run(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    tensors = first, second, share
    if not unwatched(*tensors):
        return _select(*tensors)
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return (_Direct.apply if recorded else _forward)(*tensors)


def _refusal(first: Tensor, second: Tensor, share: Tensor) -> str | None:
    if being_traced():
        return "a compiler or exporter is tracing and gets ordinary operators instead"
    if first.dtype != second.dtype:
        return f"needs maps of one dtype, got {first.dtype} and {second.dtype}"
    if not all(t.is_contiguous(memory_format=layout_of(first)) for t in (first, second)):
        return "needs maps that both lie row by row in memory, or both channels_last"
    return tensor_refusal(first, second, share) or _LIBRARY.refusal()


NATIVE = Implementation("native", _run, _refusal)
