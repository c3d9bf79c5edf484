"""Running a model on shapes alone: a copy with fake tensors, no data, no computation, no memory."""

import copy
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

__all__ = ["Example", "fake_copy", "fake_mode", "first_line", "like_of", "shapes_only"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Example:
    """What a model is called with: its arguments, or the shape of the only one.

    Attributes:
        shape: Of the only argument, where no arguments are given.
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    shape: tuple[int, ...] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, owner: str, example: Any) -> "Example":
        """Sorts what a caller passed: a tensor, a shape, a tuple or a dict of arguments.

        Raises:
            ValueError: It is none of these; ``owner`` complains.
        """
        if isinstance(example, Tensor):
            return cls(args=(example,))
        if isinstance(example, Mapping) and example:
            return cls(kwargs=dict(example))
        if isinstance(example, (tuple, list)) and example:
            if all(isinstance(n, int) and n >= 0 for n in example):
                return cls(shape=tuple(example))
            if isinstance(example, tuple) and not all(isinstance(n, int) for n in example):
                return cls(args=example)
        raise ValueError(
            f"{owner}: example must be a tensor, a shape such as (1, 3, 224, 224), a tuple of "
            f"positional or a dict of keyword arguments, got {example!r:.60}"
        )

    @property
    def only_shape(self) -> tuple[int, ...] | None:
        """The shape of the only argument; None if there are more, or it is no tensor."""
        if len(self.args) == 1 and not self.kwargs and isinstance(self.args[0], Tensor):
            return tuple(self.args[0].shape)
        return self.shape

    def fake(self, model: nn.Module, mode: FakeTensorMode) -> Arguments:
        """Returns the arguments as fake tensors on the device of ``model``."""
        device, dtype = like_of([model])
        if self.shape is not None:
            with mode:
                return (torch.empty(self.shape, device=device, dtype=dtype),), {}
        given = tree_map_only(Tensor, mode.from_tensor, (self.args, dict(self.kwargs)))
        with mode:
            return tree_map_only(Tensor, lambda t: t.to(device), given)

    def real(self, model: nn.Module) -> Arguments:
        """Returns the arguments on the device of ``model``; a shape becomes seeded noise."""
        device, dtype = like_of([model])
        if self.shape is not None:
            noise = torch.randn(self.shape, generator=torch.Generator().manual_seed(0))
            return (noise.to(device, dtype),), {}
        return tree_map_only(Tensor, lambda t: t.to(device), (self.args, dict(self.kwargs)))


def fake_mode() -> FakeTensorMode:
    """Returns a mode in which the copies of :func:`fake_copy` run."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def shapes_only(mode: FakeTensorMode) -> Iterator[None]:
    """Runs what is inside on shapes.

    The random state is kept, failures are not logged (the caller reports them), and attention is
    taken apart into operations that can be counted.
    """
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled, logger.disabled = logger.disabled, True
    had_fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(devices=()), torch.inference_mode(False), torch.no_grad(), mode:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(had_fastpath)
        logger.disabled = was_disabled


def fake_copy(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Returns a copy of ``module`` in eval mode whose tensors have a shape and no values.

    Its parameters need no gradient, which torch's module tracker trips over where one is handed
    from module to module.

    Hooks that are plain functions stay behind: they belong to the user, often record what they
    see, and must not see fake tensors. Hooks with a state of their own (bound methods, weight
    normalisation) are copied with it.
    """
    memo: dict[int, Any] = {}
    kept: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for part in module.modules():
        attributes = [v for v in vars(part).values() if isinstance(v, Tensor)]
        for tensor in chain(part._parameters.values(), part._buffers.values()):
            if tensor is not None and id(tensor) not in memo:
                memo[id(tensor)] = mode.from_tensor(tensor if tensor.is_leaf else tensor.detach())
        for tensor in attributes:
            if id(tensor) not in memo:
                memo[id(tensor)] = _fake_constant(tensor.detach(), mode)
        for hooks in (part._forward_hooks, part._forward_pre_hooks):
            memo[id(hooks)] = type(hooks)()
            with_state = {k: h for k, h in hooks.items() if not isinstance(h, FunctionType)}
            kept.append((memo[id(hooks)], with_state))
    clone = copy.deepcopy(module, memo)
    for hooks, with_state in kept:  # now that every module has its copy in the memo
        hooks.update(copy.deepcopy(with_state, memo))
    return clone.eval().requires_grad_(False)


def _fake_constant(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """Returns the fake of a plain attribute, which a model may read as a number where it is small.

    Detectors keep their strides so.
    """
    if tensor.device.type != "cpu" or tensor.numel() > 64:
        return mode.from_tensor(tensor)
    return mode.fake_tensor_converter.from_real_tensor(mode, tensor, make_constant=True)


def like_of(modules: Iterable[nn.Module]) -> tuple[torch.device, torch.dtype]:
    """Returns device and dtype of the first floating tensor in ``modules``, else the defaults."""
    for module in modules:
        for tensor in chain(module.parameters(), module.buffers()):
            if tensor.is_floating_point():
                return tensor.device, tensor.dtype
    return torch.get_default_device(), torch.get_default_dtype()


def first_line(error: BaseException) -> str:
    """Returns what an exception says, in one line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
