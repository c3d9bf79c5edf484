"""What every native form has to show: values and gradients, whatever is left in memory."""

import contextlib

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from visgraft.ops._native import _library

__all__ = ["check_equal_bits", "close", "gradients", "in_float64", "needs", "poisoned", "threads"]

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2}  # of the largest value


def needs(implementation, *args):
    """Skips where there is no compiler or native forms are off; any other refusal is a failure."""
    reason = implementation.refusal(*args)
    if reason is not None and reason.startswith(("no C compiler was found", "VISGRAFT_NATIVE=0")):
        pytest.skip(reason)
    assert reason is None


@contextlib.contextmanager
def poisoned():
    """Fills what PyTorch allocates without a value with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).new_empty(2).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def threads(count, monkeypatch):
    """Runs the smallest calls on this many threads."""
    before = torch.get_num_threads()
    monkeypatch.setattr(_library, "_WORTH", 1)
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def gradients(run, tensors, numbers):
    """Returns the result and the gradient of every tensor that wants one."""
    out = run(*tensors, *numbers)
    probe = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    wanted = [t for t in tensors if isinstance(t, Tensor) and t.requires_grad]
    return [out, *torch.autograd.grad(out, wanted, probe)]


def in_float64(tensors):
    """Returns copies in float64 that want gradients where the tensors do."""
    return [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]


def close(ours, theirs, dtype):
    """Compares with a reference in float64, relative to the largest value."""
    for mine, wanted in zip(ours, theirs, strict=True):
        assert (mine.shape, mine.dtype) == (wanted.shape, dtype)
        scale = wanted.abs().max().item() if wanted.numel() else 1.0
        assert_close(mine.double(), wanted, rtol=0, atol=TOLERANCE[dtype] * max(scale, 1e-3))


def check_equal_bits(run, tensors, numbers, monkeypatch):
    """One, two and five threads give the same bits."""
    results = []
    for count in (1, 2, 5):
        with threads(count, monkeypatch):
            results.append(gradients(run, tensors, numbers))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
