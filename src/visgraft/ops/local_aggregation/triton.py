"""Kernels of local aggregation for GPUs.

A program owns a run of positions, over as many planes as it takes to fill it, and all channels that
share the weights there: each weight is read once and used for all of them. Maps are read where
they lie, under masks; nothing is padded or copied, whatever the strides. Sums are float32.
"""

import triton
import triton.language as tl

__all__ = ["backward_kernel", "forward_kernel"]


@triton.jit
def _place(offsets, heads, groups, size, CHANNELS_LAST: tl.constexpr):
    """Returns image, head, group and position in the order in which the memory holds them."""
    if CHANNELS_LAST:
        group = offsets % groups
        head = offsets // groups % heads
        position = offsets // groups // heads % size
        image = offsets // groups // heads // size
    else:
        position = offsets % size
        group = offsets // size % groups
        head = offsets // size // groups % heads
        image = offsets // size // groups // heads
    return image, head, group, position


@triton.jit
def _spatial(row, column, position, strides, FLAT: tl.constexpr):
    """Returns the offsets of positions; in a flat map they are known to be contiguous."""
    if FLAT:
        return position * strides[len(strides) - 1]
    return row * strides[len(strides) - 2] + column * strides[len(strides) - 1]


@triton.jit
def forward_kernel(
    x_ptr,
    weight_ptr,
    out_ptr,
    x_strides,
    weight_strides,
    out_strides,
    total,
    sizes,
    GROUPS: tl.constexpr,
    CALL: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    JOINED: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Sums each neighbourhood, for the channels that share its weights."""
    heads, share, height, width, out_height, out_width = sizes
    kernel_size: tl.constexpr = CALL[0]
    stride: tl.constexpr = CALL[1]
    padding: tl.constexpr = CALL[2]
    dilation: tl.constexpr = CALL[3]
    offsets = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < total
    size = out_height * out_width
    image, head, group, position = _place(offsets, heads, GROUPS, size, CHANNELS_LAST)
    row = position // out_width
    column = position % out_width
    member = tl.program_id(1).to(INDEX) * SHARE + tl.arange(0, SHARE)  # of those that share
    member = member[:, None]
    exists = member < share

    weight_at = image * weight_strides[0] + head * weight_strides[1] + group * weight_strides[2]
    weight_at += _spatial(row, column, position, weight_strides, FLAT)
    x_at = (image * x_strides[0] + group * x_strides[1])[None, :]
    x_at = x_at + member * (GROUPS * x_strides[1])
    sums = tl.zeros((SHARE, BLOCK), tl.float32)
    for u in range(kernel_size):
        y = row * stride + (u * dilation - padding)
        in_rows = inside & (y >= 0) & (y < height)
        for v in tl.static_range(kernel_size):
            x = column * stride + (v * dilation - padding)
            reads = in_rows & (x >= 0) & (x < width)
            tap = tl.full((), u * kernel_size + v, INDEX)
            at = weight_ptr + weight_at + tap * weight_strides[3]
            weight = tl.load(at, mask=reads, other=0).to(tl.float32)
            place = y * width + x
            if JOINED:
                place = position + ((u * dilation - padding) * width + v * dilation - padding)
            at = x_ptr + x_at + _spatial(y, x, place, x_strides, FLAT)[None, :]
            values = tl.load(at, mask=reads[None, :] & exists, other=0).to(tl.float32)
            sums += values * weight[None, :]

    channel = head * (GROUPS * share) + group
    out_at = image * out_strides[0] + channel * out_strides[1]
    out_at += _spatial(row, column, position, out_strides, FLAT)
    at = out_ptr + out_at[None, :] + member * (GROUPS * out_strides[1])
    tl.store(at, sums.to(out_ptr.dtype.element_ty), mask=inside[None, :] & exists)


@triton.jit
def _grad_weight(
    grad_ptr,
    x_ptr,
    to_ptr,
    grad_strides,
    x_strides,
    to_strides,
    offsets,
    inside,
    sizes,
    GROUPS: tl.constexpr,
    CALL: tl.constexpr,
    SHARE: tl.constexpr,
    ONE_PART: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    JOINED: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Sums, for each weight, over the channels that share it."""
    heads, share, height, width, out_height, out_width = sizes
    kernel_size: tl.constexpr = CALL[0]
    stride: tl.constexpr = CALL[1]
    padding: tl.constexpr = CALL[2]
    dilation: tl.constexpr = CALL[3]
    size = out_height * out_width
    image, head, group, position = _place(offsets, heads, GROUPS, size, CHANNELS_LAST)
    row = position // out_width
    column = position % out_width
    member = tl.arange(0, SHARE).to(INDEX)[:, None]
    x_at = (image * x_strides[0] + group * x_strides[1])[None, :]
    x_at = x_at + member * (GROUPS * x_strides[1])
    grad_at = image * grad_strides[0] + (head * (GROUPS * share) + group) * grad_strides[1]
    grad_at += _spatial(row, column, position, grad_strides, FLAT)
    grad_at = grad_at[None, :] + member * (GROUPS * grad_strides[1])
    to_at = image * to_strides[0] + head * to_strides[1] + group * to_strides[2]
    to_at += _spatial(row, column, position, to_strides, FLAT)
    if ONE_PART:
        exists = inside[None, :] & (member < share)
        grads = tl.load(grad_ptr + grad_at, mask=exists, other=0).to(tl.float32)
    for u in range(kernel_size):
        y = row * stride + (u * dilation - padding)
        in_rows = inside & (y >= 0) & (y < height)
        for v in tl.static_range(kernel_size):
            x = column * stride + (v * dilation - padding)
            reads = in_rows & (x >= 0) & (x < width)
            place = y * width + x
            if JOINED:
                place = position + ((u * dilation - padding) * width + v * dilation - padding)
            from_at = x_at + _spatial(y, x, place, x_strides, FLAT)[None, :]
            if ONE_PART:
                exists = reads[None, :] & (member < share)
                values = tl.load(x_ptr + from_at, mask=exists, other=0).to(tl.float32)
                products = values * grads
            else:
                products = tl.zeros((SHARE, BLOCK), tl.float32)
                for first in range(0, share, SHARE):
                    exists = reads[None, :] & (member + first < share)
                    step = first * GROUPS
                    part = grad_ptr + grad_at + step * grad_strides[1]
                    upstream = tl.load(part, mask=exists, other=0).to(tl.float32)
                    part = x_ptr + from_at + step * x_strides[1]
                    products += tl.load(part, mask=exists, other=0).to(tl.float32) * upstream
            tap = tl.full((), u * kernel_size + v, INDEX)
            by_weight = tl.sum(products, 0).to(to_ptr.dtype.element_ty)
            tl.store(to_ptr + to_at + tap * to_strides[3], by_weight, mask=inside)


@triton.jit
def _grad_x(
    grad_ptr,
    weight_ptr,
    to_ptr,
    grad_strides,
    weight_strides,
    to_strides,
    offsets,
    inside,
    sizes,
    GROUPS: tl.constexpr,
    CALL: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    JOINED: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Gathers, for each value, from the outputs that read it: the taps mirrored."""
    heads, share, height, width, out_height, out_width = sizes
    kernel_size: tl.constexpr = CALL[0]
    stride: tl.constexpr = CALL[1]
    padding: tl.constexpr = CALL[2]
    dilation: tl.constexpr = CALL[3]
    size = height * width
    image, _, group, position = _place(offsets, 1, GROUPS, size, CHANNELS_LAST)
    row = position // width
    column = position % width
    member = (tl.program_id(1).to(INDEX) * SHARE + tl.arange(0, SHARE))[:, None]
    exists = member < share
    weight_at = image * weight_strides[0] + group * weight_strides[2]
    grad_at = (image * grad_strides[0] + group * grad_strides[1])[None, :]
    grad_at = grad_at + member * (GROUPS * grad_strides[1])
    sums = tl.zeros((SHARE, BLOCK), tl.float32)
    for number in range(heads):
        head = tl.full((), number, INDEX)
        of_head = grad_ptr + head * (GROUPS * share) * grad_strides[1]
        for u in range(kernel_size):
            above = row - (u * dilation - padding)
            y = above // stride
            in_rows = inside & (above >= 0) & (above % stride == 0) & (y < out_height)
            for v in tl.static_range(kernel_size):
                left = column - (v * dilation - padding)
                x = left // stride
                reads = in_rows & (left >= 0) & (left % stride == 0) & (x < out_width)
                place = y * out_width + x
                if JOINED:
                    place = position - ((u * dilation - padding) * width + v * dilation - padding)
                tap = tl.full((), u * kernel_size + v, INDEX)
                at = weight_at + _spatial(y, x, place, weight_strides, FLAT)
                at += tap * weight_strides[3] + head * weight_strides[1]
                weight = tl.load(weight_ptr + at, mask=reads, other=0).to(tl.float32)
                at = of_head + grad_at + _spatial(y, x, place, grad_strides, FLAT)[None, :]
                upstream = tl.load(at, mask=reads[None, :] & exists, other=0).to(tl.float32)
                sums += upstream * weight[None, :]
    to_at = image * to_strides[0] + group * to_strides[1]
    to_at += _spatial(row, column, position, to_strides, FLAT)
    at = to_ptr + to_at[None, :] + member * (GROUPS * to_strides[1])
    tl.store(at, sums.to(to_ptr.dtype.element_ty), mask=inside[None, :] & exists)


@triton.jit
def backward_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    grad_x_ptr,
    grad_weight_ptr,
    grad_strides,
    x_strides,
    weight_strides,
    grad_x_strides,
    grad_weight_strides,
    total,
    sizes,
    GROUPS: tl.constexpr,
    CALL: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    FLAT: tl.constexpr,
    JOINED: tl.constexpr,
    INDEX: tl.constexpr,
    ONE_PART: tl.constexpr,
    NEED_X: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
):
    """Computes one gradient, or both, for the same positions, where these coincide."""
    offsets = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < total
    if NEED_WEIGHT:
        _grad_weight(
            grad_ptr,
            x_ptr,
            grad_weight_ptr,
            grad_strides,
            x_strides,
            grad_weight_strides,
            offsets,
            inside,
            sizes,
            GROUPS,
            CALL,
            SHARE,
            ONE_PART,
            BLOCK,
            CHANNELS_LAST,
            FLAT,
            JOINED,
            INDEX,
        )
    if NEED_X:
        _grad_x(
            grad_ptr,
            weight_ptr,
            grad_x_ptr,
            grad_strides,
            weight_strides,
            grad_x_strides,
            offsets,
            inside,
            sizes,
            GROUPS,
            CALL,
            SHARE,
            BLOCK,
            CHANNELS_LAST,
            FLAT,
            JOINED,
            INDEX,
        )
