"""The selection on GPUs: its kernels compiled, and who takes them; values: `test_triton`."""

import pytest
import torch

from tests.ops.gpu_kernels import compile_for_hopper, resources
from visgraft.ops.selection import SELECTION, selection

SHAPE = (2, 3, 4, 5)


def tensors(shape=SHAPE, dtype=torch.float32, device="cuda"):
    maps = [torch.empty(shape, dtype=dtype, device=device) for _ in range(2)]
    return [*maps, torch.empty(*shape[:2], 1, 1, dtype=dtype, device=device)]


def test_refuses_in_a_sentence():
    message = (
        r"^selection: backend 'triton' cannot run here: tensors are on cpu; this form is for CUDA$"
    )
    with pytest.raises(ValueError, match=message):
        selection(*tensors(device="cpu"), backend="triton")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a, b, s: (a, b, s), "ok"),
        (lambda a, b, s: (a.half(), b.half(), s), "ok"),
        (
            lambda a, b, s: (a.double(), b, s),
            "tensors are float64; this form is for float32, bfloat16 and float16",
        ),
        (lambda a, b, s: (a, b, s.to("cuda:1")), "tensors are on cuda:0 and cuda:1, not on one"),
        (
            lambda a, b, s: (a, b.half(), s),
            "needs maps of one dtype, got torch.float32 and torch.float16",
        ),
        (
            lambda a, b, s: (a.to(memory_format=torch.channels_last), b, s),
            "needs maps that lie in memory row by row, or all with the channels last",
        ),
        (
            lambda a, b, s: (a[..., ::2], b[..., ::2], s),
            "needs maps that lie in memory row by row, or all with the channels last",
        ),
    ],
)
def test_who_takes_it_on_cuda(change, reason):
    with torch._subclasses.FakeTensorMode():
        changed = change(*tensors(device="cuda:0"))
        answers = SELECTION.explain(*changed)
        assert answers["triton"].startswith(reason)
        if reason == "ok":
            assert next(name for name, why in answers.items() if why == "ok") == "triton"
            assert selection(*changed).dtype == changed[0].dtype


def test_maps_with_the_channels_last_keep_them_there():
    with torch._subclasses.FakeTensorMode():
        first, second, share = tensors()
        first, second = (t.to(memory_format=torch.channels_last) for t in (first, second))
        out = selection(first, second, share, backend="triton")
        assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("dtype", "memory_format"),
    [
        (torch.bfloat16, torch.contiguous_format),
        pytest.param(torch.float32, torch.channels_last, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compiles_for_hopper_without_spilling(monkeypatch, tmp_path, dtype, memory_format):
    first, second, share = tensors((256, 64, 56, 56), dtype, "meta")
    first, second = (t.to(memory_format=memory_format) for t in (first, second))

    def launches(operator):
        operator._select._init_fn(first, second, share)
        operator._differentiate._init_fn(first, first, second, share)

    module = "visgraft.ops.selection.triton_operator"
    kernels = ("forward_kernel", "backward_kernel")
    compiled = compile_for_hopper(monkeypatch, tmp_path, module, kernels, launches)
    assert [kernel.metadata.name for kernel in compiled] == list(kernels)
    for kernel in compiled:
        assert "ld.global.v4.b32" in kernel.asm["ptx"]  # 16 bytes at once
        registers, stack, shared = resources(kernel, tmp_path)
        assert registers <= 128
        assert stack == 0
        assert shared <= 4096
