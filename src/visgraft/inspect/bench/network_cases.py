"""Networks: the papers', those they change, each also fused, and with unfolded operations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from visgraft.inspect.bench.cases import STEPS, Case, CaseMaker, Form
from visgraft.inspect.bench.circulating_ops import unfolded_aggregation, unfolded_window_attention
from visgraft.inspect.cost import cost
from visgraft.inspect.fusion import fuse
from visgraft.ops._dispatch import Implementation, Op
from visgraft.ops.local_aggregation import LOCAL_AGGREGATION
from visgraft.ops.window_attention import WINDOW_ATTENTION
from visgraft.ops.window_attention.reference import window_attention_reference

__all__ = ["network_cases"]

CreateModel = Callable[[str], nn.Module]


@dataclass(frozen=True)
class _Compared:
    """A network and what it is held against."""

    name: str
    base: str
    batches: tuple[tuple[int, tuple[str, ...]], ...]
    others: tuple[str, ...] = ()
    unfolded: tuple[Op, Implementation] | None = None


def network_cases(
    create: CreateModel, device: torch.device, *, quick: bool = False
) -> Iterator[CaseMaker]:
    """Yields makers of the cases of all networks, in float32.

    Args:
        create: Makes a network of its name, with random weights.
        device: Where they compute.
        quick: Take the tiny networks, at 64 x 64 pixels.
    """
    large = device.type == "cuda"
    for compared in _QUICK if quick else _COMPARED:
        for batch, steps in compared.batches:
            shape = (
                batch * (8 if large and not quick else 1),
                3,
                *((64, 64) if quick else (224, 224)),
            )
            make = partial(_case, compared, shape, steps, create, device)
            yield CaseMaker(compared.name, shape, make)


def _case(
    compared: _Compared,
    shape: tuple[int, ...],
    steps: tuple[str, ...],
    create: CreateModel,
    device: torch.device,
) -> Case:
    forms: dict[str, Form] = {}
    for name in (compared.base, compared.name, *compared.others):
        torch.manual_seed(0)
        model = create(name)
        macs = cost(model, shape).macs
        forms[name] = Form(model.to(device), model, macs=macs)
        folded = fuse(model.eval(), (1, *shape[1:])).model
        forms[f"{name}, fused"] = Form(folded, folded, refusal=_training, same_as=name, macs=macs)
    if compared.unfolded is not None:
        op, implementation = compared.unfolded
        own = forms[compared.name]

        def unfolded(x: Tensor) -> Tensor:
            with _forced(op, implementation):
                return own.run(x)

        forms[f"{compared.name}, unfolded"] = Form(
            unfolded, own.module, same_as=compared.name, macs=own.macs
        )
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
    return Case(
        compared.name,
        shape,
        (x,),
        forms,
        compared.base,
        steps,
        with_inputs=False,
        ours=compared.name,
    )


def _training(x: Tensor) -> str | None:
    return "folded normalisation is for inference" if x.requires_grad else None


@contextmanager
def _forced(op: Op, implementation: Implementation) -> Iterator[None]:
    """Lets an operation compute with one implementation only."""
    had = op.implementations
    op.implementations = (implementation,)
    try:
        yield
    finally:
        op.implementations = had


def _aggregation(
    x: Tensor, weight: Tensor, kernel_size: int, stride: int, padding: int, dilation: int
) -> Tensor:
    if (kernel_size, stride, padding, dilation) != (3, 1, 1, 1):
        raise ValueError("bench: the unfolded aggregation is for 3 x 3 neighbourhoods")
    return unfolded_aggregation(x, weight[:, 0].unsqueeze(1))


def _windows(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int, stride: int, dilation: int
) -> Tensor:
    if (stride, dilation) == (1, 1) and min(key.shape[3:]) > kernel_size // 2:
        return unfolded_window_attention(query, key, value, kernel_size)
    return window_attention_reference(query, key, value, kernel_size, stride, dilation)


_UNFOLDED_COT = (LOCAL_AGGREGATION, Implementation("unfolded", _aggregation, lambda *_: None))
_UNFOLDED_ACMIX = (WINDOW_ATTENTION, Implementation("unfolded", _windows, lambda *_: None))
_INFERENCE, _BOTH = STEPS[:1], STEPS
_COMPARED = (
    _Compared("cotnet50", "resnet50", ((1, _INFERENCE), (8, _BOTH)), unfolded=_UNFOLDED_COT),
    _Compared(
        "resnet50_acmix",
        "resnet50",
        ((1, _BOTH), (2, _BOTH), (8, _BOTH)),
        unfolded=_UNFOLDED_ACMIX,
    ),
    _Compared("botnet50", "resnet50", ((1, _INFERENCE),)),
    _Compared("mobilenetv2_ca_100", "mobilenetv2_100", ((1, _INFERENCE), (8, _BOTH))),
)
_QUICK = (
    _Compared("test_cotnet", "test_resnet", ((2, _BOTH),), unfolded=_UNFOLDED_COT),
    _Compared("test_resnet_acmix", "test_resnet", ((2, _BOTH),), unfolded=_UNFOLDED_ACMIX),
    _Compared("test_mobilenetv2_ca", "test_resnet", ((1, _INFERENCE),)),
)
