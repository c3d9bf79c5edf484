"""Window attention on GPUs: its kernels compiled, and who takes them; values: `test_triton`."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.gpu_kernels import compile_for_hopper, resources
from visgraft.ops import window_attention
from visgraft.ops.window_attention import WINDOW_ATTENTION


def test_refuses_in_a_sentence():
    x = torch.zeros(1, 1, 2, 3, 3)
    message = (
        r"^window_attention: backend 'triton' cannot run here: tensors are on cpu; this form is "
        r"for CUDA$"
    )
    with pytest.raises(ValueError, match=message):
        window_attention(x, x, x, 3, backend="triton")


def test_cuda_takes_it_up_to_128_channels():
    with torch._subclasses.FakeTensorMode():
        deep, deeper = (torch.empty(1, 2, d, 9, 9, device="cuda") for d in (128, 129))
        answers = WINDOW_ATTENTION.explain(deep, deep, deep, 7, 1, 1)
        assert next(iter(answers.items())) == ("triton", "ok")
        answers = WINDOW_ATTENTION.explain(deeper, deeper, deeper, 7, 1, 1)
        assert answers["triton"] == "heads have 129 channels, more than 128"
        assert window_attention(deep, deep, deep, 7).shape == deep.shape


def test_products_of_the_backward_pass_are_counted():
    x = torch.empty(1, 2, 4, 5, 6, device="meta")
    with FlopCounterMode(display=False) as counter:
        out, sums = torch.ops.visgraft.window_attention_triton(x, x, x, 3, 1, 1)
        torch.ops.visgraft.window_attention_triton_backward(out, x, x, x, out, sums, 3, 1, 1)
    assert counter.get_total_flops() == (4 + 10) * 9 * x.numel()


@pytest.mark.parametrize(("dtype", "depth"), [(torch.bfloat16, 64), (torch.float32, 16)], ids=str)
def test_compiles_for_hopper_without_spilling(monkeypatch, tmp_path, dtype, depth):
    x = torch.empty(256, 4, depth, 14, 14, device="meta", dtype=dtype)

    def launches(operator):
        out, sums = operator._attend._init_fn(x, x, x, 7, 1, 1)
        operator._differentiate._init_fn(out, x, x, x, out, sums, 7, 1, 1)

    module = "visgraft.ops.window_attention.triton_operator"
    kernels = ("forward_kernel", "queries_kernel", "keys_kernel")
    compiled = compile_for_hopper(monkeypatch, tmp_path, module, kernels, launches)
    assert [kernel.metadata.name for kernel in compiled] == list(kernels)
    for kernel in compiled:
        assert "mma" in kernel.asm["ptx"]  # tensor cores
        _, stack, shared = resources(kernel, tmp_path)
        assert stack == 0
        assert shared <= 48 * 1024
