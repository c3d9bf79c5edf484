"""Kernels for GPUs of batch normalisation with its activation.

Forward, the map is read twice: for the statistics and to normalise it. Backward, it and the
upstream gradient are read twice: for the two sums over each channel, and for the gradient of x.
"""

import triton
import triton.language as tl

from visgraft.ops._map_tiles.triton import channels_of_program, places, sigmoid, tile

__all__ = [
    "apply_kernel",
    "backward_kernel",
    "combine_kernel",
    "statistics_kernel",
    "sums_kernel",
]


@triton.jit
def _activate(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "relu":
        return tl.where(z < 0, 0.0, z)
    if ACTIVATION == "silu":
        return z * sigmoid(z)
    return z


@triton.jit
def _derive(z, grad, ACTIVATION: tl.constexpr):
    """Returns the gradient at z where that of the activated value is given."""
    if ACTIVATION == "relu":
        return tl.where(z <= 0, 0.0, grad)
    if ACTIVATION == "silu":
        s = sigmoid(z)
        return grad * s * (z * (1 - s) + 1)
    return grad


@triton.jit
def _of_channel(ptr, channel, channels):
    """Returns a number of each channel."""
    return tl.load(ptr + channel, mask=channel < channels, other=0)


@triton.jit
def _normalisation(weight_ptr, bias_ptr, mean_ptr, variance_ptr, epsilon, channel, channels):
    """Returns of each channel the mean, one over the deviation, and what scales and shifts."""
    rate = 1 / tl.sqrt(_of_channel(variance_ptr, channel, channels) + epsilon)
    scale = _of_channel(weight_ptr, channel, channels) * rate
    mean = _of_channel(mean_ptr, channel, channels)
    return mean, rate, scale, _of_channel(bias_ptr, channel, channels)


@triton.jit
def _of_mean(grad_pooled_ptr, image, channel, channels, area):
    """Returns what each value receives from the gradient of the mean over positions."""
    at = grad_pooled_ptr + image * channels + channel
    return tl.load(at, mask=channel < channels, other=0).to(tl.float32) / area


@triton.jit
def _before(grad_ptr, x_ptr, at, inside, mean, scale, shift, more, ACTIVATION: tl.constexpr):
    """Returns the gradient before the activation, and the distance of x from the mean."""
    away = tl.load(x_ptr + at, mask=inside, other=0).to(tl.float32) - mean
    grad = tl.load(grad_ptr + at, mask=inside, other=0).to(tl.float32) + more
    return _derive(away * scale + shift, grad, ACTIVATION), away


@triton.jit
def statistics_kernel(
    x_ptr,
    means_ptr,
    squares_ptr,
    channels,
    area,
    steps,
    UNIT: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Writes the mean over the program's part, and the sum of squared differences from it.

    Means are distances from the channel's first value, and every column of the tile has one of its
    own, which each value moves: numbers are small wherever the values lie.
    """
    image, channel, summed, channels, area = channels_of_program(
        channels, area, UNIT, CHANNELS, CHANNELS_LAST, INDEX
    )
    start = places(0, channel, 0, channels, area, CHANNELS_LAST)
    origin = tl.load(x_ptr + start, mask=channel < channels, other=0).to(tl.float32)
    mean = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    squares = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    for step in range(steps):
        position = tile(step, steps, POSITIONS, INDEX)
        at = places(image, channel, position, channels, area, CHANNELS_LAST)
        inside = (channel < channels) & (position < area)
        x = tl.load(x_ptr + at, mask=inside, other=0).to(tl.float32) - origin
        away = tl.where(inside, x - mean, 0.0)
        mean += away / (step + 1)
        squares += tl.where(inside, away * (x - mean), 0.0)
    first = tl.program_id(1) * steps * POSITIONS
    last = tl.minimum(first + steps * POSITIONS, area)
    column = tl.arange(0, POSITIONS)[None, :]
    seen = tl.maximum((last - first - column + POSITIONS - 1) // POSITIONS, 0).to(tl.float32)
    count = (last - first).to(tl.float32)
    of_all = tl.sum(mean * seen, 1)[:, None] / count
    away = mean - of_all
    squares = tl.sum(squares + away * away * seen, 1)[:, None]
    tl.store(means_ptr + summed, of_all, mask=channel < channels)
    tl.store(squares_ptr + summed, squares, mask=channel < channels)


@triton.jit
def combine_kernel(
    x_ptr,
    means_ptr,
    squares_ptr,
    mean_ptr,
    variance_ptr,
    images,
    parts,
    channels,
    area,
    part_size,
    count,
    channel_stride,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Writes mean and variance of each channel from those of its parts."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    of_all = tl.zeros((1, CHANNELS), tl.float32)
    squares = tl.zeros((1, CHANNELS), tl.float32)
    for turn in tl.static_range(2):
        for first in range(0, images * parts, ROWS):
            row = first + tl.arange(0, ROWS)[:, None]
            inside = (row < images * parts) & (channel < channels)
            size = tl.minimum(area - row // images * part_size, part_size).to(tl.float32)
            mean = tl.load(means_ptr + row * channels + channel, mask=inside, other=0)
            if turn == 0:
                of_all += tl.sum(tl.where(inside, mean * (size / count), 0.0), 0)[None, :]
            else:
                away = tl.where(inside, mean - of_all, 0.0)
                own = tl.load(squares_ptr + row * channels + channel, mask=inside, other=0)
                squares += tl.sum(own + away * away * size, 0)[None, :]
    inside = channel < channels
    at = x_ptr + channel.to(tl.int64) * channel_stride
    origin = tl.load(at, mask=inside, other=0).to(tl.float32)
    tl.store(mean_ptr + channel, origin + of_all, mask=inside)
    tl.store(variance_ptr + channel, squares / count, mask=inside)


@triton.jit
def apply_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    variance_ptr,
    y_ptr,
    sums_ptr,
    epsilon,
    channels,
    area,
    steps,
    ACTIVATION: tl.constexpr,
    UNIT: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Normalises and activates, and sums over the program's part what it gives to the mean."""
    image, channel, summed, channels, area = channels_of_program(
        channels, area, UNIT, CHANNELS, CHANNELS_LAST, INDEX
    )
    mean, _, scale, shift = _normalisation(
        weight_ptr, bias_ptr, mean_ptr, variance_ptr, epsilon, channel, channels
    )
    sums = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    for step in range(steps):
        position = tile(step, steps, POSITIONS, INDEX)
        at = places(image, channel, position, channels, area, CHANNELS_LAST)
        inside = (channel < channels) & (position < area)
        x = tl.load(x_ptr + at, mask=inside, other=0).to(tl.float32)
        y = _activate((x - mean) * scale + shift, ACTIVATION)
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)
        sums += tl.where(inside, y, 0.0)
    tl.store(sums_ptr + summed, tl.sum(sums, 1)[:, None] / area, mask=channel < channels)


@triton.jit
def sums_kernel(
    grad_ptr,
    grad_pooled_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    variance_ptr,
    plain_ptr,
    by_x_ptr,
    epsilon,
    channels,
    area,
    steps,
    ACTIVATION: tl.constexpr,
    UNIT: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Sums over the part the gradient before the activation, alone and by the normalised x."""
    image, channel, summed, channels, area = channels_of_program(
        channels, area, UNIT, CHANNELS, CHANNELS_LAST, INDEX
    )
    mean, rate, scale, shift = _normalisation(
        weight_ptr, bias_ptr, mean_ptr, variance_ptr, epsilon, channel, channels
    )
    more = _of_mean(grad_pooled_ptr, image, channel, channels, area)
    plain = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    by_x = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    for step in range(steps):
        position = tile(step, steps, POSITIONS, INDEX)
        at = places(image, channel, position, channels, area, CHANNELS_LAST)
        inside = (channel < channels) & (position < area)
        grad, away = _before(grad_ptr, x_ptr, at, inside, mean, scale, shift, more, ACTIVATION)
        plain += tl.where(inside, grad, 0.0)
        by_x += tl.where(inside, grad * away, 0.0)
    tl.store(plain_ptr + summed, tl.sum(plain, 1)[:, None], mask=channel < channels)
    tl.store(by_x_ptr + summed, tl.sum(by_x, 1)[:, None] * rate, mask=channel < channels)


@triton.jit
def backward_kernel(
    grad_ptr,
    grad_pooled_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    variance_ptr,
    plain_ptr,
    by_x_ptr,
    grad_x_ptr,
    epsilon,
    count,
    channels,
    area,
    steps,
    ACTIVATION: tl.constexpr,
    UNIT: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Writes the gradient of x, less what the statistics take from it."""
    image, channel, _, channels, area = channels_of_program(
        channels, area, UNIT, CHANNELS, CHANNELS_LAST, INDEX
    )
    mean, rate, scale, shift = _normalisation(
        weight_ptr, bias_ptr, mean_ptr, variance_ptr, epsilon, channel, channels
    )
    of_mean = _of_channel(plain_ptr, channel, channels) / count
    of_x = _of_channel(by_x_ptr, channel, channels) * rate / count
    more = _of_mean(grad_pooled_ptr, image, channel, channels, area)
    for step in range(steps):
        position = tile(step, steps, POSITIONS, INDEX)
        at = places(image, channel, position, channels, area, CHANNELS_LAST)
        inside = (channel < channels) & (position < area)
        grad, away = _before(grad_ptr, x_ptr, at, inside, mean, scale, shift, more, ACTIVATION)
        grad = (grad - of_mean - away * of_x) * scale
        tl.store(grad_x_ptr + at, grad.to(grad_x_ptr.dtype.element_ty), mask=inside)
