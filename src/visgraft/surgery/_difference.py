"""How far the outputs of a model are from what it gave without its graft."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from visgraft._shapes import Example, like_of

__all__ = ["max_difference"]


def max_difference(
    model: nn.Module, example: Example, disabled: Callable[[], AbstractContextManager[None]]
) -> float:
    """Runs ``model`` in eval mode as it is and as ``disabled`` makes it; compares the outputs.

    Raises:
        ValueError: The model is on the meta device, where tensors have no values.
    """
    device, _ = like_of([model])
    if device.type == "meta":
        raise ValueError("max_difference: the model is on the meta device and computes no values")
    args, kwargs = example.real(model)
    with _evaluating(model), torch.no_grad():
        after = _outputs(model, args, kwargs, device)
        with disabled():
            before = _outputs(model, args, kwargs, device)
    return max((_distance(a, b) for a, b in zip(after, before, strict=True)), default=0.0)


def _outputs(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device
) -> list[Tensor]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        leaves = tree_leaves(model(*args, **kwargs))
    return [leaf.detach().clone() for leaf in leaves if isinstance(leaf, Tensor)]


def _distance(a: Tensor, b: Tensor) -> float:
    if a.numel() == 0 or torch.equal(a, b):
        return 0.0
    difference = (a.double() - b.double()).abs()
    return difference.masked_fill(a.isnan() & b.isnan(), 0).max().item()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
