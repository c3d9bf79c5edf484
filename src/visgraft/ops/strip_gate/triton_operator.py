"""Gates for rows and columns on GPUs as an operator of PyTorch, with its derivatives."""

from typing import Any

import torch
from torch import Tensor

from visgraft.ops._derivatives import gradients, keep
from visgraft.ops._dispatch import Implementation
from visgraft.ops._map_tiles.division import aligned, refuse_maps
from visgraft.ops._map_tiles.strips import StripDivision
from visgraft.ops._strides import new_map
from visgraft.ops.strip_gate.reference import strip_gate_reference
from visgraft.ops.strip_gate.triton import gate_backward_kernel, gate_kernel

__all__ = ["TRITON"]


def _strides(rows: Tensor, columns: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the steps from image to image, channel to channel and along the strip, of both."""
    of_columns = (columns.stride(0), columns.stride(1), columns.stride(3))
    return rows.stride()[:3], of_columns


@torch.library.custom_op("visgraft::strip_gate_triton", mutates_args=())
def _gate(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    out = new_map(x)
    if out.numel():
        division = StripDivision.of(out, one_tile=True)
        tensors = aligned(x, out), rows, columns, out
        kernel: Any = gate_kernel
        with torch.cuda.device_of(x):
            kernel[division.programs](*tensors, *_strides(rows, columns), **division.options)
    return out


@torch.library.custom_op("visgraft::strip_gate_triton_backward", mutates_args=())
def _differentiate(
    grad: Tensor, x: Tensor, rows: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = new_map(x)
    if not x.numel():
        return grad_x, rows.new_zeros(rows.shape), columns.new_zeros(columns.shape)
    division = StripDivision.of(grad_x)
    by_row = rows.new_empty((division.column_parts, *rows.shape), dtype=torch.float32)
    by_column = rows.new_empty((division.row_parts, *columns.shape), dtype=torch.float32)
    tensors = aligned(grad, grad_x), aligned(x, grad_x), rows, columns, grad_x, by_row, by_column
    kernel: Any = gate_backward_kernel
    with torch.cuda.device_of(x):
        kernel[division.programs](*tensors, *_strides(rows, columns), **division.options)
    return grad_x, by_row.sum(0).to(rows.dtype), by_column.sum(0).to(columns.dtype)


@_gate.register_fake
def _(x: Tensor, *_: Tensor) -> Tensor:
    return new_map(x)


@_differentiate.register_fake
def _(_grad: Tensor, x: Tensor, *strips: Tensor) -> tuple[Tensor, ...]:
    return new_map(x), *(t.new_empty(t.shape) for t in strips)


_gate.register_autograd(gradients(strip_gate_reference, _differentiate), setup_context=keep)


def _refusal(x: Tensor, rows: Tensor, columns: Tensor) -> str | None:
    for strip in (rows, columns):
        if torch.promote_types(x.dtype, strip.dtype) != x.dtype:
            return f"needs gates no wider than the map, got {x.dtype} and {strip.dtype}"
    return refuse_maps(x, others=(rows, columns))


TRITON = Implementation("triton", _gate, _refusal)
