"""Samples of deformable convolution in C, with channels last, for a product with the weights."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from visgraft.ops._native import NativeLibrary, tensor_refusal, threads_for

__all__ = ["Sampler", "refusal"]

_LANES = 8  # channels that are computed at once
_LIBRARY = NativeLibrary("deformable_convolution", Path(__file__).with_name("cpu.c"))


def refusal(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None) -> str | None:
    """Says why native code cannot take these arguments, or returns None."""
    channels, taps = x.shape[1], weight.shape[2] * weight.shape[3]
    parts = offset.shape[1] // (2 * taps)
    for kind, members in (("group", weight.shape[1]), ("offset group", channels // parts)):
        if members % _LANES:
            return f"needs a multiple of {_LANES} channels in each {kind}, got {members}"
    maps = (x, weight, offset) if mask is None else (x, weight, offset, mask)
    return tensor_refusal(*maps) or _LIBRARY.refusal()


class Sampler:
    """Samples some images and differentiates that.

    Args:
        x: ``(n, C, H, W)``.
        offset: ``(n, G * K * 2, Ho, Wo)``.
        weight: ``(O, C / groups, kh, kw)``, of which only the shape is read.
        mask: ``(n, G * K, Ho, Wo)`` or None.
        call: Stride, padding and dilation, each vertical and horizontal.
    """

    def __init__(
        self,
        x: Tensor,
        offset: Tensor,
        weight: Tensor,
        mask: Tensor | None,
        call: Sequence[Sequence[int]],
    ) -> None:
        members, *kernel = weight.shape[1:]
        taps = kernel[0] * kernel[1]
        groups, parts = x.shape[1] // members, offset.shape[1] // (2 * taps)
        self.dtype = x.dtype
        self.map = x.permute(0, 2, 3, 1).to(torch.float32).contiguous()
        self.offset = offset.to(torch.float32).contiguous()
        self.mask = None if mask is None else mask.to(torch.float32).contiguous()
        self.shape = (x.shape[0], groups, offset.shape[2] * offset.shape[3], taps * members)
        threads = threads_for(2 * x.shape[1] * offset.numel() // max(1, parts))
        numbers = (n for pair in call for n in pair)
        is_bf16 = x.dtype == torch.bfloat16
        sizes = (*x.shape, parts, groups, *kernel, *offset.shape[2:])
        self.numbers = (*sizes, *numbers, is_bf16, threads)

    def sample(self) -> Tensor:
        """Returns the scaled samples, ``(n, groups, Ho * Wo, K * C / groups)``."""
        samples = torch.empty(self.shape, dtype=self.dtype)
        tensors = (self.map, self.offset, self.mask, samples, *[None] * 4)
        _LIBRARY.call("forward", tensors, *self.numbers)
        return samples

    def differentiate(
        self, grads: Tensor, need_map: bool
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Returns the scaled samples, and the gradients of map, offset and mask in float32.

        Args:
            grads: Gradient of the scaled samples, of their shape.
            need_map: Whether the map's gradient is wanted.
        """
        samples = torch.empty(self.shape, dtype=self.dtype)
        grads = grads.to(torch.float32).contiguous()
        grad_map = torch.zeros_like(self.map) if need_map else None
        grad_offset = torch.empty_like(self.offset)
        grad_mask = None if self.mask is None else torch.empty_like(self.mask)
        tensors = (self.map, self.offset, self.mask, samples, grads)
        results = (grad_map, grad_offset, grad_mask)
        _LIBRARY.call("backward", (*tensors, *results), *self.numbers)
        moved = None if grad_map is None else grad_map.permute(0, 3, 1, 2)
        return samples, moved, grad_offset, grad_mask
