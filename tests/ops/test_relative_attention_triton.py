"""Relative attention on GPUs: its kernels compiled, and who takes them; values: `test_triton`."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.gpu_kernels import compile_for_hopper, resources
from visgraft.ops import relative_attention
from visgraft.ops.relative_attention import RELATIVE_ATTENTION


def tensors(height, width, depth=16, **options):
    x = torch.empty(1, 2, depth, height, width, **options)
    return [x, x, x, *(torch.empty(2 * n - 1, depth, **options) for n in (height, width))]


def test_refuses_in_a_sentence():
    message = (
        r"^relative_attention: backend 'triton' cannot run here: tensors are on cpu; this form is "
        r"for CUDA$"
    )
    with pytest.raises(ValueError, match=message):
        relative_attention(*tensors(3, 3), backend="triton")


def test_cuda_takes_it_where_the_direct_form_gives_up():
    def answer(*args, **options):
        with torch._subclasses.FakeTensorMode():
            inputs = tensors(*args, device="cuda", **options)
            answers = RELATIVE_ATTENTION.explain(*inputs)
            if answers["triton"] == "ok":
                assert relative_attention(*inputs).shape == inputs[0].shape
            return answers["triton"], next(n for n, why in answers.items() if why == "ok")

    assert answer(20, 20) == ("ok", "direct")
    assert answer(21, 20) == ("ok", "triton")
    assert answer(4, 128) == ("ok", "triton")
    assert answer(4, 129) == ("the map has 129 columns, more than 128", "chunked")
    assert answer(21, 20, 129) == ("heads have 129 channels, more than 128", "chunked")


def test_products_of_the_backward_pass_are_counted():
    inputs = [torch.empty(2, 12, n, device="meta") for n in (3, 3, 5, 3, 4)]
    with FlopCounterMode(display=False) as counter:
        out, sums = torch.ops.visgraft.biased_attention_triton(*inputs)
        torch.ops.visgraft.biased_attention_triton_backward(out, *inputs, out, sums)
    assert counter.get_total_flops() == 2 * 2 * 12 * 12 * (3 + 5 + 3 * 3 + 2 * 5)


def test_compiles_for_hopper_without_spilling(monkeypatch, tmp_path):
    dtype, depth, width = torch.bfloat16, 64, 40

    def make(n):
        return torch.empty(8, width**2, n, device="meta", dtype=dtype)

    inputs = (make(depth), make(depth), make(depth), make(width), make(width))

    def launches(operator):
        out, sums = operator._attend._init_fn(*inputs)
        operator._differentiate._init_fn(out, *inputs, out, sums)

    module = "visgraft.ops.relative_attention.triton_operator"
    kernels = ("forward_kernel", "queries_kernel", "keys_kernel")
    compiled = compile_for_hopper(monkeypatch, tmp_path, module, kernels, launches)
    assert [kernel.metadata.name for kernel in compiled] == list(kernels)
    for kernel in compiled:
        assert "mma" in kernel.asm["ptx"]  # tensor cores
        _, stack, shared = resources(kernel, tmp_path)
        assert stack == 0
        assert shared <= 227 * 1024  # of a multiprocessor
