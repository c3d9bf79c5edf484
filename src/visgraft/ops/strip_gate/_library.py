"""The functions in C, and how maps and strips lie in memory for them."""

from pathlib import Path

import torch
from torch import Tensor

from visgraft.ops._native import NativeLibrary, threads_for

__all__ = ["LIBRARY", "call_numbers", "in_order", "layout_refusal", "memory_format", "new_strip"]

LIBRARY = NativeLibrary("strip_gate", Path(__file__).with_name("cpu.c"))
_PER_VALUE = 4  # multiplications that a value counts for, when threads are counted


def layout_refusal(x: Tensor) -> str | None:
    """Says why the functions cannot read this map, or returns None."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return None
    return "needs a map that lies row by row in memory, or with the channels last"


def memory_format(x: Tensor) -> torch.memory_format:
    """Returns the order of a map that ``layout_refusal`` accepts."""
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def call_numbers(x: Tensor) -> tuple[int, ...]:
    """Returns what C calls `call_t`."""
    return (
        *x.shape,
        not x.is_contiguous(),
        x.dtype == torch.bfloat16,
        threads_for(_PER_VALUE * x.numel()),
    )


def in_order(x: Tensor, strip: Tensor) -> Tensor:
    """Returns the numbers of a strip in float32, in the order in which the map lies."""
    if not x.is_contiguous():
        strip = strip.permute(0, 2, 3, 1)
    return strip.float().contiguous()


def new_strip(x: Tensor, *size: int, dtype: torch.dtype) -> Tensor:
    """Returns an unfilled tensor ``(B, C, *size)`` that lies as the map does."""
    b, c = x.shape[:2]
    if x.is_contiguous():
        return x.new_empty((b, c, *size), dtype=dtype)
    return x.new_empty((b, *size, c), dtype=dtype).permute(0, 3, 1, 2)
