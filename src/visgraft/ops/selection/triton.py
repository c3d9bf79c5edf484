"""Kernels of the selection for GPUs: one pass over the maps forward, and one backward."""

import triton
import triton.language as tl

from visgraft.ops._map_tiles.triton import channels_of_program, places, tile

__all__ = ["backward_kernel", "forward_kernel"]


@triton.jit
def forward_kernel(
    first_ptr,
    second_ptr,
    share_ptr,
    out_ptr,
    channels,
    area,
    steps,
    UNIT: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Interpolates from the nearer of both maps, as PyTorch does."""
    image, channel, _, channels, area = channels_of_program(
        channels, area, UNIT, CHANNELS, CHANNELS_LAST, INDEX
    )
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    share = tl.load(share_ptr + image * channels + channel, mask=channel < channels, other=0)
    share = share.to(dtype).to(tl.float32)
    for step in range(steps):
        position = tile(step, steps, POSITIONS, INDEX)
        at = places(image, channel, position, channels, area, CHANNELS_LAST)
        inside = (channel < channels) & (position < area)
        first = tl.load(first_ptr + at, mask=inside, other=0).to(tl.float32)
        second = tl.load(second_ptr + at, mask=inside, other=0).to(tl.float32)
        way = second - first
        out = tl.where(tl.abs(share) < 0.5, first + share * way, second - way * (1 - share))
        tl.store(out_ptr + at, out.to(dtype), mask=inside)


@triton.jit
def backward_kernel(
    grad_ptr,
    first_ptr,
    second_ptr,
    share_ptr,
    grad_first_ptr,
    grad_second_ptr,
    sums_ptr,
    channels,
    area,
    steps,
    UNIT: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Writes the gradients of both maps, and sums that of the share over the program's part."""
    image, channel, summed, channels, area = channels_of_program(
        channels, area, UNIT, CHANNELS, CHANNELS_LAST, INDEX
    )
    dtype: tl.constexpr = grad_first_ptr.dtype.element_ty
    share = tl.load(share_ptr + image * channels + channel, mask=channel < channels, other=0)
    share = share.to(dtype).to(tl.float32)
    sums = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    for step in range(steps):
        position = tile(step, steps, POSITIONS, INDEX)
        at = places(image, channel, position, channels, area, CHANNELS_LAST)
        inside = (channel < channels) & (position < area)
        grad = tl.load(grad_ptr + at, mask=inside, other=0).to(tl.float32)
        first = tl.load(first_ptr + at, mask=inside, other=0).to(tl.float32)
        second = tl.load(second_ptr + at, mask=inside, other=0).to(tl.float32)
        tl.store(grad_first_ptr + at, (grad * (1 - share)).to(dtype), mask=inside)
        tl.store(grad_second_ptr + at, (grad * share).to(dtype), mask=inside)
        sums += grad * (second - first)
    tl.store(sums_ptr + summed, tl.sum(sums, 1)[:, None], mask=channel < channels)
