"""The kernels of local aggregation against the definition in float64; see ``gpu_kernels``."""

import sys

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.gpu_kernels import DEVICE, LAYOUTS, sliced, surrounded
from visgraft.ops.local_aggregation import local_aggregation
from visgraft.ops.local_aggregation.reference import local_aggregation_reference
from visgraft.ops.local_aggregation.triton_operator import TRITON

OPERATOR = sys.modules["visgraft.ops.local_aggregation.triton_operator"]
CALLS = {  # kernel size, stride, padding, dilation; weight channels, heads, channels; map
    "k3": ((3, 1, 1, 1), (2, 1, 16), (5, 7)),
    "k3, more positions than a program": ((3, 1, 1, 1), (3, 1, 6), (13, 19)),
    "k3, three share": ((3, 1, 1, 1), (2, 1, 6), (4, 3)),
    "k3, nine share": ((3, 1, 1, 1), (2, 1, 18), (4, 3)),
    "k1": ((1, 1, 0, 1), (4, 1, 4), (1, 6)),
    "k5, unshared": ((5, 1, 2, 1), (3, 1, 3), (6, 4)),
    "k2, even kernel": ((2, 1, 1, 1), (2, 1, 4), (4, 5)),
    "k3, stride 2": ((3, 2, 1, 1), (2, 1, 4), (7, 5)),
    "k3, stride 2, size kept": ((3, 2, 3, 1), (2, 1, 4), (5, 5)),
    "k3, stride 3, wide padding": ((3, 3, 4, 1), (1, 1, 4), (5, 4)),
    "k3, dilation 2, 3 heads": ((3, 1, 2, 2), (2, 3, 4), (6, 7)),
    "k3, dilation 2, stride 2, 2 heads": ((3, 2, 2, 2), (4, 2, 4), (7, 6)),
    "k3, no padding": ((3, 1, 0, 1), (2, 1, 4), (5, 4)),
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def _poisoned_outputs():
    """New tensors are full of NaN: what is not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def arguments(call, batch=2, dtype=torch.float32):
    """Returns x and weight, and what they belong to."""
    (kernel_size, stride, padding, dilation), (groups, heads, channels), size = CALLS[call]
    reach = dilation * (kernel_size - 1) + 1
    out = [(n + 2 * padding - reach) // stride + 1 for n in size]
    x = torch.randn(batch, channels, *size)
    weight = torch.randn(batch, heads, groups, kernel_size**2, *out)
    return [x.to(DEVICE, dtype), weight.to(DEVICE, dtype)]


def results(run, tensors, numbers, grad):
    """Returns the output and both gradients."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    out = run(*tensors, *numbers)
    return [out, *torch.autograd.grad(out, tensors, grad)]


def check(tensors, numbers, tolerance=1e-5, arrange=lambda t: t):
    """Compares everything with float64; tensors and upstream gradient are arranged first."""
    tensors = [arrange(t) for t in tensors]
    exact = [t.double() for t in tensors]
    grad = torch.randn_like(local_aggregation_reference(*exact, *numbers))
    grad = arrange(grad.to(tensors[0].dtype))
    expected = results(local_aggregation_reference, exact, numbers, grad.double())
    actual = results(TRITON.run, tensors, numbers, grad)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
    assert [t.dtype for t in actual] == [tensors[0].dtype, *(t.dtype for t in tensors)]
    return actual


@pytest.mark.parametrize("call", CALLS)
def test_equals_definition(call):
    check(arguments(call), CALLS[call][0], arrange=surrounded)


@pytest.mark.parametrize("layout", ["sliced", "channels last"])
@pytest.mark.parametrize(
    "call", ["k3", "k3, stride 2", "k3, nine share", "k3, dilation 2, 3 heads"]
)
def test_any_layout(layout, call):
    out, grad_x, _ = check(arguments(call), CALLS[call][0], arrange=LAYOUTS[layout])
    if layout == "channels last":
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert grad_x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("call", ["k3", "k3, dilation 2, stride 2, 2 heads"])
def test_low_precision(call, dtype):
    check(arguments(call, dtype=dtype), CALLS[call][0], TOLERANCE[dtype])


def test_dtypes_may_differ():
    x, weight = arguments("k3")
    check([x.bfloat16(), weight], CALLS["k3"][0], TOLERANCE[torch.bfloat16])


def test_sums_are_float32():
    """289 ones: bfloat16 would stop counting at 256."""
    x = torch.ones(1, 1, 17, 17, dtype=torch.bfloat16, device=DEVICE)
    weight = torch.ones(1, 1, 1, 289, 1, 1, dtype=torch.bfloat16, device=DEVICE)
    assert TRITON.run(x, weight, 17, 1, 0, 1).item() in (288, 290)


def test_expanded_tensors():
    """Of stride 0, as the gradient of a sum is."""
    x, weight = arguments("k3", batch=1)
    check([x.expand(3, -1, -1, -1), weight.expand(3, *weight.shape[1:])], CALLS["k3"][0])
    check([x[:, :2], weight], CALLS["k3"][0], arrange=lambda t: t[..., :1, :1].expand(t.shape))


@pytest.mark.parametrize("call", ["k3", "k3, stride 2", "k3, dilation 2, 3 heads"])
def test_indices_of_64_bits(call, monkeypatch):
    monkeypatch.setattr(OPERATOR, "needs_long_index", lambda *_: True)
    check(arguments(call), CALLS[call][0], arrange=sliced)


@pytest.mark.parametrize("far", ["x", "weight", "grad"])
def test_elements_beyond_32_bits(far):
    """The third of three images lies 2**31 elements off; nobody touches the memory between."""
    numbers = CALLS["k3, three share"][0]
    x, weight = arguments("k3, three share", batch=3)
    grad = torch.randn_like(x)
    tensors = {"x": x, "weight": weight, "grad": grad}
    expected = results(local_aggregation_reference, [x, weight], numbers, grad)
    torch.use_deterministic_algorithms(False)  # which would fill it
    near = tensors[far].bfloat16()
    whole = torch.empty(2**31 + near[0].numel(), dtype=torch.bfloat16, device=DEVICE)
    tensors[far] = whole.as_strided(near.shape, (2**30, *near.stride()[1:]))
    tensors[far].copy_(near)
    actual = results(TRITON.run, [tensors["x"], tensors["weight"]], numbers, tensors["grad"])
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours.float(), theirs, rtol=2e-2, atol=5e-2)


def test_writes_nothing_else():
    x, weight = arguments("k3, three share")
    numbers = CALLS["k3, three share"][0]
    whole = torch.full((x.numel() + 600,), 7.0, device=DEVICE)
    OPERATOR._launch_forward(x, weight, whole[300:-300].view_as(x), numbers)
    assert not (whole[300:-300] == 7).any()
    assert (whole[:300] == 7).all()
    assert (whole[-300:] == 7).all()
    grads = [torch.full((t.numel() + 600,), 7.0, device=DEVICE) for t in (x, weight)]
    inner = [g[300:-300].view_as(t) for g, t in zip(grads, (x, weight), strict=True)]
    OPERATOR._launch_backward(torch.randn_like(x), x, weight, *inner, numbers)
    for grad in grads:
        assert not (grad[300:-300] == 7).any()
        assert (grad[:300] == 7).all()
        assert (grad[-300:] == 7).all()


@pytest.mark.parametrize("needed", [(True, False), (False, True)], ids=["x", "weight"])
def test_only_the_gradient_asked_for(needed):
    tensors, numbers = arguments("k3"), CALLS["k3"][0]
    grad = torch.randn_like(tensors[0])
    expected = results(local_aggregation_reference, tensors, numbers, grad)[1:]
    for tensor, wanted in zip(tensors, needed, strict=True):
        tensor.requires_grad_(wanted)
    TRITON.run(*tensors, *numbers).backward(grad)
    for tensor, wanted, gradient in zip(tensors, needed, expected, strict=True):
        assert (tensor.grad is not None) == wanted
        if wanted:
            assert_close(tensor.grad, gradient, rtol=1e-5, atol=1e-5)


def test_empty_tensors():
    check(arguments("k3", batch=0), CALLS["k3"][0])
    x, weight = arguments("k3")
    weight.requires_grad_()
    TRITON.run(x[:, :0], weight, *CALLS["k3"][0]).sum().backward()
    assert not weight.grad.any()


def test_second_derivative():
    tensors, numbers = arguments("k3, three share", batch=1), CALLS["k3, three share"][0]

    def second(run, x, weight):
        x, weight = (t.detach().requires_grad_() for t in (x, weight))
        grads = torch.autograd.grad(
            run(x, weight, *numbers).sin().sum(), (x, weight), None, True, True
        )
        return torch.autograd.grad(sum((g**2).sum() for g in grads), (x, weight))

    expected = second(local_aggregation_reference, *(t.double() for t in tensors))
    for ours, theirs in zip(second(TRITON.run, *tensors), expected, strict=True):
        assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_operators_are_registered_correctly():
    torch.use_deterministic_algorithms(False)
    x, weight = (t.requires_grad_() for t in arguments("k3, three share", batch=1))
    numbers = CALLS["k3, three share"][0]
    operators = torch.ops.visgraft
    torch.library.opcheck(operators.local_aggregation_triton.default, (x, weight, *numbers))
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    grad = torch.randn_like(x, requires_grad=True)
    torch.library.opcheck(
        operators.local_aggregation_triton_backward.default,
        (grad, x, weight, *numbers, True, True),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_is_chosen_and_compiled_without_a_break():
    tensors, numbers = arguments("k3, three share"), CALLS["k3, three share"][0]
    with FlopCounterMode(display=False) as counter:
        out = local_aggregation(*tensors, *numbers)
    assert counter.get_total_flops() == 2 * 9 * out.numel()
    assert "local_aggregation_triton" in str(counter.get_flop_counts()["Global"])
    graphs = []

    def backend(graph, _):
        graphs.append(str(graph.graph))
        return graph.forward

    compiled = torch.compile(
        lambda x, weight: local_aggregation(x, weight, *numbers), fullgraph=True, backend=backend
    )
    assert_close(compiled(*tensors), out)
    assert "local_aggregation_triton" in graphs[0]
