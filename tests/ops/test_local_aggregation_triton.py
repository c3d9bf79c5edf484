"""Local aggregation on GPUs: its kernels compiled, and who takes them; values: `test_triton`."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.gpu_kernels import compile_for_hopper, resources
from visgraft.ops import local_aggregation
from visgraft.ops._strides import needs_long_index
from visgraft.ops.local_aggregation import LOCAL_AGGREGATION

CALL = (3, 1, 1, 1)


def tensors(shape, dtype=torch.float32, device="meta"):
    b, c, h, w = shape
    return [
        torch.empty(shape, dtype=dtype, device=device),
        torch.empty(b, 1, c // 8, 9, h, w, dtype=dtype, device=device),
    ]


def test_refuses_in_a_sentence():
    message = (
        r"^local_aggregation: backend 'triton' cannot run here: tensors are on cpu; this form is "
        r"for CUDA$"
    )
    with pytest.raises(ValueError, match=message):
        local_aggregation(*tensors((1, 8, 3, 3), device="cpu"), 3, backend="triton")


def test_cuda_takes_it_but_not_in_float64():
    with torch._subclasses.FakeTensorMode():
        single, double = (
            tensors((1, 8, 3, 3), dtype, "cuda") for dtype in (torch.float32, torch.float64)
        )
        assert next(iter(LOCAL_AGGREGATION.explain(*single, *CALL).items())) == ("triton", "ok")
        why = LOCAL_AGGREGATION.explain(*double, *CALL)["triton"]
        assert why == "tensors are float64; this form is for float32, bfloat16 and float16"
        assert local_aggregation(*single, 3).device.type == "cuda"


def test_refuses_two_devices_and_another_maker_of_gpus(monkeypatch):
    with torch._subclasses.FakeTensorMode():
        x, weight = tensors((1, 8, 3, 3), device="cuda:0")
        _, elsewhere = tensors((1, 8, 3, 3), device="cuda:1")
        why = LOCAL_AGGREGATION.explain(x, elsewhere, *CALL)["triton"]
        assert why == "tensors are on cuda:0 and cuda:1, not on one device"
        monkeypatch.setattr(torch.version, "hip", "7.0")
        why = LOCAL_AGGREGATION.explain(x, weight, *CALL)["triton"]
        assert why == "this PyTorch is built for ROCm; this form is for CUDA"


def test_refuses_to_be_exported():
    """On a GPU too: here the device is told apart only after the exporter."""
    seen = []

    class Module(torch.nn.Module):
        def forward(self, x, weight):
            seen.append(LOCAL_AGGREGATION.explain(x, weight, *CALL)["triton"])
            return x + 1

    torch.export.export(Module(), tuple(tensors((1, 8, 3, 3), device="cpu")), strict=False)
    assert seen == ["an exported graph has to run where this form is not installed"]


@pytest.mark.parametrize(("needed", "gradients"), [((True, True), 2), ((False, True), 1)])
def test_products_of_the_backward_pass_are_counted(needed, gradients):
    x, weight = tensors((1, 16, 5, 4))
    with FlopCounterMode(display=False) as counter:
        torch.ops.visgraft.local_aggregation_triton_backward(x, x, weight, *CALL, *needed)
    assert counter.get_total_flops() == gradients * 2 * 9 * x.numel()


@pytest.mark.parametrize(
    ("shape", "long"),
    [((2, 8, 2**14, 2**12), False), ((2, 8, 2**14, 2**14), True), ((3, 2, 9, 5), False)],
)
def test_32_bits_count_maps_that_fit(shape, long):
    assert needs_long_index(torch.empty(shape, device="meta")) == long


def test_32_bits_count_distances_not_elements():
    x = torch.empty(2, 2**31, device="meta")[:, :3]
    assert needs_long_index(x)


@pytest.mark.parametrize(
    ("dtype", "memory_format"),
    [(torch.bfloat16, torch.contiguous_format), (torch.float32, torch.channels_last)],
    ids=str,
)
def test_compiles_for_hopper_without_spilling(monkeypatch, tmp_path, dtype, memory_format):
    x, weight = tensors((256, 64, 56, 56), dtype)
    x = x.to(memory_format=memory_format)

    def launches(operator):
        operator._launch_forward(x, weight, torch.empty_like(x), CALL)
        grads = torch.empty_like(x), torch.empty_like(weight)
        operator._launch_backward(torch.empty_like(x), x, weight, *grads, CALL)

    module = "visgraft.ops.local_aggregation.triton_operator"
    kernels = ("forward_kernel", "backward_kernel")
    compiled = compile_for_hopper(monkeypatch, tmp_path, module, kernels, launches)
    assert [kernel.metadata.name for kernel in compiled] == list(kernels)
    for kernel in compiled:
        registers, stack, shared = resources(kernel, tmp_path)
        assert registers <= 160
        assert stack == 0
        assert shared <= 4096
