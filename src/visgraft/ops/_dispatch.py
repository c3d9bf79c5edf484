"""Choice of an implementation for one call of an operation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Implementation", "Op", "being_traced", "being_transformed", "forward_mode", "missing"]


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation.

    Attributes:
        name: The name a caller passes as ``backend=``.
        run: The function itself; same parameters as the reference.
        refusal: Says why it cannot take these arguments, or None when it can. It reads only
            device, dtype, shape and ``requires_grad``, so ``torch.compile`` can trace it.
    """

    name: str
    run: Callable[..., Any]
    refusal: Callable[..., str | None]


def missing(package: str) -> Implementation:
    """Stands in for the implementation that needs ``package``, which is not installed."""
    reason = f"{package} is not installed"

    def run(*_: Any) -> Any:
        raise ImportError(reason)

    return Implementation(package, run, lambda *_: reason)


def being_traced() -> bool:
    """Whether a compiler or an exporter is recording, and wants ordinary operators to read."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def forward_mode() -> bool:
    """Whether forward-mode differentiation is at work: operators of our own would drop tangents."""
    return torch.autograd.forward_ad._current_level >= 0


def being_transformed() -> bool:
    """Whether ``torch.func`` is, or forward mode: both see through PyTorch's own operators only."""
    functions = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return functions.peek_interpreter_stack() is not None or forward_mode()


# A graph holds the answer of the moment when it is compiled: compile within the transformation.
being_transformed._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


class Op:
    """An operation: a reference that takes every call, and faster implementations tried first."""

    def __init__(self, name: str, reference: Callable[..., Any], *faster: Implementation) -> None:
        self.name = name
        self._reference = Implementation("reference", reference, lambda *_: None)
        self.implementations = (*faster, self._reference)

    def __call__(self, *args: Any, backend: str | None = None) -> Any:
        """Runs the named implementation, or the first one that does not refuse the arguments.

        Raises:
            ValueError: ``backend`` is unknown or refuses these arguments; the text says why.
        """
        if backend is None:
            return self._first(*args).run(*args)
        by_name = {i.name: i for i in self.implementations}
        if backend not in by_name:
            raise ValueError(f"{self.name} has no backend {backend!r}; it has {', '.join(by_name)}")
        reason = self._refusal(by_name[backend], *args)
        if reason is not None:
            raise ValueError(f"{self.name}: backend {backend!r} cannot run here: {reason}")
        return by_name[backend].run(*args)

    def explain(self, *args: Any) -> dict[str, str]:
        """Returns, in order of preference, 'ok' or the reason each implementation refuses."""
        return {i.name: self._refusal(i, *args) or "ok" for i in self.implementations}

    def _first(self, *args: Any) -> Implementation:
        if not being_transformed():
            for implementation in self.implementations:
                if implementation.refusal(*args) is None:
                    return implementation
        return self._reference

    def _refusal(self, implementation: Implementation, *args: Any) -> str | None:
        if implementation is not self._reference and being_transformed():
            return "torch.func or forward-mode differentiation is at work and needs the reference"
        return implementation.refusal(*args)
