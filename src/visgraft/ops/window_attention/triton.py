"""Kernels of window attention for GPUs.

A program owns a tile of queries, or of keys in the gradients of keys and values, and goes through
the part of the map that their windows meet. A pair of query and key that padding makes meet several
times counts several times in the softmax: reflected and repeated positions are never read, only
counted, and the gradient of a key gathers from its queries without a padded copy. The attention is
computed again in the backward pass from the logarithm of each query's sum. Logits and sums are
float32.
"""

import triton
import triton.language as tl

__all__ = ["forward_kernel", "keys_kernel", "queries_kernel"]


@triton.jit
def _meets(distance, KERNEL: tl.constexpr, DILATION: tl.constexpr):
    """Whether a position at this distance from a query is in its window."""
    inside = tl.abs(distance) <= DILATION * (KERNEL // 2)
    if DILATION > 1:
        inside = inside & (distance % DILATION == 0)
    return inside


@triton.jit
def _times(
    query, key, size, STRIDE: tl.constexpr, KERNEL: tl.constexpr, DILATION: tl.constexpr, REFLECTS
):
    """Returns how often a query reads a position, along one axis."""
    centre = query * STRIDE
    last = size - 1
    reach: tl.constexpr = DILATION * (KERNEL // 2)
    direct = _meets(key - centre, KERNEL, DILATION)
    if REFLECTS:
        before = _meets(key + centre, KERNEL, DILATION) & (key > 0)
        behind = _meets(2 * last - key - centre, KERNEL, DILATION) & (key < last)
        times = direct.to(tl.int32) + before.to(tl.int32) + behind.to(tl.int32)
    else:
        to_last = tl.maximum(last, 1) - centre
        before = tl.where(key == 0, (reach - centre) // DILATION + 1, 0)
        behind = tl.where(key == last, (reach - to_last) // DILATION + 1, 0)
        times = (direct & (key > 0) & (key < last)).to(tl.int32) + (before + behind).to(tl.int32)
    return times


@triton.jit
def _pairs(
    row,
    column,
    y,
    x,
    height,
    width,
    STRIDE: tl.constexpr,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    REFLECTS: tl.constexpr,
):
    """Returns how often queries, of shape (n, 1), read keys, of shape (1, m)."""
    by_row = _times(row, y, height, STRIDE, KERNEL, DILATION, REFLECTS[0])
    return by_row * _times(column, x, width, STRIDE, KERNEL, DILATION, REFLECTS[1])


@triton.jit
def _tile(height, width, heads, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INDEX: tl.constexpr):
    """Returns image, head, and first row and column of the tile of this program."""
    down = (height + ROWS - 1) // ROWS
    across = (width + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0).to(INDEX)
    tile = program % (down * across)
    plane = program // (down * across)
    return plane // heads, plane % heads, tile // across * ROWS, tile % across * COLUMNS


@triton.jit
def _span(first, count: tl.constexpr, size, STRIDE: tl.constexpr, reach: tl.constexpr):
    """Returns the first key that some queries of one axis meet, and how many there are."""
    start = tl.maximum(first * STRIDE - reach, 0)
    stop = tl.minimum((first + count - 1) * STRIDE + reach + 1, size)
    return start, stop - start


@triton.jit
def _query_span(first, count: tl.constexpr, size, STRIDE: tl.constexpr, reach: tl.constexpr):
    """Returns the first query that meets some keys of one axis, and how many there are."""
    start = (tl.maximum(first - reach, 0) + STRIDE - 1) // STRIDE
    stop = tl.minimum((first + count - 1 + reach) // STRIDE + 1, size)
    return start, stop - start


@triton.jit
def _load(ptr, strides, image, head, y, x, exists, depth, DEPTH: tl.constexpr, INDEX: tl.constexpr):
    """Returns positions as rows of a matrix, ``(positions, DEPTH)``."""
    channel = tl.arange(0, DEPTH).to(INDEX)[None, :]
    at = image * strides[0] + head * strides[1] + channel * strides[2]
    at = at + (y * strides[3] + x * strides[4])[:, None]
    return tl.load(ptr + at, mask=exists[:, None] & (channel < depth), other=0)


@triton.jit
def _store(values, ptr, strides, image, head, y, x, exists, depth, INDEX: tl.constexpr):
    """Stores a matrix of positions where ``_load`` reads it."""
    channel = tl.arange(0, values.shape[1]).to(INDEX)[None, :]
    at = image * strides[0] + head * strides[1] + channel * strides[2]
    at = at + (y * strides[3] + x * strides[4])[:, None]
    mask = exists[:, None] & (channel < depth)
    tl.store(ptr + at, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def forward_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    out_ptr,
    sums_ptr,
    query_strides,
    key_strides,
    value_strides,
    out_strides,
    sizes,
    scale,
    STRIDE: tl.constexpr,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    REFLECTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Computes the output of a tile of queries, and the base-2 logarithms of their sums."""
    heads, depth, height, width, out_height, out_width = sizes
    reach: tl.constexpr = DILATION * (KERNEL // 2)
    image, head, top, left = _tile(out_height, out_width, heads, ROWS, COLUMNS, INDEX)
    place = tl.arange(0, ROWS * COLUMNS)
    row = top + place // COLUMNS
    column = left + place % COLUMNS
    exists = (row < out_height) & (column < out_width)
    query = _load(query_ptr, query_strides, image, head, row, column, exists, depth, DEPTH, INDEX)

    first_y, rows = _span(top, ROWS, height, STRIDE, reach)
    first_x, columns = _span(left, COLUMNS, width, STRIDE, reach)
    highest = tl.full((ROWS * COLUMNS,), float("-inf"), tl.float32)
    sums = tl.zeros((ROWS * COLUMNS,), tl.float32)
    out = tl.zeros((ROWS * COLUMNS, DEPTH), tl.float32)
    for start in range(0, rows * columns, KEYS):
        number = start + tl.arange(0, KEYS)
        y = first_y + number // columns
        x = first_x + number % columns
        there = number < rows * columns
        key = _load(key_ptr, key_strides, image, head, y, x, there, depth, DEPTH, INDEX)
        value = _load(value_ptr, value_strides, image, head, y, x, there, depth, DEPTH, INDEX)
        times = _pairs(
            row[:, None],
            column[:, None],
            y[None, :],
            x[None, :],
            height,
            width,
            STRIDE,
            KERNEL,
            DILATION,
            REFLECTS,
        )
        times = tl.where(there[None, :], times, 0)
        logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        logits = tl.where(times > 0, logits, float("-inf"))
        higher = tl.maximum(highest, tl.max(logits, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        attention = tl.exp2(logits - base[:, None]) * times
        shrink = tl.exp2(highest - base)
        sums = sums * shrink + tl.sum(attention, 1)
        mixed = tl.dot(attention.to(value.dtype), value, input_precision=PRECISION)
        out = out * shrink[:, None] + mixed
        highest = higher
    sums = tl.where(sums == 0, 1.0, sums)  # of queries beyond the map
    out = out / sums[:, None]
    _store(out, out_ptr, out_strides, image, head, row, column, exists, depth, INDEX)
    plane = image * heads + head
    at = (plane * out_height + row) * out_width + column
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    tl.store(sums_ptr + at, highest + tl.log2(sums), mask=exists)


@triton.jit
def queries_kernel(
    grad_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    out_ptr,
    sums_ptr,
    common_ptr,
    to_ptr,
    grad_strides,
    query_strides,
    key_strides,
    value_strides,
    out_strides,
    to_strides,
    sizes,
    scale,
    STRIDE: tl.constexpr,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    REFLECTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Computes the gradient of a tile of queries, and what the gradients of its logits share."""
    heads, depth, height, width, out_height, out_width = sizes
    reach: tl.constexpr = DILATION * (KERNEL // 2)
    image, head, top, left = _tile(out_height, out_width, heads, ROWS, COLUMNS, INDEX)
    place = tl.arange(0, ROWS * COLUMNS)
    row = top + place // COLUMNS
    column = left + place % COLUMNS
    exists = (row < out_height) & (column < out_width)
    query = _load(query_ptr, query_strides, image, head, row, column, exists, depth, DEPTH, INDEX)
    grad = _load(grad_ptr, grad_strides, image, head, row, column, exists, depth, DEPTH, INDEX)
    out = _load(out_ptr, out_strides, image, head, row, column, exists, depth, DEPTH, INDEX)
    plane = image * heads + head
    at = (plane * out_height + row) * out_width + column
    sums = tl.load(sums_ptr + at, mask=exists, other=0)
    common = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(common_ptr + at, common, mask=exists)

    first_y, rows = _span(top, ROWS, height, STRIDE, reach)
    first_x, columns = _span(left, COLUMNS, width, STRIDE, reach)
    result = tl.zeros((ROWS * COLUMNS, DEPTH), tl.float32)
    for start in range(0, rows * columns, KEYS):
        number = start + tl.arange(0, KEYS)
        y = first_y + number // columns
        x = first_x + number % columns
        there = number < rows * columns
        key = _load(key_ptr, key_strides, image, head, y, x, there, depth, DEPTH, INDEX)
        value = _load(value_ptr, value_strides, image, head, y, x, there, depth, DEPTH, INDEX)
        times = _pairs(
            row[:, None],
            column[:, None],
            y[None, :],
            x[None, :],
            height,
            width,
            STRIDE,
            KERNEL,
            DILATION,
            REFLECTS,
        )
        times = tl.where(there[None, :], times, 0)
        logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        logits = tl.where(times > 0, logits - sums[:, None], float("-inf"))
        attention = tl.exp2(logits) * times
        grads = tl.dot(grad, tl.trans(value), input_precision=PRECISION) - common[:, None]
        grads = (attention * grads).to(key.dtype)
        result += tl.dot(grads, key, input_precision=PRECISION)
    result = result * (scale * 0.6931471805599453)  # the scale holds log2(e)
    _store(result, to_ptr, to_strides, image, head, row, column, exists, depth, INDEX)


@triton.jit
def keys_kernel(
    grad_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    sums_ptr,
    common_ptr,
    to_key_ptr,
    to_value_ptr,
    grad_strides,
    query_strides,
    key_strides,
    value_strides,
    to_key_strides,
    to_value_strides,
    sizes,
    scale,
    STRIDE: tl.constexpr,
    KERNEL: tl.constexpr,
    DILATION: tl.constexpr,
    REFLECTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEYS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Computes the gradients of a tile of keys and of their values."""
    heads, depth, height, width, out_height, out_width = sizes
    reach: tl.constexpr = DILATION * (KERNEL // 2)
    image, head, top, left = _tile(height, width, heads, ROWS, COLUMNS, INDEX)
    place = tl.arange(0, ROWS * COLUMNS)
    y = top + place // COLUMNS
    x = left + place % COLUMNS
    there = (y < height) & (x < width)
    key = _load(key_ptr, key_strides, image, head, y, x, there, depth, DEPTH, INDEX)
    value = _load(value_ptr, value_strides, image, head, y, x, there, depth, DEPTH, INDEX)

    plane = image * heads + head
    first_row, rows = _query_span(top, ROWS, out_height, STRIDE, reach)
    first_column, columns = _query_span(left, COLUMNS, out_width, STRIDE, reach)
    to_key = tl.zeros((ROWS * COLUMNS, DEPTH), tl.float32)
    to_value = tl.zeros((ROWS * COLUMNS, DEPTH), tl.float32)
    for start in range(0, rows * columns, KEYS):
        number = start + tl.arange(0, KEYS)
        row = first_row + number // columns
        column = first_column + number % columns
        exists = number < rows * columns
        query = _load(
            query_ptr, query_strides, image, head, row, column, exists, depth, DEPTH, INDEX
        )
        grad = _load(grad_ptr, grad_strides, image, head, row, column, exists, depth, DEPTH, INDEX)
        at = (plane * out_height + row) * out_width + column
        sums = tl.load(sums_ptr + at, mask=exists, other=0)
        common = tl.load(common_ptr + at, mask=exists, other=0)
        times = _pairs(
            row[None, :],
            column[None, :],
            y[:, None],
            x[:, None],
            height,
            width,
            STRIDE,
            KERNEL,
            DILATION,
            REFLECTS,
        )
        times = tl.where(exists[None, :] & there[:, None], times, 0)
        logits = tl.dot(key, tl.trans(query), input_precision=PRECISION) * scale
        logits = tl.where(times > 0, logits - sums[None, :], float("-inf"))
        attention = tl.exp2(logits) * times
        to_value += tl.dot(attention.to(grad.dtype), grad, input_precision=PRECISION)
        grads = tl.dot(value, tl.trans(grad), input_precision=PRECISION) - common[None, :]
        grads = (attention * grads).to(query.dtype)
        to_key += tl.dot(grads, query, input_precision=PRECISION)
    to_key = to_key * (scale * 0.6931471805599453)
    _store(to_key, to_key_ptr, to_key_strides, image, head, y, x, there, depth, INDEX)
    _store(to_value, to_value_ptr, to_value_strides, image, head, y, x, there, depth, INDEX)
