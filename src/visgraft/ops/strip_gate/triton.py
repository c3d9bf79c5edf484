"""Kernels for GPUs of gates for rows and columns, and of the means of both.

A program has some channels of one image, a part of the rows, which it takes some at a time, and a
part of the columns: usually all. Each map is read once and each result is written once.
"""

import triton
import triton.language as tl

from visgraft.ops._map_tiles.triton import sigmoid

__all__ = ["gate_backward_kernel", "gate_kernel", "means_backward_kernel", "means_kernel"]


@triton.jit
def _sizes(channels, width, UNIT: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Returns the number of channels and columns; that which lies last is told in units."""
    if CHANNELS_LAST:
        return channels * UNIT, width * 1
    return channels * 1, width * UNIT


@triton.jit
def _program(channels, width, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, INDEX: tl.constexpr):
    """Returns images in all and the one of the program, channels, columns and both parts."""
    blocks = tl.cdiv(channels, CHANNELS)
    image = (tl.program_id(0) // blocks).to(INDEX)
    channel = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)[:, None, None]
    parts = tl.cdiv(width, COLUMNS)
    part = tl.program_id(1) % parts
    column = part * COLUMNS + tl.arange(0, COLUMNS)[None, None, :]
    images = tl.num_programs(0) // blocks
    return images, image, channel.to(INDEX), column.to(INDEX), tl.program_id(1) // parts, part


@triton.jit
def _rows(part, step, steps, ROWS: tl.constexpr, INDEX: tl.constexpr):
    """Returns the rows of one step."""
    return ((part * steps + step) * ROWS + tl.arange(0, ROWS)[None, :, None]).to(INDEX)


@triton.jit
def _places(image, channel, row, column, channels, height, width, CHANNELS_LAST: tl.constexpr):
    """Returns where the values lie."""
    if CHANNELS_LAST:
        return ((image * height + row) * width + column) * channels + channel
    return ((image * channels + channel) * height + row) * width + column


@triton.jit
def _of_strip(ptr, strides, image, channel, position, inside):
    """Returns the numbers of some channels at some rows or columns."""
    at = ptr + image * strides[0] + channel * strides[1] + position * strides[2]
    return tl.load(at, mask=inside, other=0).to(tl.float32)


@triton.jit
def gate_kernel(
    x_ptr,
    rows_ptr,
    columns_ptr,
    out_ptr,
    rows_strides,
    columns_strides,
    channels,
    height,
    width,
    steps,
    UNIT: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Multiplies by the gates of rows and columns."""
    channels, width = _sizes(channels, width, UNIT, CHANNELS_LAST)
    _, image, channel, column, part, _ = _program(channels, width, CHANNELS, COLUMNS, INDEX)
    exists = (channel < channels) & (column < width)
    of_column = sigmoid(_of_strip(columns_ptr, columns_strides, image, channel, column, exists))
    for step in range(steps):
        row = _rows(part, step, steps, ROWS, INDEX)
        inside = (channel < channels) & (row < height)
        of_row = sigmoid(_of_strip(rows_ptr, rows_strides, image, channel, row, inside))
        at = _places(image, channel, row, column, channels, height, width, CHANNELS_LAST)
        x = tl.load(x_ptr + at, mask=inside & exists, other=0).to(tl.float32)
        out = x * of_column * of_row
        tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside & exists)


@triton.jit
def gate_backward_kernel(
    grad_ptr,
    x_ptr,
    rows_ptr,
    columns_ptr,
    grad_x_ptr,
    by_row_ptr,
    by_column_ptr,
    rows_strides,
    columns_strides,
    channels,
    height,
    width,
    steps,
    UNIT: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Writes the gradient of the map, and sums those of rows and columns over the parts."""
    channels, width = _sizes(channels, width, UNIT, CHANNELS_LAST)
    images, image, channel, column, part, beside = _program(
        channels, width, CHANNELS, COLUMNS, INDEX
    )
    exists = (channel < channels) & (column < width)
    of_column = sigmoid(_of_strip(columns_ptr, columns_strides, image, channel, column, exists))
    by_column = tl.zeros((CHANNELS, ROWS, COLUMNS), tl.float32)
    for step in range(steps):
        row = _rows(part, step, steps, ROWS, INDEX)
        inside = (channel < channels) & (row < height)
        of_row = sigmoid(_of_strip(rows_ptr, rows_strides, image, channel, row, inside))
        at = _places(image, channel, row, column, channels, height, width, CHANNELS_LAST)
        x = tl.load(x_ptr + at, mask=inside & exists, other=0).to(tl.float32)
        grad = tl.load(grad_ptr + at, mask=inside & exists, other=0).to(tl.float32)
        grad_x = grad * of_column * of_row
        tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask=inside & exists)
        by_column += grad * x * of_row
        by_row = tl.sum(grad * x * of_column, 2, keep_dims=True) * of_row * (1 - of_row)
        at = ((beside * images + image) * channels + channel) * height + row
        tl.store(by_row_ptr + at, by_row, mask=inside)
    sums = tl.sum(by_column, 1, keep_dims=True) * of_column * (1 - of_column)
    at = ((part * images + image) * channels + channel) * width + column
    tl.store(by_column_ptr + at, sums, mask=exists)


@triton.jit
def means_kernel(
    x_ptr,
    by_row_ptr,
    by_column_ptr,
    channels,
    height,
    width,
    steps,
    UNIT: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Sums what the program's part gives to the means of its rows and of its columns."""
    channels, width = _sizes(channels, width, UNIT, CHANNELS_LAST)
    images, image, channel, column, part, beside = _program(
        channels, width, CHANNELS, COLUMNS, INDEX
    )
    exists = (channel < channels) & (column < width)
    by_column = tl.zeros((CHANNELS, ROWS, COLUMNS), tl.float32)
    for step in range(steps):
        row = _rows(part, step, steps, ROWS, INDEX)
        inside = (channel < channels) & (row < height)
        at = _places(image, channel, row, column, channels, height, width, CHANNELS_LAST)
        x = tl.load(x_ptr + at, mask=inside & exists, other=0).to(tl.float32)
        by_column += x
        at = ((beside * images + image) * channels + channel) * height + row
        tl.store(by_row_ptr + at, tl.sum(x, 2, keep_dims=True) / width, mask=inside)
    at = ((part * images + image) * channels + channel) * width + column
    tl.store(by_column_ptr + at, tl.sum(by_column, 1, keep_dims=True) / height, mask=exists)


@triton.jit
def means_backward_kernel(
    onto_ptr,
    rows_ptr,
    columns_ptr,
    out_ptr,
    rows_strides,
    columns_strides,
    channels,
    height,
    width,
    steps,
    UNIT: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    INDEX: tl.constexpr,
    ADDS: tl.constexpr,
):
    """Writes what each value has in the means of its row and column, added to a map or alone."""
    channels, width = _sizes(channels, width, UNIT, CHANNELS_LAST)
    _, image, channel, column, part, _ = _program(channels, width, CHANNELS, COLUMNS, INDEX)
    exists = (channel < channels) & (column < width)
    of_column = _of_strip(columns_ptr, columns_strides, image, channel, column, exists) / height
    for step in range(steps):
        row = _rows(part, step, steps, ROWS, INDEX)
        inside = (channel < channels) & (row < height)
        of_row = _of_strip(rows_ptr, rows_strides, image, channel, row, inside) / width
        at = _places(image, channel, row, column, channels, height, width, CHANNELS_LAST)
        out = of_row + of_column
        if ADDS:
            out += tl.load(onto_ptr + at, mask=inside & exists, other=0).to(tl.float32)
        tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside & exists)
