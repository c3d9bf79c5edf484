"""Parameters and multiply-accumulate operations of a model, by module."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from visgraft._shapes import Example, fake_copy, fake_mode, first_line, shapes_only

__all__ = ["Cost", "cost"]


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        params: Parameters, shared ones counted once.
        macs: Multiply-accumulate operations of one call on the example.
        by_module: Path of each module to its ``(params, macs)``, those inside it included; a module
            that is called several times counts each call, and stands under its first name.
        trainable: Parameters that require a gradient.
        shape: Of the example, where it is one tensor.
    """

    params: int
    macs: int
    by_module: Mapping[str, tuple[int, int]] = field(repr=False)
    trainable: int = 0
    shape: tuple[int, ...] | None = None

    def table(self, depth: int | None = 1) -> str:
        """Returns a text table of the modules down to ``depth`` dots in the path; None: all."""
        chosen = [p for p in self.by_module if p and (depth is None or p.count(".") < depth)]
        rows = [(p, *self.by_module[p]) for p in chosen]
        total = "total" if self.shape is None else f"total, on {' x '.join(map(str, self.shape))}"
        lines = [("module", "parameters", "MACs", "% of MACs")]
        lines += [(p, f"{n:,}", f"{m:,}", self._percent(m)) for p, n, m in rows]
        lines.append((total, f"{self.params:,}", f"{self.macs:,}", self._percent(self.macs)))
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        text = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in lines
        ]
        rule = "-" * len(text[0])
        return "\n".join([text[0], rule, *text[1:-1], rule, text[-1]])

    def __str__(self) -> str:
        return self.table()

    def _percent(self, macs: int) -> str:
        return f"{100 * macs / self.macs:.1f}" if self.macs else "-"


def cost(model: nn.Module, example: Any) -> Cost:
    """Counts parameters and multiply-accumulate operations, without computing anything.

    A copy of the model is run in eval mode on shapes alone. Convolutions, matrix products,
    attention products, the operations of this package and torchvision's deformable convolution
    count; additions, activations, normalisation, pooling and the sampling of deformable
    convolutions do not. One multiplication with its addition is one operation, so the numbers are
    half of what counters of floating-point operations give. Window attention counts by its windows,
    also where there is no native form and whole tiles are computed; maps of at most 64 positions
    count whole.

    Args:
        model: Any module; it is not touched.
        example: A tensor, the shape of one, a tuple of positional or a dict of keyword arguments.

    Raises:
        ValueError: ``example`` is none of these, or the model does not run on it.

    Example:
        >>> cost(nn.Conv2d(3, 8, 3, padding=1, bias=False), (1, 3, 10, 10)).macs
        21600
    """
    inputs = Example.of("cost", example)
    mode = fake_mode()
    flops = FlopCounterMode(display=False, custom_mapping=_formulas_of_others())
    macs: dict[str, int] = {}
    try:
        clone = fake_copy(model, mode)
        for path, module in clone.named_modules():
            _count_calls(path, module, flops, macs)
        args, kwargs = inputs.fake(model, mode)
        with shapes_only(mode), flops:
            clone(*args, **kwargs)
    except Exception as error:
        raise ValueError(
            f"cost: {type(model).__name__} does not run on the example ({type(error).__name__}: "
            f"{first_line(error)}); pass a tensor or a shape that it runs on"
        ) from error
    by_module = {
        path: (sum(p.numel() for p in module.parameters()), macs[path])
        for path, module in model.named_modules()
    }
    return Cost(
        params=by_module[""][0],
        macs=by_module[""][1],
        by_module=MappingProxyType(by_module),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        shape=inputs.only_shape,
    )


def _formulas_of_others() -> dict[Any, Callable[..., int]]:
    """Returns formulas for operators of packages that are imported and that torch cannot count."""
    if not hasattr(torch.ops.torchvision, "deform_conv2d"):
        return {}
    return {torch.ops.torchvision.deform_conv2d: _deformable_convolution}


def _deformable_convolution(
    x: torch.Size, weight: torch.Size, offset: torch.Size, *_: Any, **__: Any
) -> int:
    """Two per multiply-add of the convolution, as for the operation of this package."""
    return 2 * x[0] * math.prod(weight) * math.prod(offset[2:])


def _count_calls(
    path: str, module: nn.Module, flops: FlopCounterMode, macs: dict[str, int]
) -> None:
    """Adds up, under ``path``, what is counted between entry and return of each call."""
    macs[path] = 0
    entered: list[int] = []

    def enter(*_: Any) -> None:
        entered.append(flops.get_total_flops())

    def leave(*_: Any) -> None:
        macs[path] += (flops.get_total_flops() - entered.pop()) // 2

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)
