"""Deformable convolution: each tap of the kernel reads the map at a place of its own.

The taps of a few images at a time are sampled into columns that stay in the cache, and multiplied
by the weights; the backward samples them again instead of keeping them. Native code samples, or
``grid_sample`` where that is not available: sizes are then padded to powers of two, where its
coordinates are exact. Either way whole offsets read whole pixels, to the last bit.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from visgraft.ops._dispatch import Implementation, Op, forward_mode
from visgraft.ops.deformable_convolution import native

__all__ = ["DEFORMABLE_CONVOLUTION", "deformable_convolution"]

_BLOCK = 1 << 20  # elements of the columns in a block, per CPU thread


def deformable_convolution(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """Convolves ``x`` with taps that are moved by ``offset`` and scaled by ``mask``.

    ``out[b, o, i, j]`` is the sum over the channels c of o's group and the taps t = (u, v) of
    ``weight[o, c, u, v] * mask[b, t, i, j] * x[b, c, y, x]``, where ``y = i * stride - padding + u
    * dilation + offset[b, 2 * t, i, j]``, the column likewise with ``2 * t + 1``, and the value
    between pixels is bilinear, with zeros outside the map. Offset groups share the channels among
    them in equal parts, each with offsets and a mask of its own. Positions are computed in float32
    or wider whatever the dtype; double backward is not supported.

    Args:
        x: ``(B, C, H, W)``.
        offset: ``(B, G * K * 2, Ho, Wo)`` with K taps and G offset groups.
        weight: ``(O, C / groups, kh, kw)``, dtype of ``x``.
        mask: ``(B, G * K, Ho, Wo)``; None for ones.
        stride: Vertical and horizontal.
        padding: Vertical and horizontal.
        dilation: Vertical and horizontal.

    Returns:
        ``(B, O, Ho, Wo)``, dtype of ``x``.

    Raises:
        ValueError: The shapes do not belong together.
        NotImplementedError: Forward-mode differentiation is at work.

    Example:
        >>> x, weight = torch.arange(6.0).reshape(1, 1, 2, 3), torch.ones(1, 1, 1, 1)
        >>> half_a_pixel_right = torch.tensor([0.0, 0.5]).reshape(1, 2, 1, 1).expand(1, 2, 2, 3)
        >>> deformable_convolution(x, half_a_pixel_right, weight)[0, 0]
        tensor([[0.5000, 1.5000, 1.0000],
                [3.5000, 4.5000, 2.5000]])
    """
    call = _Call(tuple(stride), tuple(padding), tuple(dilation))
    _check(x, offset, weight, mask, call)
    if forward_mode():
        raise NotImplementedError(
            "deformable_convolution: forward-mode differentiation is not supported; use backward()"
        )
    return _convolve(x, offset, weight, mask, *call)


class _Call(NamedTuple):
    """The numbers of one call, each as (vertical, horizontal)."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]

    def out_size(self, x: Tensor, weight: Tensor) -> tuple[int, ...]:
        """Returns height and width of the output."""
        sizes = zip(x.shape[2:], weight.shape[2:], *self, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)


def _check(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, call: _Call) -> None:
    owner = "deformable_convolution"
    if x.ndim != 4 or weight.ndim != 4:
        got = f"{tuple(x.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"{owner}: x and weight must have 4 dimensions, got {got}")
    (b, c), (o, per_group, kh, kw) = x.shape[:2], weight.shape
    if c % per_group or o % (c // per_group):
        raise ValueError(
            f"{owner}: weight {tuple(weight.shape)} does not divide {c} channels into groups"
        )
    size, taps = call.out_size(x, weight), kh * kw
    if offset.ndim != 4 or offset.shape[0] != b or offset.shape[2:] != size:
        expected = f"({b}, G * {2 * taps}, {', '.join(map(str, size))})"
        raise ValueError(f"{owner}: offset must be {expected}, got {tuple(offset.shape)}")
    groups = offset.shape[1] // (2 * taps)
    if groups < 1 or offset.shape[1] % (2 * taps) or c % groups:
        raise ValueError(
            f"{owner}: offset must have G * {2 * taps} channels with G a divisor of {c}, got "
            f"{offset.shape[1]}"
        )
    if mask is not None and mask.shape != (b, groups * taps, *size):
        expected = (b, groups * taps, *size)
        raise ValueError(f"{owner}: mask must be {expected}, got {tuple(mask.shape)}")


class _Sampler:
    """Samples the columns of a block of images, and differentiates that."""

    def __init__(self, x: Tensor, offset: Tensor, weight: Tensor, call: _Call) -> None:
        self.size = x.shape[2:]
        self.wide = torch.promote_types(x.dtype, torch.float32)
        self.taps = weight.shape[2] * weight.shape[3]
        self.groups = offset.shape[1] // (2 * self.taps)
        self.out_size = offset.shape[2:]
        self.padded = [1 << (n - 1).bit_length() for n in self.size]
        places = []
        for axis, (out, kernel) in enumerate(zip(self.out_size, weight.shape[2:], strict=True)):
            stride, padding, dilation = (numbers[axis] for numbers in call)
            tap = torch.arange(kernel, device=x.device, dtype=self.wide) * dilation - padding
            step = torch.arange(out, device=x.device, dtype=self.wide) * stride
            places.append(tap[:, None] + step)  # (kernel, out)
        rows, columns = places
        rows = rows[:, None, :, None].expand(-1, weight.shape[3], -1, -1).flatten(0, 1)
        columns = columns[None, :, None].expand(weight.shape[2], -1, -1, -1).flatten(0, 1)
        self.places = columns, rows  # (K, 1, Wo) and (K, Ho, 1)

    def grid(self, offset: Tensor) -> Tensor:
        """Returns the coordinates of ``grid_sample``, which has the column first."""
        moved = offset.to(self.wide).unflatten(1, (self.groups, self.taps, 2)).flatten(0, 1)
        height, width = self.padded
        grid = moved.new_empty(moved.shape[0], self.taps, *self.out_size, 2)
        for axis, (size, place) in enumerate(zip((width, height), self.places, strict=True)):
            torch.add(moved[:, :, 1 - axis], place, out=grid[..., axis])
            grid[..., axis].mul_(2 / size).add_(1 / size - 1)
        return grid.flatten(1, 2)  # (n * G, K * Ho, Wo, 2)

    def source(self, x: Tensor) -> Tensor:
        """Returns the maps of each offset group, padded."""
        (h, w), (height, width) = self.size, self.padded
        maps = x.to(self.wide).unflatten(1, (self.groups, -1)).flatten(0, 1)
        if (h, w) == (height, width):
            return maps
        return functional.pad(maps, (0, width - w, 0, height - h))

    def sample(self, source: Tensor, grid: Tensor) -> Tensor:
        """Returns the values ``(n, G, C / G, K, Ho * Wo)``."""
        values = torch.grid_sampler_2d(source, grid, 0, 0, False)  # bilinear, zeros outside
        return values.view(-1, self.groups, source.shape[1], self.taps, self.out_size.numel())

    def by_group(self, mask: Tensor) -> Tensor:
        """Returns the mask in the shape of the values, with one channel."""
        return mask.to(self.wide).reshape(-1, self.groups, 1, self.taps, self.out_size.numel())


def _convolve_eagerly(
    x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, call: _Call
) -> Tensor:
    sampler = _Sampler(x, offset, weight, call)
    by_group = _weight_by_group(x, weight)
    out = x.new_empty(_out_shape(x, weight, call))
    for block in _blocks(x, offset, sampler.taps):
        values = sampler.sample(sampler.source(x[block]), sampler.grid(offset[block]))
        if mask is not None:
            values *= sampler.by_group(mask[block])
        columns = values.to(x.dtype).view(-1, by_group.shape[0], by_group.shape[2], values.shape[4])
        out[block] = (by_group @ columns).view(-1, *out.shape[1:])
    return out


def _convolve_natively(
    x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, call: _Call
) -> Tensor:
    by_group = _weight_by_group(x, weight, tap_first=True)
    out = x.new_empty(_out_shape(x, weight, call))
    for block in _blocks(x, offset, weight.shape[2] * weight.shape[3]):
        part = None if mask is None else mask[block]
        columns = native.Sampler(x[block], offset[block], weight, part, call).sample()
        products = out[block].flatten(2).unflatten(1, by_group.shape[:2])
        for image, group in product(*map(range, columns.shape[:2])):  # twice as fast as one matmul
            torch.mm(by_group[group], columns[image, group].T, out=products[image, group])
    return out


def _native_refusal(
    x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, _: _Call
) -> str | None:
    return native.refusal(x, offset, weight, mask)


DEFORMABLE_CONVOLUTION = Op(
    "deformable_convolution",
    _convolve_eagerly,
    Implementation("native", _convolve_natively, _native_refusal),
)


@torch.library.custom_op("visgraft::deformable_convolution", mutates_args=())
def _convolve(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    return DEFORMABLE_CONVOLUTION(x, offset, weight, mask, _Call(stride, padding, dilation))


@torch.library.custom_op("visgraft::deformable_convolution_backward", mutates_args=())
def _differentiate(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    need_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = _Call(stride, padding, dilation)
    if native.refusal(x, offset, weight, mask) is None:
        return _differentiate_natively(grad, x, offset, weight, mask, call, need_x)
    sampler = _Sampler(x, offset, weight, call)
    by_group = _weight_by_group(x, weight)
    grad_x = x.new_empty(x.shape if need_x else 0)
    grad_offset = torch.empty_like(offset, memory_format=torch.contiguous_format)
    grad_weight = by_group.new_zeros(by_group.shape, dtype=sampler.wide)
    grad_mask = x.new_empty(0) if mask is None else mask.new_empty(mask.shape)
    (h, w), (height, width) = sampler.size, sampler.padded
    to_pixels = x.new_tensor([2 / height, 2 / width], dtype=sampler.wide).view(1, 1, 2, 1, 1)
    for block in _blocks(x, offset, sampler.taps):
        source, grid = sampler.source(x[block]), sampler.grid(offset[block])
        values = sampler.sample(source, grid)
        upstream = (
            grad[block]
            .to(x.dtype)
            .reshape(-1, by_group.shape[0], by_group.shape[1], values.shape[4])
        )
        grads = (by_group.mT @ upstream).to(sampler.wide).view(values.shape)
        if mask is not None:
            scale = sampler.by_group(mask[block])
            grad_mask[block] = (grads * values).sum(2).view(-1, *grad_mask.shape[1:])
            values *= scale
            grads *= scale
        columns = values.to(x.dtype).view(-1, by_group.shape[0], by_group.shape[2], values.shape[4])
        grad_weight += (upstream @ columns.mT).sum(0)
        grads = grads.view(*source.shape[:2], *grid.shape[1:3])
        from_source, from_grid = torch.ops.aten.grid_sampler_2d_backward(
            grads, source, grid, 0, 0, False, (need_x, True)
        )
        if need_x:
            grad_x[block] = from_source[..., :h, :w].reshape(-1, *x.shape[1:])
        moved = from_grid.view(-1, sampler.taps, *sampler.out_size, 2).flip(-1).movedim(-1, 2)
        grad_offset[block] = (moved * to_pixels).reshape(-1, *offset.shape[1:])
    return grad_x, grad_offset, grad_weight.view(weight.shape).to(weight.dtype), grad_mask


def _differentiate_natively(
    grad: Tensor,
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    call: _Call,
    need_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    by_group = _weight_by_group(x, weight, tap_first=True)
    grad_x = x.new_empty(x.shape if need_x else 0)
    grad_offset = torch.empty_like(offset, memory_format=torch.contiguous_format)
    grad_weight = by_group.new_zeros(by_group.shape, dtype=torch.float32)
    grad_mask = x.new_empty(0) if mask is None else mask.new_empty(mask.shape)
    for block in _blocks(x, offset, weight.shape[2] * weight.shape[3]):
        part = None if mask is None else mask[block]
        sampler = native.Sampler(x[block], offset[block], weight, part, call)
        upstream = grad[block].to(x.dtype).flatten(2).unflatten(1, by_group.shape[:2])
        results = sampler.differentiate(upstream.mT @ by_group, need_x)
        columns, from_map, grad_offset[block], from_mask = results
        grad_weight += (upstream @ columns).sum(0)
        if from_map is not None:
            grad_x[block] = from_map
        if from_mask is not None:
            grad_mask[block] = from_mask
    taps = weight.shape[2] * weight.shape[3]
    grad_weight = grad_weight.unflatten(2, (taps, -1)).transpose(2, 3).reshape(weight.shape)
    return grad_x, grad_offset, grad_weight.to(weight.dtype), grad_mask


def _weight_by_group(x: Tensor, weight: Tensor, *, tap_first: bool = False) -> Tensor:
    """Returns ``(groups, O / groups, C / groups * K)``, or ``K * C / groups`` at the end."""
    groups = x.shape[1] // weight.shape[1]
    weight = weight.movedim(1, -1) if tap_first else weight
    return weight.reshape(groups, -1, weight[0].numel())


def _out_shape(x: Tensor, weight: Tensor, call: _Call) -> tuple[int, ...]:
    return (x.shape[0], weight.shape[0], *call.out_size(x, weight))


def _blocks(x: Tensor, offset: Tensor, taps: int) -> Iterator[slice]:
    """Cuts the batch into blocks of images; a GPU takes all at once."""
    step = max(1, x.shape[0])
    if x.device.type == "cpu":
        columns = x.shape[1] * taps * offset.shape[2:].numel()
        step = torch.get_num_threads() * max(1, _BLOCK // columns)  # sampling is parallel in images
    for first in range(0, x.shape[0], step):
        yield slice(first, first + step)


@_convolve.register_fake
def _(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, *call: Any) -> Tensor:  # noqa: ARG001
    return x.new_empty(_out_shape(x, weight, _Call(*call)))


@_differentiate.register_fake
def _(
    grad: Tensor,  # noqa: ARG001
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    *call: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_mask = x.new_empty(0) if mask is None else mask.new_empty(mask.shape)
    grad_x = x.new_empty(x.shape if call[3] else 0)
    return grad_x, offset.new_empty(offset.shape), weight.new_empty(weight.shape), grad_mask


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:4])
    ctx.call = inputs[4:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _differentiate(grad, *ctx.saved_tensors, *ctx.call, ctx.needs_input_grad[0])
    needed = zip(grads, ctx.needs_input_grad, strict=False)
    return *(grad if need else None for grad, need in needed), None, None, None


_convolve.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.visgraft.deformable_convolution)
def _flops(x: torch.Size, offset: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """Two per multiply-add of the convolution; the sampling is not counted."""
    return 2 * x[0] * math.prod(weight) * math.prod(offset[2:])


@register_flop_formula(torch.ops.visgraft.deformable_convolution_backward)
def _backward_flops(_: torch.Size, *call: Any, **__: Any) -> int:
    return 2 * _flops(*call)
