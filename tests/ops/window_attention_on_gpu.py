"""The kernels of window attention against the definition in float64; see ``gpu_kernels``."""

import sys

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.gpu_kernels import DEVICE, LAYOUTS, sliced, surrounded
from visgraft.ops.window_attention import window_attention
from visgraft.ops.window_attention.reference import window_attention_reference
from visgraft.ops.window_attention.triton_operator import TRITON

OPERATOR = sys.modules["visgraft.ops.window_attention.triton_operator"]
CALLS = {  # kernel size, stride, dilation; map
    "k7": ((7, 1, 1), (5, 11)),
    "k3": ((3, 1, 1), (6, 9)),
    "k7, edges repeated": ((7, 1, 1), (3, 2)),
    "k7, repeated above, reflected beside": ((7, 1, 1), (2, 5)),
    "k5, one position": ((5, 1, 1), (1, 1)),
    "k1": ((1, 1, 1), (3, 4)),
    "k3, stride 2": ((3, 2, 1), (7, 6)),
    "k3, stride 3": ((3, 3, 1), (14, 5)),
    "k5, dilation 2, stride 2": ((5, 2, 2), (9, 6)),
    "k3, dilation 3": ((3, 1, 3), (8, 4)),
    "k3, dilation 3, edges repeated": ((3, 1, 3), (3, 2)),
}


@pytest.fixture(autouse=True)
def _poisoned_outputs():
    """New tensors are full of NaN: what is not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def arguments(call, batch=1, heads=1, depth=3, dtype=torch.float32):
    """Returns query, key and value."""
    (_, stride, _), size = CALLS[call]
    sizes = ([-(-n // stride) for n in size], size, size)
    return [torch.randn(batch, heads, depth, *each).to(DEVICE, dtype) for each in sizes]


def results(run, tensors, numbers, grad):
    """Returns the output and all gradients."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    out = run(*tensors, *numbers)
    return [out, *torch.autograd.grad(out, tensors, grad)]


def check(tensors, numbers, tolerance=1e-5, arrange=lambda t: t):
    """Compares everything with float64; tensors and upstream gradient are arranged first."""
    tensors = [arrange(t) for t in tensors]
    grad = arrange(torch.randn_like(tensors[0]))
    exact = [t.double() for t in tensors]
    expected = results(window_attention_reference, exact, numbers, grad.double())
    actual = results(TRITON.run, tensors, numbers, grad)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == tensors[0].dtype
        assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("call", CALLS)
def test_equals_definition(call):
    check(arguments(call, heads=2 if call == "k3" else 1), CALLS[call][0], arrange=surrounded)


@pytest.mark.parametrize("layout", ["sliced", "channels last"])
@pytest.mark.parametrize("call", ["k3", "k3, stride 2"])
def test_any_layout(layout, call):
    check(arguments(call, depth=5), CALLS[call][0], arrange=LAYOUTS[layout])


@pytest.mark.parametrize(("depth", "batch"), [(1, 3), (16, 1), (17, 1), (128, 1)])
def test_depths(depth, batch):
    check(arguments("k3, stride 2", batch, depth=depth), CALLS["k3, stride 2"][0])


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=str
)
def test_low_precision(dtype, tolerance):
    check(arguments("k3", dtype=dtype, heads=2), (3, 1, 1), tolerance)


def test_large_logits_do_not_overflow():
    query, key, value = arguments("k7")
    check([100 * query, 10 * key, value], (7, 1, 1), 1e-3)
    check([100 * query.abs(), -10 * key.abs(), value], (7, 1, 1), 1e-3)


def test_poison_outside_the_window_of_all_queries_stays_there():
    """The upper left tile reads nothing of the last column of a wide map."""
    key = torch.randn(1, 1, 3, 4, 20, device=DEVICE)
    clean = TRITON.run(key, key, key, 3, 1, 1)
    poisoned = key.clone()
    poisoned[..., -1] = float("nan")
    out = TRITON.run(key, poisoned, poisoned, 3, 1, 1)
    assert_close(out[..., :8], clean[..., :8], rtol=0, atol=0)


def test_expanded_tensors():
    query, key, value = arguments("k3", batch=2)
    check([query, key[:1].expand(2, -1, -1, -1, -1), value[..., :1].expand(value.shape)], (3, 1, 1))


@pytest.mark.parametrize("call", ["k3", "k5, dilation 2, stride 2"])
def test_indices_of_64_bits(call, monkeypatch):
    monkeypatch.setattr(OPERATOR, "needs_long_index", lambda *_: True)
    check(arguments(call), CALLS[call][0], arrange=sliced)


@pytest.mark.parametrize("far", ["query", "key", "value"])
def test_elements_beyond_32_bits(far):
    """The third of three images lies 2**31 elements off; nobody touches the memory between."""
    named = {
        name: t.bfloat16()
        for name, t in zip(("query", "key", "value"), arguments("k3, stride 2", 3), strict=True)
    }
    exact = [t.double() for t in named.values()]
    grad = torch.randn_like(exact[0]).bfloat16()
    expected = results(window_attention_reference, exact, (3, 2, 1), grad.double())
    torch.use_deterministic_algorithms(False)  # which would fill it
    near = named[far]
    whole = torch.empty(2**31 + near[0].numel(), dtype=torch.bfloat16, device=DEVICE)
    named[far] = whole.as_strided(near.shape, (2**30, *near.stride()[1:]))
    named[far].copy_(near)
    actual = results(TRITON.run, list(named.values()), (3, 2, 1), grad)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours.double(), theirs, rtol=3e-2, atol=3e-2)


def test_empty_batch():
    check(arguments("k3", batch=0), (3, 1, 1))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_operators_are_registered_correctly():
    torch.use_deterministic_algorithms(False)
    tensors = [t.requires_grad_() for t in arguments("k3, stride 2")]
    operators = torch.ops.visgraft
    torch.library.opcheck(operators.window_attention_triton.default, (*tensors, 3, 2, 1))
    out, sums = operators.window_attention_triton(*(t.detach() for t in tensors), 3, 2, 1)
    plain = (torch.randn_like(out), *(t.detach() for t in tensors), out, sums, 3, 2, 1)
    backward, some = operators.window_attention_triton_backward, ("test_schema", "test_faketensor")
    torch.library.opcheck(backward.default, plain, test_utils=some)


def test_is_chosen_and_compiled_without_a_break():
    tensors = arguments("k3, stride 2")
    with FlopCounterMode(display=False) as counter:
        out = window_attention(*tensors, 3, 2)
    assert counter.get_total_flops() == 4 * 9 * out.numel()
    assert "window_attention_triton" in str(counter.get_flop_counts()["Global"])
    graphs = []

    def backend(graph, _):
        graphs.append(str(graph.graph))
        return graph.forward

    compiled = torch.compile(
        lambda *tensors: window_attention(*tensors, 3, 2), fullgraph=True, backend=backend
    )
    assert_close(compiled(*tensors), out)
    assert "window_attention_triton" in graphs[0]
