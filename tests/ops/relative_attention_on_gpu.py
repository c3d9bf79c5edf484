"""The kernels of relative attention against the definition in float64; see ``gpu_kernels``."""

import sys

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.gpu_kernels import DEVICE, LAYOUTS, sliced, surrounded
from visgraft.ops.relative_attention import relative_attention
from visgraft.ops.relative_attention.reference import relative_attention_reference
from visgraft.ops.relative_attention.triton_operator import TRITON

OPERATOR = sys.modules["visgraft.ops.relative_attention.triton_operator"]
SIZES = [(5, 7), (9, 10), (1, 6), (6, 1), (3, 17)]


@pytest.fixture(autouse=True)
def _poisoned_outputs():
    """New tensors are full of NaN: what is not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def arguments(size, batch=1, heads=2, depth=3, value_depth=5, dtype=torch.float32):
    """Returns query, key, value, rows and columns."""
    h, w = size
    shapes = [(batch, heads, d, h, w) for d in (depth, depth, value_depth)]
    shapes += [(2 * n - 1, depth) for n in size]
    return [torch.randn(shape).to(DEVICE, dtype) for shape in shapes]


def results(run, tensors, grad):
    """Returns the output and all gradients."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    out = run(*tensors)
    return [out, *torch.autograd.grad(out, tensors, grad)]


def check(tensors, tolerance=1e-5, arrange=lambda t: t):
    """Compares everything with float64; maps and upstream gradient are arranged first."""
    tensors = [arrange(t) if t.ndim == 5 else t for t in tensors]
    grad = arrange(torch.randn_like(tensors[2]))
    expected = results(relative_attention_reference, [t.double() for t in tensors], grad.double())
    for ours, theirs in zip(results(TRITON.run, tensors, grad), expected, strict=True):
        assert ours.dtype == tensors[0].dtype
        limit = tolerance * max(1.0, theirs.abs().max().item() if theirs.numel() else 0.0)
        assert_close(ours.double(), theirs, rtol=0, atol=limit)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_definition(size):
    check(arguments(size), arrange=surrounded)


@pytest.mark.parametrize("layout", ["sliced", "channels last"])
@pytest.mark.parametrize("heads", [1, 2])
def test_any_layout(layout, heads):
    check(arguments((4, 5), heads=heads), arrange=LAYOUTS[layout])


@pytest.mark.parametrize(("depth", "value_depth"), [(1, 17), (40, 16)])
def test_depths(depth, value_depth):
    check(arguments((3, 5), 2, 1, depth, value_depth))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 4e-2), (torch.float16, 5e-3)], ids=str
)
def test_low_precision(dtype, tolerance):
    check(arguments((5, 7), dtype=dtype), tolerance)


def test_large_logits_do_not_overflow():
    query, *others = arguments((4, 5))
    check([100 * query, *others], 1e-4)
    query, key, *others = arguments((4, 5))
    check([100 * query.abs(), -key.abs(), *others], 1e-4)


def test_biases_of_any_stride():
    """The operator itself, whose arguments a caller may have sliced or expanded."""
    inputs = [torch.randn(2, 12, n, device=DEVICE) for n in (3, 3, 5, 3, 4)]
    run, grad = torch.ops.visgraft.biased_attention_triton, torch.randn(2, 12, 5, device=DEVICE)
    expected = results(lambda *x: run(*x)[0], inputs, grad)
    for arrange in (sliced, lambda x: x.mT.contiguous().mT):
        actual = results(lambda *x: run(*x)[0], [arrange(x) for x in inputs], arrange(grad))
        for ours, theirs in zip(actual, expected, strict=True):
            assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_indices_of_64_bits(monkeypatch):
    monkeypatch.setattr(OPERATOR, "needs_long_index", lambda *_: True)
    check(arguments((4, 5)), arrange=sliced)


@pytest.mark.parametrize("far", range(5), ids=["query", "key", "value", "by row", "by column"])
def test_elements_beyond_32_bits(far):
    """The third of three heads lies 2**31 elements off; nobody touches the memory between."""
    inputs = [torch.randn(3, 12, n, device=DEVICE).bfloat16() for n in (3, 3, 5, 3, 4)]
    run = torch.ops.visgraft.biased_attention_triton
    grad = torch.randn(3, 12, 5, device=DEVICE).bfloat16()
    expected = results(lambda *x: run(*x)[0], inputs, grad)
    torch.use_deterministic_algorithms(False)  # which would fill it
    near = inputs[far]
    whole = torch.empty(2**31 + near[0].numel(), dtype=torch.bfloat16, device=DEVICE)
    inputs[far] = whole.as_strided(near.shape, (2**30, *near.stride()[1:]))
    inputs[far].copy_(near)
    actual = results(lambda *x: run(*x)[0], inputs, grad)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_close(ours, theirs, rtol=0, atol=0)


def test_empty_batch():
    check(arguments((4, 5), batch=0))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_operators_are_registered_correctly():
    torch.use_deterministic_algorithms(False)
    inputs = [torch.randn(1, 6, n, device=DEVICE).requires_grad_() for n in (3, 3, 5, 3, 2)]
    operators = torch.ops.visgraft
    torch.library.opcheck(operators.biased_attention_triton.default, tuple(inputs))
    plain = [x.detach() for x in inputs]
    out, sums = operators.biased_attention_triton(*plain)
    backward, some = operators.biased_attention_triton_backward, ("test_schema", "test_faketensor")
    plain = (torch.randn_like(out), *plain, out, sums)
    torch.library.opcheck(backward.default, plain, test_utils=some)


def test_is_compiled_without_a_break():
    tensors = arguments((3, 4))
    with FlopCounterMode(display=False) as counter:
        out = relative_attention(*tensors, backend="triton")
    flops = 2 * 2 * 12 * (12 * (3 + 5) + (3 + 4) * 3)  # two heads: attention, and offset logits
    assert counter.get_total_flops() == flops
    graphs = []

    def backend(graph, _):
        graphs.append(str(graph.graph))
        return graph.forward

    compiled = torch.compile(
        lambda *tensors: relative_attention(*tensors, backend="triton"),
        fullgraph=True,
        backend=backend,
    )
    assert_close(compiled(*tensors), out)
    assert "biased_attention_triton" in graphs[0]
