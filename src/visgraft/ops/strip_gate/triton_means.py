"""The means of rows and columns on GPUs as an operator of PyTorch, with its derivatives."""

from typing import Any

import torch
from torch import Tensor

from visgraft.ops._dispatch import Implementation
from visgraft.ops._map_tiles.division import refuse_maps
from visgraft.ops._map_tiles.strips import StripDivision
from visgraft.ops._native import unwatched
from visgraft.ops._strides import in_layout, is_channels_last, new_map
from visgraft.ops.strip_gate._derivatives import gradient, handing_on, keep_map
from visgraft.ops.strip_gate.triton import means_backward_kernel, means_kernel

__all__ = ["TRITON"]


@torch.library.custom_op("visgraft::strip_means_triton", mutates_args=())
def _means(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    out = new_map(x, (b, c, h + w, 1))
    if out.numel():
        division = StripDivision.of(x)
        by_row = x.new_empty((division.column_parts, b, c, h), dtype=torch.float32)
        by_column = x.new_empty((division.row_parts, b, c, w), dtype=torch.float32)
        source = in_layout(x, last=is_channels_last(x))
        kernel: Any = means_kernel
        with torch.cuda.device_of(x):
            kernel[division.programs](source, by_row, by_column, **division.options)
        out[:, :, :h, 0] = by_row.sum(0)
        out[:, :, h:, 0] = by_column.sum(0)
    return out


def _spread(grad: Tensor, onto: Tensor | None, out: Tensor) -> None:
    """Writes to ``out`` the share of each value, plus ``onto``, which may be ``out`` itself."""
    if not out.numel():
        return
    division = StripDivision.of(out, one_tile=True)
    rows, columns = (t.squeeze(3) for t in grad.split(out.shape[2:], 2))
    tensors = out if onto is None else onto, rows, columns, out
    kernel: Any = means_backward_kernel
    options = division.options | {"ADDS": onto is not None}
    with torch.cuda.device_of(out):
        kernel[division.programs](*tensors, rows.stride(), columns.stride(), **options)


def _new_map(strips: Tensor, height: int, width: int, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    size = (*strips.shape[:2], height, width)
    return torch.empty(size, dtype=strips.dtype, device=strips.device, memory_format=memory_format)


@torch.library.custom_op("visgraft::strip_means_triton_backward", mutates_args=())
def _differentiate(grad: Tensor, height: int, width: int, channels_last: bool) -> Tensor:
    out = _new_map(grad, height, width, channels_last)
    _spread(grad, None, out)
    return out


@_means.register_fake
def _(x: Tensor) -> Tensor:
    return new_map(x, (*x.shape[:2], x.shape[2] + x.shape[3], 1))


_differentiate.register_fake(_new_map)

_gradient = gradient(_differentiate)
_means.register_autograd(_gradient, setup_context=keep_map)
_handing_on = handing_on(_means, _gradient, _spread)


def _run(x: Tensor) -> tuple[Tensor, Tensor]:
    return _handing_on(x) if unwatched(x) else (_means(x), x)


TRITON = Implementation("triton", _run, lambda x: refuse_maps(x))
