"""Gates and means of strips on GPUs: who takes them, kernels compiled; values: `test_triton`."""

import pytest
import torch

from tests.ops.gpu_kernels import compile_for_hopper, resources
from visgraft.ops.strip_gate import STRIP_GATE, STRIP_MEANS, strip_gate, strip_means

LAYOUT = "needs maps that lie in memory row by row, or all with the channels last"


def tensors(shape=(2, 3, 4, 5), dtype=torch.float32, device="cuda"):
    b, c, h, w = shape
    sizes = (shape, (b, c, h, 1), (b, c, 1, w))
    return [torch.empty(size, dtype=dtype, device=device) for size in sizes]


def test_refuse_in_a_sentence():
    x, rows, columns = tensors(device="cpu")
    why = "backend 'triton' cannot run here: tensors are on cpu; this form is for CUDA$"
    with pytest.raises(ValueError, match=f"^strip_gate: {why}"):
        strip_gate(x, rows, columns, backend="triton")
    with pytest.raises(ValueError, match=f"^strip_means: {why}"):
        strip_means(x, backend="triton")


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (lambda x, r, c: (x, r, c), ("ok", "ok")),
        (lambda x, r, c: (x, r.half(), c.half()), ("ok", "ok")),
        (
            lambda x, r, c: (x.half(), r, c),
            ("needs gates no wider than the map, got torch.float16 and torch.float32", "ok"),
        ),
        (lambda x, r, c: (x[..., ::2], r, c[..., ::2]), (LAYOUT, LAYOUT)),
    ],
)
def test_who_takes_them_on_cuda(change, reasons):
    with torch._subclasses.FakeTensorMode():
        x, rows, columns = change(*tensors())
        answers = STRIP_GATE.explain(x, rows, columns), STRIP_MEANS.explain(x)
        assert tuple(a["triton"] for a in answers) == reasons
        if reasons == ("ok", "ok"):
            for a in answers:
                assert next(name for name, why in a.items() if why == "ok") == "triton"
            assert strip_gate(x, rows, columns).dtype == x.dtype
            assert strip_means(x)[0].shape == (2, 3, 9, 1)


@pytest.mark.parametrize(
    ("dtype", "memory_format"),
    [
        (torch.bfloat16, torch.contiguous_format),
        pytest.param(torch.float32, torch.channels_last, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compile_for_hopper_without_spilling(monkeypatch, tmp_path, dtype, memory_format):
    x, rows, columns = tensors((256, 64, 56, 56), dtype, "meta")
    x = x.to(memory_format=memory_format)

    def gate(operator):
        operator._gate._init_fn(x, rows, columns)
        operator._differentiate._init_fn(x, x, rows, columns)

    def means(operator):
        operator._spread(operator._means._init_fn(x), x, x)

    for module, launches, kernels in (
        ("triton_operator", gate, ("gate_kernel", "gate_backward_kernel")),
        ("triton_means", means, ("means_kernel", "means_backward_kernel")),
    ):
        name = f"visgraft.ops.strip_gate.{module}"
        compiled = compile_for_hopper(monkeypatch, tmp_path, name, kernels, launches)
        assert [kernel.metadata.name for kernel in compiled] == list(kernels)
        for kernel in compiled:
            assert "ld.global.v4.b32" in kernel.asm["ptx"]  # 16 bytes at once
            registers, stack, shared = resources(kernel, tmp_path)
            assert registers <= 128
            assert stack == 0
            assert shared <= 4096
