"""The gates in C: one pass forward and one backward, which keep the map and the strips only."""

from typing import Any

import torch
from torch import Tensor

from visgraft.ops._derivatives import gradients, keep
from visgraft.ops._dispatch import Implementation, being_traced
from visgraft.ops._native import tensor_refusal, unwatched
from visgraft.ops.strip_gate._library import (
    LIBRARY,
    call_numbers,
    in_order,
    layout_refusal,
    memory_format,
    new_strip,
)
from visgraft.ops.strip_gate.reference import strip_gate_reference

__all__ = ["NATIVE"]


def _forward(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    y = torch.empty_like(x)
    tensors = x, in_order(x, rows), in_order(x, columns), y
    LIBRARY.call("gate", tensors, *call_numbers(x))
    return y


def _backward(
    grad: Tensor, x: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    upstream = grad.to(x.dtype).contiguous(memory_format=memory_format(x))
    grads = torch.empty_like(x), *_new_strips(x, torch.float32)
    tensors = x, in_order(x, rows), in_order(x, columns), upstream, *grads
    LIBRARY.call("gate_backward", tensors, *call_numbers(x))
    return grads[0], grads[1].to(rows.dtype), grads[2].to(columns.dtype)


def _new_strips(x: Tensor, *dtypes: torch.dtype) -> tuple[Tensor, Tensor]:
    h, w = x.shape[2:]
    return new_strip(x, h, 1, dtype=dtypes[0]), new_strip(x, 1, w, dtype=dtypes[-1])


_gate = torch.library.custom_op("visgraft::strip_gate_native", _forward, mutates_args=())
_differentiate = torch.library.custom_op(
    "visgraft::strip_gate_native_backward", _backward, mutates_args=()
)


@_gate.register_fake
def _(x: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(x)


@_differentiate.register_fake
def _(_grad: Tensor, x: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), *_new_strips(x, rows.dtype, columns.dtype)


def _differentiate_fast(grad: Tensor, *saved: Tensor) -> tuple[Tensor, ...]:
    run = _backward if unwatched(grad, *saved) else _differentiate
    return run(grad, *saved)


_gradients = gradients(strip_gate_reference, _differentiate_fast)
_gate.register_autograd(_gradients, setup_context=keep)


class _Direct(torch.autograd.Function):
    """The operator, without PyTorch's dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        keep(ctx, inputs, inputs[0])
        return _forward(*inputs)

    backward = staticmethod(_gradients)  # pyright: ignore[reportAssignmentType]


def _run(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    if not unwatched(x, rows, columns):
        return _gate(x, rows, columns)
    if torch.is_grad_enabled() and (x.requires_grad or rows.requires_grad or columns.requires_grad):
        return _Direct.apply(x, rows, columns)
    return _forward(x, rows, columns)


def _refusal(x: Tensor, rows: Tensor, columns: Tensor) -> str | None:
    if being_traced():
        return "a compiler or exporter is tracing and gets ordinary operators instead"
    for strip in (rows, columns):
        if torch.promote_types(x.dtype, strip.dtype) != x.dtype:
            return f"needs gates no wider than the map, got {x.dtype} and {strip.dtype}"
    return tensor_refusal(x, rows, columns) or layout_refusal(x) or LIBRARY.refusal()


NATIVE = Implementation("native", _run, _refusal)
