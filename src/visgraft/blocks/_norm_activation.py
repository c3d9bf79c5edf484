"""A BatchNorm2d and the activation behind it, in one step where that computes the same."""

import torch
from torch import Tensor, nn

from visgraft.blocks._hooks import is_hooked
from visgraft.ops._dispatch import being_traced
from visgraft.ops.batch_norm_activation import ACTIVATIONS, BATCH_NORM_ACTIVATION

__all__ = ["normalised", "normalised_and_pooled"]

_LEAST = 1 << 18  # values in a map, below which the calls cost more than the passes they save


def normalised(norm: nn.Module, x: Tensor, activation: str) -> Tensor:
    """Returns the activated output of ``norm``; see ``normalised_and_pooled``."""
    done = _at_once(norm, x, activation)
    return ACTIVATIONS[activation](norm(x)) if done is None else done[0]


def normalised_and_pooled(norm: nn.Module, x: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Returns the activated output of ``norm`` and its mean over the positions.

    A ``BatchNorm2d`` that learns, and that nothing hooks or records, is not called: its work, the
    activation and the mean are done together, with the same values and running statistics.
    """
    done = _at_once(norm, x, activation)
    if done is not None:
        return done
    y = ACTIVATIONS[activation](norm(x))
    return y, y.mean((2, 3), keepdim=True)


def _at_once(norm: nn.Module, x: Tensor, activation: str) -> tuple[Tensor, Tensor] | None:
    """Does all in kernels of our own, or returns None where they cannot or would do less."""
    if being_traced() or not norm.training or type(norm) is not nn.BatchNorm2d or is_hooked(norm):
        return None
    mean, variance, steps = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if mean is None or variance is None or steps is None or norm.momentum is None:
        return None
    values = x.shape[0] * x.shape[2] * x.shape[3]
    if not norm.affine or values < 2 or x.numel() < _LEAST:  # of one value `norm` says that it is
        return None
    call = (x, norm.weight, norm.bias, norm.eps, activation)
    answers = BATCH_NORM_ACTIVATION.explain(*call)
    chosen = next(name for name, answer in answers.items() if answer == "ok")
    if chosen == "reference" or mean.dtype != torch.float32:
        return None
    y, pooled, batch_mean, batch_variance = BATCH_NORM_ACTIVATION(*call, backend=chosen)
    with torch.no_grad():
        mean.lerp_(batch_mean, norm.momentum)
        variance.lerp_(batch_variance * (values / (values - 1)), norm.momentum)
        steps.add_(1)
    return y, pooled
