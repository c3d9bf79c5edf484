"""Operations: every implementation that takes the call, the circulating form, a convolution."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from visgraft.inspect.bench.cases import Case, CaseMaker, Form
from visgraft.inspect.bench.circulating_ops import (
    plain_relative_attention,
    sliced_space_to_depth,
    unfolded_aggregation,
    unfolded_window_attention,
)
from visgraft.ops import deformable_convolution, space_to_depth
from visgraft.ops._dispatch import Op
from visgraft.ops.local_aggregation import LOCAL_AGGREGATION
from visgraft.ops.relative_attention import RELATIVE_ATTENTION
from visgraft.ops.window_attention import WINDOW_ATTENTION

__all__ = ["op_cases"]

CPU_MAPS = ((8, 64, 56, 56), (8, 256, 14, 14), (4, 512, 7, 7), (2, 256, 40, 40))
CUDA_MAPS = ((256, 64, 56, 56), (256, 128, 28, 28), (256, 256, 14, 14), (256, 512, 7, 7))
CPU_ATTENTION = (
    (8, 512, 14, 14),
    (8, 512, 7, 7),
    (2, 256, 40, 40),
    (1, 256, 64, 64),
)
CUDA_ATTENTION = ((256, 512, 14, 14), (256, 512, 7, 7), (16, 256, 40, 40), (8, 256, 64, 64))
QUICK_MAPS = ((1, 32, 9, 9),)
HEADS, WINDOW = 4, 7


def op_cases(device: torch.device, *, quick: bool = False) -> Iterator[CaseMaker]:
    """Yields makers of the cases of all operations, in float32."""
    maps = QUICK_MAPS if quick else CUDA_MAPS if device.type == "cuda" else CPU_MAPS
    attention = QUICK_MAPS if quick else CUDA_ATTENTION if device.type == "cuda" else CPU_ATTENTION
    even = [(*shape[:2], *(n + n % 2 for n in shape[2:])) for shape in maps]
    for name, make, shapes in (
        ("local_aggregation", _aggregation, maps),
        ("window_attention", _windows, maps),
        ("relative_attention", _relative, attention),
        ("deformable_convolution", _deformed, maps),
        ("space_to_depth", _to_depth, even),
    ):
        for shape in shapes:
            yield CaseMaker(name, shape, partial(make, shape, device))


def _noise(*shape: int, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device)


def _implementations(op: Op, *numbers: Any) -> dict[str, Form]:
    """Returns one form for each implementation, that of our choice first."""

    def form(name: str) -> Form:
        def run(*tensors: Tensor) -> Tensor:
            return op(*tensors, *numbers, backend=name)

        def refusal(*tensors: Tensor) -> str | None:
            answer = op.explain(*tensors, *numbers)[name]
            return None if answer == "ok" else answer

        return Form(run, refusal=refusal, same_as="circulating")

    chosen = Form(lambda *tensors: op(*tensors, *numbers), same_as="circulating")
    return {"visgraft": chosen, **{i.name: form(i.name) for i in op.implementations}}


def _convolution(shape: tuple[int, ...], device: torch.device, which: int = 0) -> Form:
    """Returns a 3 x 3 convolution on as many channels, on the tensor of that place."""
    conv = nn.Conv2d(shape[1], shape[1], 3, padding=1, bias=False, device=device)

    def run(*tensors: Tensor) -> Tensor:
        x = tensors[which]
        return conv(x.flatten(1, x.ndim - 3))

    return Form(run, module=conv)


def _aggregation(shape: tuple[int, ...], device: torch.device) -> Case:
    b, c, h, w = shape
    tensors = (_noise(*shape, device=device), _noise(b, 1, c // 8, 9, h, w, device=device))

    def circulating(x: Tensor, weight: Tensor) -> Tensor:
        return unfolded_aggregation(x, weight[:, 0].unsqueeze(1))

    forms = {
        "circulating": Form(circulating),
        **_implementations(LOCAL_AGGREGATION, 3, 1, 1, 1),
        "conv3x3": _convolution(shape, device),
    }
    return Case("local_aggregation", shape, tensors, forms, "circulating", ours="visgraft")


def _windows(shape: tuple[int, ...], device: torch.device) -> Case:
    b, c, h, w = shape
    tensors = tuple(_noise(b, HEADS, c // HEADS, h, w, device=device).roll(i, -1) for i in range(3))

    def refusal(query: Tensor, *_: Tensor) -> str | None:
        fits = min(query.shape[3:]) > WINDOW // 2
        return None if fits else "the map is too small to be reflected"

    def circulating(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return unfolded_window_attention(query, key, value, WINDOW)

    forms = {
        "circulating": Form(circulating, refusal=refusal),
        **_implementations(WINDOW_ATTENTION, WINDOW, 1, 1),
        "conv3x3": _convolution(shape, device),
    }
    return Case("window_attention", shape, tensors, forms, "circulating", ours="visgraft")


def _relative(shape: tuple[int, ...], device: torch.device) -> Case:
    b, c, h, w = shape
    depth = c // HEADS
    qkv = [_noise(b, HEADS, depth, h, w, device=device).roll(i, -1) for i in range(3)]
    tables = [_noise(2 * n - 1, depth, device=device) * depth**-0.5 for n in (h, w)]
    forms = {
        "circulating": Form(plain_relative_attention),
        **_implementations(RELATIVE_ATTENTION),
        "conv3x3": _convolution(shape, device),
    }
    if h * w > 400:
        forms.pop("reference")  # holds a vector for each pair of positions
    return Case("relative_attention", shape, (*qkv, *tables), forms, "circulating", ours="visgraft")


def _deformed(shape: tuple[int, ...], device: torch.device) -> Case:
    b, c, h, w = shape
    x, offset = _noise(*shape, device=device), _noise(b, 18, h, w, device=device)
    weight = _noise(c, c, 3, 3, device=device) / c
    mask = _noise(b, 9, h, w, device=device).sigmoid()

    def ours(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        return deformable_convolution(x, offset, weight, mask, padding=(1, 1))

    def torchvision(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        from torchvision.ops import deform_conv2d

        return deform_conv2d(x, offset, weight, padding=(1, 1), mask=mask)

    def convolution(x: Tensor, offset: Tensor, weight: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG001
        return functional.conv2d(x, weight, padding=1)

    forms = {
        "torchvision": Form(torchvision),
        "visgraft": Form(ours, same_as="torchvision"),
        "conv3x3": Form(convolution),
    }
    tensors = (x, offset, weight, mask)
    return Case("deformable_convolution", shape, tensors, forms, "torchvision", ours="visgraft")


def _to_depth(shape: tuple[int, ...], device: torch.device) -> Case:
    forms = {
        "circulating": Form(sliced_space_to_depth),
        "visgraft": Form(space_to_depth, same_as="circulating"),
    }
    tensors = (_noise(*shape, device=device),)
    return Case("space_to_depth", shape, tensors, forms, "circulating", ours="visgraft")
