import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.native_checks import (
    check_equal_bits,
    close,
    gradients,
    in_float64,
    needs,
    poisoned,
)
from visgraft.ops.local_aggregation import LOCAL_AGGREGATION, local_aggregation
from visgraft.ops.local_aggregation.native import NATIVE
from visgraft.ops.local_aggregation.reference import local_aggregation_reference

CALLS = {  # kernel size, stride, padding, dilation, and channels, weight channels, heads
    "k1": (1, 1, 0, 1, 4, 4, 1),
    "k3, 8 share": (3, 1, 1, 1, 16, 2, 1),
    "k3, 11 share": (3, 1, 1, 1, 22, 2, 1),
    "k5, unshared": (5, 1, 2, 1, 4, 4, 1),
    "k7": (7, 1, 3, 1, 8, 1, 1),
    "k2, even kernel": (2, 1, 1, 1, 4, 2, 1),
    "k3, stride 2": (3, 2, 1, 1, 9, 1, 1),
    "k3, stride 3, wide padding": (3, 3, 4, 1, 4, 1, 1),
    "k3, dilation 2, 3 heads": (3, 1, 2, 2, 8, 1, 3),
    "k3, dilation 2, stride 2, 2 heads": (3, 2, 2, 2, 8, 2, 2),
    "k3, dilation 3, stride 2": (3, 2, 3, 3, 4, 1, 1),
    "k3, no padding": (3, 1, 0, 1, 10, 1, 1),
}
SIZES = [(1, 1), (1, 6), (2, 1), (7, 5), (3, 3), (7, 7), (8, 16), (13, 21)]


@pytest.fixture(autouse=True)
def _available():
    needs(NATIVE, *make("k1", (2, 2))[0])


def fits(call, size):
    kernel_size, _, padding, dilation, *_ = CALLS[call]
    return min(size) + 2 * padding > dilation * (kernel_size - 1)


def make(call, size, dtype=torch.float32, batch=2):
    kernel_size, stride, padding, dilation, channels, groups, heads = CALLS[call]
    reach = dilation * (kernel_size - 1) + 1
    out = [(n + 2 * padding - reach) // stride + 1 for n in size]
    x = torch.randn(batch, channels, *size, dtype=dtype)
    weight = torch.randn(batch, heads, groups, kernel_size**2, *out, dtype=dtype)
    return [x.requires_grad_(), weight.requires_grad_()], (kernel_size, stride, padding, dilation)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_reference(call, dtype):
    for size in SIZES:
        if fits(call, size):
            tensors, numbers = make(call, size, dtype)
            expected = gradients(local_aggregation_reference, in_float64(tensors), numbers)
            with poisoned():
                ours = gradients(NATIVE.run, tensors, numbers)
            close(ours, expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_map_too_large_to_be_joined(dtype):
    """Rows go through rings of a few rows, as with a stride."""
    tensors, numbers = make("k3, 11 share", (150, 211), dtype, batch=1)
    expected = gradients(local_aggregation_reference, in_float64(tensors), numbers)
    with poisoned():
        close(gradients(NATIVE.run, tensors, numbers), expected, dtype)


@pytest.mark.parametrize("call", ["k3, 11 share", "k3, dilation 2, stride 2, 2 heads"])
def test_threads_do_not_change_a_bit(call, monkeypatch):
    tensors, numbers = make(call, (13, 9), batch=3)
    check_equal_bits(NATIVE.run, tensors, numbers, monkeypatch)


@pytest.mark.parametrize("call", ["k3, 8 share", "k3, stride 2"])
def test_any_memory_layout(call):
    (x, weight), numbers = make(call, (6, 9), batch=3)
    expected = gradients(NATIVE.run, (x, weight), numbers)
    doubled = torch.stack([weight.detach(), torch.full_like(weight, torch.nan)], -1)
    half = torch.cat([x.detach(), x.detach() * torch.nan], 1)[:, : x.shape[1]]
    for layout in (x.detach().mT.contiguous().mT, half):
        tensors = [layout.requires_grad_(), doubled[..., 0].requires_grad_()]
        ours = gradients(NATIVE.run, tensors, numbers)
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_mixed_dtypes_are_computed_in_float32():
    (x, weight), numbers = make("k3, 8 share", (5, 6))
    x = x.detach().bfloat16().requires_grad_()
    out, grad_x, grad_weight = gradients(NATIVE.run, [x, weight], numbers)
    assert [t.dtype for t in (out, grad_x, grad_weight)] == [torch.bfloat16] * 2 + [torch.float32]
    expected = gradients(local_aggregation_reference, in_float64([x, weight]), numbers)
    close([out, grad_x], expected[:2], torch.bfloat16)


def test_bfloat16_adds_up_in_float32():
    """255 ones and a half: bfloat16 sums would stop counting at 256 and drop the half."""
    x = torch.ones(1, 1, 16, 16, dtype=torch.bfloat16)
    x[0, 0, 0, 0] = 0.5
    weight = torch.ones(1, 1, 1, 256, 1, 1, dtype=torch.bfloat16)
    assert local_aggregation(x, weight, 16, padding=0, backend="native").item() == 256
    x[0, 0, 0, 1] = 0.5
    assert local_aggregation(x, weight, 16, padding=0, backend="native").item() == 255


def test_rounding_of_bfloat16_is_pytorchs():
    """A sum of two neighbours, exact in float32: ties to even, overflow, NaN kept."""
    bits = torch.randint(-(2**15), 2**15, (20000,), dtype=torch.int16)
    special = torch.tensor([3.38e38, 3.38e38, -3.38e38, -3.38e38, torch.inf, -torch.inf, 0.0, -0.0])
    near = (1 + torch.randint(0, 128, (4000,)) / 128) * torch.tensor([1.0, 1 / 256]).repeat(2000)
    x = torch.cat([bits.view(torch.bfloat16), special.bfloat16(), near.bfloat16()])
    weight = torch.ones(1, 1, 1, 4, 1, len(x) - 1, dtype=torch.bfloat16)
    rows = torch.stack([x, torch.zeros_like(x)])[None, None]
    out = NATIVE.run(rows, weight, 2, 1, 0, 1).flatten()
    expected = (x[:-1].float() + x[1:].float()).bfloat16()
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(
        out.nan_to_num(7.0, torch.inf, -torch.inf), expected.nan_to_num(7.0, torch.inf, -torch.inf)
    )


def test_empty_batch():
    tensors, numbers = make("k3, 8 share", (5, 4), batch=0)
    out, grad_x, grad_weight = gradients(NATIVE.run, tensors, numbers)
    assert out.shape == (0, 16, 5, 4)
    assert (grad_x.shape, grad_weight.shape) == (tensors[0].shape, tensors[1].shape)


@pytest.mark.parametrize("call", ["k3, 8 share", "k3, stride 2"])
@pytest.mark.parametrize("only", [0, 1], ids=["x", "weight"])
def test_computes_only_the_gradient_asked_for(call, only):
    tensors, numbers = make(call, (5, 9))
    expected = gradients(NATIVE.run, tensors, numbers)[1 + only]
    tensors[1 - only].requires_grad_(False)
    assert torch.equal(gradients(NATIVE.run, tensors, numbers)[1], expected)


def test_second_derivatives():
    tensors, numbers = make("k3, stride 2", (5, 4))

    def second(run, tensors):
        out = run(*tensors, *numbers)
        first = torch.autograd.grad((out * out).sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), tensors)

    expected = second(local_aggregation_reference, in_float64(tensors))
    close(second(NATIVE.run, tensors), expected, torch.float32)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("call", ["k3, 8 share", "k3, stride 2"])
def test_operators_are_registered_correctly(call):
    (x, weight), numbers = make(call, (4, 3))
    ops = torch.ops.visgraft
    torch.library.opcheck(ops.local_aggregation_native.default, (x, weight, *numbers))
    grad = NATIVE.run(x, weight, *numbers).detach().requires_grad_()
    torch.library.opcheck(
        ops.local_aggregation_native_backward.default, (grad, x, weight, *numbers, True, True)
    )


def test_compiled_graph_calls_it_and_exported_graph_does_not():
    tensors, numbers = make("k3, 8 share", (6, 4))
    graphs = []

    def keep(module, _):
        graphs.append(str(module.graph))
        return module.forward

    def run(x, weight):
        return local_aggregation(x, weight, *numbers)

    compiled = torch.compile(run, fullgraph=True, backend=keep)
    assert torch.equal(compiled(*tensors), run(*tensors))
    assert "local_aggregation_native" in graphs[0]

    class Module(torch.nn.Module):
        def forward(self, x, weight):
            return run(x, weight)

    graph = torch.export.export(Module(), tuple(tensors)).graph
    assert "visgraft" not in str(graph)
    assert "mul" in str(graph)


def test_flops_are_two_per_multiplication():
    tensors, numbers = make("k3, dilation 2, 3 heads", (7, 5))
    with FlopCounterMode(display=False) as counter:
        out = NATIVE.run(*tensors, *numbers)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 2 * 9 * out.numel()
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (torch.Tensor.double, "needs float32 or bfloat16, got float64"),
        (torch.Tensor.half, "needs float32 or bfloat16, got float16"),
        (lambda t: t.to("meta"), "needs CPU tensors, got meta"),
    ],
)
def test_refuses_in_a_sentence(change, reason):
    tensors, numbers = make("k3, 8 share", (4, 4))
    assert LOCAL_AGGREGATION.explain(*map(change, tensors), *numbers)["native"] == reason
