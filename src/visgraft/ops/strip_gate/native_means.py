"""The means of rows and columns in C: one pass forward, and one backward."""

import torch
from torch import Tensor

from visgraft.ops._dispatch import Implementation, being_traced
from visgraft.ops._native import tensor_refusal, unwatched
from visgraft.ops.strip_gate._derivatives import gradient, handing_on, keep_map
from visgraft.ops.strip_gate._library import (
    LIBRARY,
    call_numbers,
    in_order,
    layout_refusal,
    new_strip,
)

__all__ = ["NATIVE"]


def _forward(x: Tensor) -> Tensor:
    strips = new_strip(x, x.shape[2] + x.shape[3], 1, dtype=torch.float32)
    LIBRARY.call("means", (x, strips), *call_numbers(x))
    return strips.to(x.dtype)


def _backward(grad: Tensor, height: int, width: int, channels_last: bool) -> Tensor:
    out = _new_map(grad, height, width, channels_last)
    _spread(grad, None, out)
    return out


def _spread(grad: Tensor, onto: Tensor | None, out: Tensor) -> None:
    """Writes to ``out`` the share of each value, plus ``onto``, which may be ``out`` itself."""
    LIBRARY.call("means_backward", (in_order(out, grad), onto, out), *call_numbers(out))


def _new_map(strips: Tensor, height: int, width: int, channels_last: bool) -> Tensor:
    order = torch.channels_last if channels_last else torch.contiguous_format
    size = (*strips.shape[:2], height, width)
    return torch.empty(size, dtype=strips.dtype, device=strips.device, memory_format=order)


_means = torch.library.custom_op("visgraft::strip_means_native", _forward, mutates_args=())
_differentiate = torch.library.custom_op(
    "visgraft::strip_means_native_backward", _backward, mutates_args=()
)


@_means.register_fake
def _(x: Tensor) -> Tensor:
    return new_strip(x, x.shape[2] + x.shape[3], 1, dtype=x.dtype)


@_differentiate.register_fake
def _(grad: Tensor, height: int, width: int, channels_last: bool) -> Tensor:
    return _new_map(grad, height, width, channels_last)


def _differentiate_fast(grad: Tensor, height: int, width: int, channels_last: bool) -> Tensor:
    run = _backward if unwatched(grad) else _differentiate
    return run(grad, height, width, channels_last)


_gradient = gradient(_differentiate_fast)
_means.register_autograd(_gradient, setup_context=keep_map)
_handing_on = handing_on(_forward, _gradient, _spread)


def _run(x: Tensor) -> tuple[Tensor, Tensor]:
    if not unwatched(x):
        return _means(x), x
    if torch.is_grad_enabled() and x.requires_grad:
        return _handing_on(x)
    return _forward(x), x


def _refusal(x: Tensor) -> str | None:
    if being_traced():
        return "a compiler or exporter is tracing and gets ordinary operators instead"
    return tensor_refusal(x) or layout_refusal(x) or LIBRARY.refusal()


NATIVE = Implementation("native", _run, _refusal)
