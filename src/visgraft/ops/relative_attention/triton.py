"""Kernels of relative attention for GPUs: softmax while reading, without the logits of all pairs.

A program of the forward pass owns some queries and goes through the keys, one row of the map at a
time: then the logits of the offset are one number per query for the row, and a matrix for the
columns that stays in registers. The backward pass computes the attention again, once for the
gradients of queries and offsets and once, by a program per row of keys, for those of keys and
values. Logits and sums are float32.
"""

import triton
import triton.language as tl

__all__ = ["forward_kernel", "keys_kernel", "queries_kernel"]


@triton.jit
def _load(ptr, strides, head, row, column, exists, inside):
    """Returns a matrix of one head; zeros where a row or a column does not exist."""
    at = head * strides[0] + row[:, None] * strides[1] + column[None, :] * strides[2]
    return tl.load(ptr + at, mask=exists[:, None] & inside[None, :], other=0)


@triton.jit
def _store(values, ptr, strides, head, row, column, exists, inside):
    """Stores a matrix where ``_load`` reads it."""
    at = head * strides[0] + row[:, None] * strides[1] + column[None, :] * strides[2]
    mask = exists[:, None] & inside[None, :]
    tl.store(ptr + at, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _load_row(ptr, strides, head, query, row, exists):
    """Returns the logits of queries for the offset to one row of the map, in units of log(2)."""
    at = head * strides[0] + query * strides[1] + row * strides[2]
    return tl.load(ptr + at, mask=exists, other=0).to(tl.float32) * 1.4426950408889634


@triton.jit
def forward_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    by_row_ptr,
    by_column_ptr,
    out_ptr,
    sums_ptr,
    query_strides,
    key_strides,
    value_strides,
    by_row_strides,
    by_column_strides,
    out_strides,
    sizes,
    QUERIES: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    VALUE_DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Computes the output of some queries, and the base-2 logarithms of their sums."""
    height, width, depth, value_depth = sizes
    positions = height * width
    blocks = (positions + QUERIES - 1) // QUERIES
    program = tl.program_id(0).to(INDEX)
    head = program // blocks
    place = program % blocks * QUERIES + tl.arange(0, QUERIES)
    exists = place < positions
    channel = tl.arange(0, DEPTH).to(INDEX)
    value_channel = tl.arange(0, VALUE_DEPTH).to(INDEX)
    column = tl.arange(0, COLUMNS).to(INDEX)
    there = column < width
    query = _load(query_ptr, query_strides, head, place, channel, exists, channel < depth)
    by_column = _load(by_column_ptr, by_column_strides, head, place, column, exists, there)
    by_column = by_column.to(tl.float32) * 1.4426950408889634

    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    sums = tl.zeros((QUERIES,), tl.float32)
    out = tl.zeros((QUERIES, VALUE_DEPTH), tl.float32)
    for row in range(height):
        at = tl.full((), row, INDEX) * width + column
        key = _load(key_ptr, key_strides, head, at, channel, there, channel < depth)
        inside = value_channel < value_depth
        value = _load(value_ptr, value_strides, head, at, value_channel, there, inside)
        by_row = _load_row(by_row_ptr, by_row_strides, head, place, row, exists)
        logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * 1.4426950408889634
        logits = logits + by_row[:, None] + by_column
        logits = tl.where(there[None, :], logits, float("-inf"))
        higher = tl.maximum(highest, tl.max(logits, 1))
        attention = tl.exp2(logits - higher[:, None])
        shrink = tl.exp2(highest - higher)
        sums = sums * shrink + tl.sum(attention, 1)
        mixed = tl.dot(attention.to(value.dtype), value, input_precision=PRECISION)
        out = out * shrink[:, None] + mixed
        highest = higher
    out = out / sums[:, None]
    inside = value_channel < value_depth
    _store(out, out_ptr, out_strides, head, place, value_channel, exists, inside)
    tl.store(sums_ptr + head * positions + place, highest + tl.log2(sums), mask=exists)


@triton.jit
def queries_kernel(
    grad_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    by_row_ptr,
    by_column_ptr,
    out_ptr,
    to_query_ptr,
    to_row_ptr,
    to_column_ptr,
    sums_ptr,
    common_ptr,
    grad_strides,
    query_strides,
    key_strides,
    value_strides,
    by_row_strides,
    by_column_strides,
    out_strides,
    to_query_strides,
    to_row_strides,
    to_column_strides,
    sizes,
    QUERIES: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    VALUE_DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Computes the gradients of some queries and of all logits of their offsets."""
    height, width, depth, value_depth = sizes
    positions = height * width
    blocks = (positions + QUERIES - 1) // QUERIES
    program = tl.program_id(0).to(INDEX)
    head = program // blocks
    place = program % blocks * QUERIES + tl.arange(0, QUERIES)
    exists = place < positions
    channel = tl.arange(0, DEPTH).to(INDEX)
    value_channel = tl.arange(0, VALUE_DEPTH).to(INDEX)
    column = tl.arange(0, COLUMNS).to(INDEX)
    there = column < width
    query = _load(query_ptr, query_strides, head, place, channel, exists, channel < depth)
    by_column = _load(by_column_ptr, by_column_strides, head, place, column, exists, there)
    by_column = by_column.to(tl.float32) * 1.4426950408889634
    inside = value_channel < value_depth
    grad = _load(grad_ptr, grad_strides, head, place, value_channel, exists, inside)
    out = _load(out_ptr, out_strides, head, place, value_channel, exists, inside)
    common = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(common_ptr + head * positions + place, common, mask=exists)
    sums = tl.load(sums_ptr + head * positions + place, mask=exists, other=0)

    to_query = tl.zeros((QUERIES, DEPTH), tl.float32)
    to_column = tl.zeros((QUERIES, COLUMNS), tl.float32)
    for row in range(height):
        at = tl.full((), row, INDEX) * width + column
        key = _load(key_ptr, key_strides, head, at, channel, there, channel < depth)
        value = _load(value_ptr, value_strides, head, at, value_channel, there, inside)
        by_row = _load_row(by_row_ptr, by_row_strides, head, place, row, exists)
        logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * 1.4426950408889634
        logits = logits + by_row[:, None] + by_column - sums[:, None]
        attention = tl.exp2(tl.where(there[None, :], logits, float("-inf")))
        grads = tl.dot(grad, tl.trans(value), input_precision=PRECISION) - common[:, None]
        grads = attention * grads
        to_query += tl.dot(grads.to(key.dtype), key, input_precision=PRECISION)
        to_column += grads
        to_row = to_row_ptr + head * to_row_strides[0] + place * to_row_strides[1]
        to_row += row * to_row_strides[2]
        tl.store(to_row, tl.sum(grads, 1).to(to_row_ptr.dtype.element_ty), mask=exists)
    _store(to_query, to_query_ptr, to_query_strides, head, place, channel, exists, channel < depth)
    _store(to_column, to_column_ptr, to_column_strides, head, place, column, exists, there)


@triton.jit
def keys_kernel(
    grad_ptr,
    query_ptr,
    key_ptr,
    value_ptr,
    by_row_ptr,
    by_column_ptr,
    to_key_ptr,
    to_value_ptr,
    sums_ptr,
    common_ptr,
    grad_strides,
    query_strides,
    key_strides,
    value_strides,
    by_row_strides,
    by_column_strides,
    to_key_strides,
    to_value_strides,
    sizes,
    QUERIES: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    VALUE_DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Computes the gradients of the keys of one row of the map, and of their values."""
    height, width, depth, value_depth = sizes
    positions = height * width
    program = tl.program_id(0).to(INDEX)
    head = program // height
    row = program % height
    channel = tl.arange(0, DEPTH).to(INDEX)
    value_channel = tl.arange(0, VALUE_DEPTH).to(INDEX)
    inside = value_channel < value_depth
    column = tl.arange(0, COLUMNS).to(INDEX)
    there = column < width
    at = row * width + column
    key = _load(key_ptr, key_strides, head, at, channel, there, channel < depth)
    value = _load(value_ptr, value_strides, head, at, value_channel, there, inside)

    to_key = tl.zeros((COLUMNS, DEPTH), tl.float32)
    to_value = tl.zeros((COLUMNS, VALUE_DEPTH), tl.float32)
    for first in range(0, positions, QUERIES):
        place = tl.full((), first, INDEX) + tl.arange(0, QUERIES)
        exists = place < positions
        query = _load(query_ptr, query_strides, head, place, channel, exists, channel < depth)
        grad = _load(grad_ptr, grad_strides, head, place, value_channel, exists, inside)
        by_column = _load(by_column_ptr, by_column_strides, head, place, column, exists, there)
        by_column = by_column.to(tl.float32) * 1.4426950408889634
        by_row = _load_row(by_row_ptr, by_row_strides, head, place, row, exists)
        sums = tl.load(sums_ptr + head * positions + place, mask=exists, other=0)
        common = tl.load(common_ptr + head * positions + place, mask=exists, other=0)
        logits = tl.dot(key, tl.trans(query), input_precision=PRECISION) * 1.4426950408889634
        logits = logits + tl.trans(by_column) + (by_row - sums)[None, :]
        attention = tl.exp2(tl.where(exists[None, :], logits, float("-inf")))
        to_value += tl.dot(attention.to(grad.dtype), grad, input_precision=PRECISION)
        grads = tl.dot(value, tl.trans(grad), input_precision=PRECISION) - common[None, :]
        grads = (attention * grads).to(query.dtype)
        to_key += tl.dot(grads, query, input_precision=PRECISION)
    _store(to_key, to_key_ptr, to_key_strides, head, at, channel, there, channel < depth)
    _store(to_value, to_value_ptr, to_value_strides, head, at, value_channel, there, inside)
