"""What a benchmark compares: forms of one computation, on the same tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

__all__ = ["STEPS", "Case", "CaseMaker", "Form", "bytes_moved", "step_call"]

STEPS = ("forward", "forward and backward")


@dataclass(frozen=True)
class Form:
    """One way to compute.

    Attributes:
        run: Takes the tensors of the case, returns one tensor.
        module: Whose mode follows the step and whose parameters get gradients; None for a
            function.
        refusal: Says why it cannot take these tensors, or None.
        same_as: Name of the form whose values it must give before anything is timed; None where
            the forms compute different functions.
        macs: Multiply-accumulate operations of a forward call; None where they are not counted.
        tensors: That it takes instead of those of the case; None for these.
    """

    run: Callable[..., Tensor]
    module: nn.Module | None = None
    refusal: Callable[..., str | None] = field(default=lambda *_: None)
    same_as: str | None = None
    macs: int | None = None
    tensors: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class Case:
    """Forms that belong side by side.

    Attributes:
        name: Of the operation, block or network.
        shape: That tells cases of one name apart.
        tensors: Handed to every form.
        forms: Name to form.
        baseline: The form that ratios refer to.
        steps: Those of ``STEPS`` that are measured.
        with_inputs: Whether the backward pass reaches the tensors, too.
        ours: The form that a user gets; None for the first.
    """

    name: str
    shape: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    forms: Mapping[str, Form]
    baseline: str
    steps: tuple[str, ...] = STEPS
    with_inputs: bool = True
    ours: str | None = None


@dataclass(frozen=True)
class CaseMaker:
    """A case that is made when it is called for.

    Attributes:
        name: Of the case.
        shape: Of the case.
        make: Returns the case.
    """

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Case]

    def __call__(self) -> Case:
        """Makes the case."""
        return self.make()

    @property
    def label(self) -> str:
        """Name and shape, such as ``cot 8 x 64 x 56 x 56``."""
        return f"{self.name} {' x '.join(map(str, self.shape))}"

    def is_meant(self, patterns: Sequence[str]) -> bool:
        """Whether a pattern fits the name or the label; without patterns every case is meant."""
        texts = (self.name, self.label)
        return not patterns or any(fnmatch(text, p) for text in texts for p in patterns)


def step_call(
    form: Form, tensors: tuple[Tensor, ...], step: str, *, with_inputs: bool = True
) -> Callable[[], list[Tensor]]:
    """Returns a function that takes one step and returns the output and the gradients.

    The gradient of the output is the same in every call; gradients of parameters come after
    those of the tensors and are not accumulated.
    """
    if form.module is not None:
        form.module.train(step != STEPS[0])
    if step == STEPS[0]:

        @torch.no_grad()
        def forward() -> list[Tensor]:
            return [form.run(*tensors)]

        return forward
    with torch.no_grad():
        out = form.run(*tensors)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        grad = torch.empty_like(out).copy_(grad)
    parameters = [] if form.module is None else list(form.module.parameters())
    inputs = [t.detach().requires_grad_(with_inputs) for t in tensors]

    def forward_and_backward() -> list[Tensor]:
        result = form.run(*inputs)
        wanted = [*(inputs if with_inputs else ()), *parameters]
        grads = torch.autograd.grad(result, wanted, grad, allow_unused=True)
        return [result.detach(), *(g for g in grads if g is not None)]

    return forward_and_backward


def bytes_moved(tensors: tuple[Tensor, ...], out: Tensor, step: str) -> int:
    """Returns the bytes that no implementation can avoid to read and write.

    Forward: the tensors and the output. Backward: the tensors and the gradient of the output are
    read, the gradients of the tensors written.
    """
    given, result = sum(t.nbytes for t in tensors), out.nbytes
    return given + result if step == STEPS[0] else 3 * given + 2 * result
