"""Selection on GPUs as an operator of PyTorch, with its derivatives."""

from typing import Any

import torch
from torch import Tensor

from visgraft.ops._derivatives import gradients
from visgraft.ops._dispatch import Implementation
from visgraft.ops._map_tiles.division import Division, aligned, refuse_maps
from visgraft.ops._strides import new_map
from visgraft.ops.selection._derivatives import describe
from visgraft.ops.selection.reference import selection_reference
from visgraft.ops.selection.triton import backward_kernel, forward_kernel

__all__ = ["TRITON"]


@torch.library.custom_op("visgraft::selection_triton", mutates_args=())
def _select(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    out = new_map(first)
    if out.numel():
        division = Division.of(out, one_tile=True)
        kernel: Any = forward_kernel
        maps = aligned(first, out), aligned(second, out)
        with torch.cuda.device_of(first):
            kernel[division.programs](*maps, share.contiguous(), out, **division.options)
    return out


@torch.library.custom_op("visgraft::selection_triton_backward", mutates_args=())
def _differentiate(
    grad: Tensor, first: Tensor, second: Tensor, share: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grads = new_map(first), new_map(first)
    if not first.numel():
        return *grads, torch.zeros_like(share, memory_format=torch.contiguous_format)
    division = Division.of(grads[0])
    sums = share.new_empty((division.parts, *share.shape), dtype=torch.float32)
    kernel: Any = backward_kernel
    maps = [aligned(t, grads[0]) for t in (grad, first, second)]
    with torch.cuda.device_of(first):
        kernel[division.programs](*maps, share.contiguous(), *grads, sums, **division.options)
    return *grads, sums.sum(0).to(share.dtype)


describe(_select, _differentiate, gradients(selection_reference, _differentiate))


def _refusal(first: Tensor, second: Tensor, share: Tensor) -> str | None:
    return refuse_maps(first, second, others=(share,))


TRITON = Implementation("triton", _select, _refusal)
