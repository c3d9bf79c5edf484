"""Where a program finds its part of the maps, see `division`, and what several kernels compute."""

import triton
import triton.language as tl

__all__ = ["channels_of_program", "places", "sigmoid", "tile"]


@triton.jit
def channels_of_program(
    channels,
    area,
    UNIT: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Returns the image, the channels as a column, the place of their sums, and the sizes."""
    if CHANNELS_LAST:
        all_channels = channels * UNIT
        positions = area * 1
    else:
        all_channels = channels * 1
        positions = area * UNIT
    blocks = tl.cdiv(all_channels, CHANNELS)
    image = (tl.program_id(0) // blocks).to(INDEX)
    channel = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    images = tl.num_programs(0) // blocks
    summed = (tl.program_id(1) * images + image) * all_channels + channel
    return image, channel.to(INDEX), summed, all_channels, positions


@triton.jit
def tile(step, steps, POSITIONS: tl.constexpr, INDEX: tl.constexpr):
    """Returns the positions of one tile of the program's part, as a row."""
    first = (tl.program_id(1) * steps + step).to(INDEX) * POSITIONS
    return first + tl.arange(0, POSITIONS)[None, :]


@triton.jit
def places(image, channel, position, channels, area, CHANNELS_LAST: tl.constexpr):
    """Returns where the values of these channels and positions lie."""
    if CHANNELS_LAST:
        return (image * area + position) * channels + channel
    return (image * channels + channel) * area + position


@triton.jit
def sigmoid(z):
    """Returns 1 / (1 + exp(-z)), without overflow."""
    small = tl.exp(-tl.abs(z))
    return tl.where(z < 0, small, 1.0) / (1 + small)
