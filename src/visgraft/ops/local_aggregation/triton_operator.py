"""Local aggregation on GPUs as an operator of PyTorch, with its derivatives."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from visgraft.ops._dispatch import Implementation
from visgraft.ops._gpu import refuse_unless_on_gpu
from visgraft.ops._strides import is_channels_last, is_flat, needs_long_index
from visgraft.ops.local_aggregation.triton import backward_kernel, forward_kernel

__all__ = ["TRITON"]

_ELEMENTS = 2048  # channels times positions of a program
_FULL = 1 << 19  # positions, below which a program takes fewer to leave none of the GPU idle


def _options(
    x: Tensor, weight: Tensor, others: list[Tensor], call: tuple[int, ...]
) -> dict[str, Any]:
    """Returns what both launches have in common."""
    tensors = [x, weight, *others]
    flat = all(is_flat(t) for t in tensors)
    same_size = x.shape[2:] == weight.shape[4:]
    share = x.shape[1] // weight.shape[2]
    return {
        "sizes": (weight.shape[1], share, *x.shape[2:], *weight.shape[4:]),
        "GROUPS": weight.shape[2],
        "CALL": call,
        "enable_fp_fusion": True,
        "CHANNELS_LAST": is_channels_last(x),
        "FLAT": flat,
        "JOINED": flat and same_size and call[1] == 1,
        "INDEX": tl.int64 if needs_long_index(*tensors) else tl.int32,
    }


def _block(total: int, members: int) -> int:
    """Returns how many positions a program takes, for so many channels at each of them."""
    return _ELEMENTS // max(4, members) // (1 if total >= _FULL else 2)


def _launch_forward(x: Tensor, weight: Tensor, out: Tensor, call: tuple[int, ...]) -> None:
    """Fills ``out``; the numbers of the call are kernel size, stride, padding and dilation."""
    options = _options(x, weight, [out], call)
    share = x.shape[1] // weight.shape[2]
    members = min(8, triton.next_power_of_2(share))
    total = weight.numel() // weight.shape[3]
    block = _block(total, members)
    kernel: Any = forward_kernel
    kernel[(triton.cdiv(total, block), triton.cdiv(share, members))](
        x,
        weight,
        out,
        x.stride(),
        weight.stride(),
        out.stride(),
        total,
        **options,
        SHARE=members,
        BLOCK=block,
    )


def _launch_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    grad_x: Tensor | None,
    grad_weight: Tensor | None,
    call: tuple[int, ...],
) -> None:
    """Fills the gradients that are not None, in one launch where both have the same positions."""
    outputs = [t for t in (grad_x, grad_weight) if t is not None]
    options = _options(x, weight, [grad, *outputs], call)
    heads, groups = weight.shape[1:3]
    share = x.shape[1] // groups
    members = min(8, triton.next_power_of_2(share))
    kernel: Any = backward_kernel
    together = options["JOINED"] and heads == 1 and share <= members and len(outputs) == 2

    def launch(needs_x: bool, needs_weight: bool) -> None:
        size = x.shape[2:] if needs_x else weight.shape[4:]
        total = x.shape[0] * groups * size.numel() * (1 if needs_x else heads)
        block = _block(total, members)
        parts = triton.cdiv(share, members) if needs_x else 1
        to_x, to_weight = (x if t is None else t for t in (grad_x, grad_weight))
        kernel[(triton.cdiv(total, block), parts)](
            grad,
            x,
            weight,
            to_x,
            to_weight,
            grad.stride(),
            x.stride(),
            weight.stride(),
            to_x.stride(),
            to_weight.stride() if grad_weight is not None else weight.stride(),
            total,
            **options,
            SHARE=members,
            ONE_PART=share <= members,
            BLOCK=block,
            NEED_X=needs_x,
            NEED_WEIGHT=needs_weight,
        )

    if together:
        launch(needs_x=True, needs_weight=True)
        return
    if grad_x is not None:
        launch(needs_x=True, needs_weight=False)
    if grad_weight is not None:
        launch(needs_x=False, needs_weight=True)


def _new_out(x: Tensor, weight: Tensor) -> Tensor:
    """Returns an output in the memory format of ``x``."""
    shape = (x.shape[0], weight.shape[1] * x.shape[1], *weight.shape[4:])
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _new_grads(x: Tensor, weight: Tensor, need_x: bool, need_weight: bool) -> tuple[Tensor, Tensor]:
    """Returns gradients in the memory formats of their tensors; empty ones that nobody needs."""
    grads = torch.empty_like(x), torch.empty_like(weight)
    needed = need_x, need_weight
    pairs = zip(grads, needed, strict=True)
    grad_x, grad_weight = (g if needed else g.new_empty(0) for g, needed in pairs)
    return grad_x, grad_weight


@torch.library.custom_op("visgraft::local_aggregation_triton", mutates_args=())
def _aggregate(
    x: Tensor, weight: Tensor, kernel_size: int, stride: int, padding: int, dilation: int
) -> Tensor:
    out = _new_out(x, weight)
    if out.numel():
        with torch.cuda.device_of(x):
            _launch_forward(x, weight, out, (kernel_size, stride, padding, dilation))
    return out


@torch.library.custom_op("visgraft::local_aggregation_triton_backward", mutates_args=())
def _differentiate(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    kernel_size: int,
    stride: int,
    padding: int,
    dilation: int,
    need_x: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    grad_x, grad_weight = _new_grads(x, weight, need_x, need_weight)
    call = (kernel_size, stride, padding, dilation)
    if grad.numel():
        to_x, to_weight = grad_x if need_x else None, grad_weight if need_weight else None
        with torch.cuda.device_of(x):
            _launch_backward(grad, x, weight, to_x, to_weight, call)
    else:
        grad_weight.zero_()  # of no channels
    return grad_x, grad_weight


@_aggregate.register_fake
def _(x: Tensor, weight: Tensor, *_: int) -> Tensor:
    return _new_out(x, weight)


@_differentiate.register_fake
def _(_grad: Tensor, x: Tensor, weight: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
    return _new_grads(x, weight, *call[4:])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
    ctx.save_for_backward(*(i for i in inputs if isinstance(i, Tensor)))
    ctx.call = tuple(i for i in inputs if not isinstance(i, Tensor))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    need_x, need_weight = ctx.needs_input_grad[:2]
    grads = _differentiate(grad, *ctx.saved_tensors, *ctx.call, need_x, need_weight)
    return (grads[0] if need_x else None, grads[1] if need_weight else None, *[None] * 4)


def _double_backward(ctx: Any, along_x: Tensor, along_weight: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiates the backward, which is linear in each of its three tensors."""
    grad, x, weight = ctx.saved_tensors
    *call, need_x, need_weight = ctx.call
    along_x = along_x if need_x else torch.zeros_like(x)
    along_weight = along_weight if need_weight else torch.zeros_like(weight)
    along_grad = _aggregate(along_x, weight, *call) + _aggregate(x, along_weight, *call)
    return along_grad, *_differentiate(grad, along_x, along_weight, *call, True, True), *[None] * 6


_aggregate.register_autograd(_backward, setup_context=_keep)
_differentiate.register_autograd(_double_backward, setup_context=_keep)


@register_flop_formula(torch.ops.visgraft.local_aggregation_triton)
def _forward_flops(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * prod(weight) * x[1] // weight[2]


@register_flop_formula(torch.ops.visgraft.local_aggregation_triton_backward)
def _backward_flops(*call: Any, **__: Any) -> int:
    _, x, weight, *_, need_x, need_weight = call
    return (need_x + need_weight) * _forward_flops(x, weight)


def _refusal(x: Tensor, weight: Tensor, *_: int) -> str | None:
    return refuse_unless_on_gpu(x, weight)


TRITON = Implementation("triton", _aggregate, _refusal)
