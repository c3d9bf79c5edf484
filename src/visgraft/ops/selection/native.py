"""Selection with a backward in C: one pass over the maps for all three gradients."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visgraft.ops._dispatch import Implementation, being_traced
from visgraft.ops._native import NativeLibrary, tensor_refusal, threads_for, unwatched
from visgraft.ops.selection.reference import selection_reference

__all__ = ["NATIVE"]

_LIBRARY = NativeLibrary("selection", Path(__file__).with_name("cpu.c"))
_PER_VALUE = 4  # multiplications that a value counts for, when threads are counted


def _forward(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    return selection_reference(first, second, share)


def _backward(
    grad: Tensor, first: Tensor, second: Tensor, share: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    maps = first.contiguous(), second.contiguous()
    shares = share.float().contiguous()
    grads = torch.empty_like(maps[0]), torch.empty_like(maps[0]), torch.empty_like(shares)
    upstream = grad.to(first.dtype).contiguous()
    b, c, h, w = first.shape
    numbers = b * c, h * w, first.dtype == torch.bfloat16, threads_for(_PER_VALUE * first.numel())
    _LIBRARY.call("backward", (*maps, shares, upstream, *grads), *numbers)
    return grads[0], grads[1], grads[2].to(share.dtype)


_select = torch.library.custom_op("visgraft::selection_native", _forward, mutates_args=())
_differentiate = torch.library.custom_op(
    "visgraft::selection_native_backward", _backward, mutates_args=()
)


@_select.register_fake
def _(first: Tensor, *_: Tensor) -> Tensor:
    return first.new_empty(first.shape)


@_differentiate.register_fake
def _(_grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in inputs)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    if torch.is_grad_enabled():  # these gradients are to be differentiated
        wanted = [t for t in saved if t.requires_grad]
        out = selection_reference(*saved)
        found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
        return tuple(next(found) if t.requires_grad else None for t in saved)
    run = _backward if unwatched(grad, *saved) else _differentiate
    return run(grad, *saved)


_select.register_autograd(_gradients, setup_context=_keep)


class _Direct(torch.autograd.Function):
    """The operator, without PyTorch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        _keep(ctx, inputs, inputs[0])
        return _forward(*inputs)

    backward = staticmethod(_gradients)  # pyright: ignore[reportAssignmentType]


def _run(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    run = _Direct.apply if unwatched(first, second, share) else _select
    return run(first, second, share)


def _refusal(first: Tensor, second: Tensor, share: Tensor) -> str | None:
    if being_traced():
        return "a compiler or exporter is tracing and gets ordinary operators instead"
    if first.dtype != second.dtype:
        return f"needs maps of one dtype, got {first.dtype} and {second.dtype}"
    if not (first.is_contiguous() and second.is_contiguous()):
        return "needs maps that lie row by row in memory"
    return tensor_refusal(first, second, share) or _LIBRARY.refusal()


NATIVE = Implementation("native", _run, _refusal)
