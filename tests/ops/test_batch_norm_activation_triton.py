"""Batch normalisation on GPUs: its kernels compiled, and who takes them; values: `test_triton`."""

import pytest
import torch

from tests.ops.gpu_kernels import compile_for_hopper, resources
from visgraft.ops.batch_norm_activation import BATCH_NORM_ACTIVATION, batch_norm_activation


def tensors(shape=(2, 3, 4, 5), dtype=torch.float32, device="cuda"):
    x = torch.empty(shape, dtype=dtype, device=device)
    return [x, *(torch.empty(shape[1], device=device) for _ in range(2))]


def test_refuses_in_a_sentence():
    message = (
        r"^batch_norm_activation: backend 'triton' cannot run here: tensors are on cpu; this form "
        r"is for CUDA$"
    )
    with pytest.raises(ValueError, match=message):
        batch_norm_activation(*tensors(device="cpu"), backend="triton")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, w, b: (x, w, b), "ok"),
        (lambda x, w, b: (x.bfloat16(), w, b), "ok"),
        (
            lambda x, w, b: (x.double(), w, b),
            "tensors are float64; this form is for float32, bfloat16 and float16",
        ),
        (
            lambda x, w, b: (x.half(), w.half(), b),
            "needs float32 weight and bias, got torch.float16 and torch.float32",
        ),
        (
            lambda x, w, b: (x[..., ::2], w, b),
            "needs maps that lie in memory row by row, or all with the channels last",
        ),
    ],
)
def test_who_takes_it_on_cuda(change, reason):
    with torch._subclasses.FakeTensorMode():
        changed = change(*tensors())
        answers = BATCH_NORM_ACTIVATION.explain(*changed, 1e-5, "relu")
        assert answers["triton"] == reason
        if reason == "ok":
            assert next(name for name, why in answers.items() if why == "ok") == "triton"
            y, pooled, mean, variance = batch_norm_activation(*changed)
            assert y.dtype == pooled.dtype == changed[0].dtype
            assert mean.dtype == variance.dtype == torch.float32


@pytest.mark.parametrize(
    ("dtype", "memory_format"),
    [
        (torch.bfloat16, torch.contiguous_format),
        pytest.param(torch.float32, torch.channels_last, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compiles_for_hopper_without_spilling(monkeypatch, tmp_path, dtype, memory_format):
    x, weight, bias = tensors((256, 64, 56, 56), dtype, "meta")
    x = x.to(memory_format=memory_format)

    def launches(operator):
        call = (1e-5, "silu")
        y, pooled, mean, variance = operator._normalise._init_fn(x, weight, bias, *call)
        operator._differentiate._init_fn(y, pooled, x, weight, bias, mean, variance, *call)

    module = "visgraft.ops.batch_norm_activation.triton_operator"
    kernels = (
        "statistics_kernel",
        "combine_kernel",
        "apply_kernel",
        "sums_kernel",
        "backward_kernel",
    )
    compiled = compile_for_hopper(monkeypatch, tmp_path, module, kernels, launches)
    assert [kernel.metadata.name for kernel in compiled] == list(kernels)
    for kernel in compiled:
        assert "ld.global.v4.b32" in kernel.asm["ptx"]  # 16 bytes at once
        registers, stack, shared = resources(kernel, tmp_path)
        assert registers <= 128
        assert stack == 0
        assert shared <= 4096
