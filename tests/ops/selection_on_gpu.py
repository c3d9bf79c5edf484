"""The kernels of the selection against the definition in float64; see ``gpu_kernels``."""

import pytest
import torch
from torch.testing import assert_close

from tests.ops.gpu_kernels import DEVICE, channels_last, surrounded
from visgraft.ops._map_tiles import division
from visgraft.ops.selection import selection
from visgraft.ops.selection.reference import selection_reference
from visgraft.ops.selection.triton_operator import TRITON

SHAPES = {
    "odd": (2, 3, 5, 7),
    "several tiles": (1, 2, 19, 29),
    "several blocks of channels": (2, 17, 11, 12),
    "one position": (3, 5, 1, 1),
    "one row": (2, 1, 1, 9),
    "aligned": (1, 16, 4, 4),
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def _poisoned_outputs():
    """New tensors are full of NaN: what is not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def arguments(shape, dtype=torch.float32):
    """Returns both maps, the share and an upstream gradient."""
    maps = [torch.randn(shape) for _ in range(2)]
    share = torch.rand(*shape[:2], 1, 1)
    return [t.to(DEVICE, dtype) for t in (*maps, share, torch.randn(shape))]


def results(run, tensors, grad):
    """Returns the output and all gradients."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    out = run(*tensors)
    return [out, *torch.autograd.grad(out, tensors, grad)]


def check(tensors, tolerance=1e-5, arrange=lambda t: t):
    """Compares everything with float64; the maps are arranged first."""
    first, second, share, grad = tensors
    *tensors, grad = arrange(first), arrange(second), share, arrange(grad)
    expected = results(selection_reference, [t.double() for t in tensors], grad.double())
    actual = results(TRITON.run, tensors, grad)
    for ours, theirs in zip(actual, expected, strict=True):
        scale = max(1.0, theirs.abs().max().item()) if theirs.numel() else 1.0
        assert_close(ours.double(), theirs, rtol=0, atol=tolerance * scale)
    assert [t.dtype for t in actual] == [first.dtype, *(t.dtype for t in tensors)]
    return actual


@pytest.mark.parametrize("arrange", [surrounded, channels_last])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_definition(shape, arrange):
    out, *grads = check(arguments(SHAPES[shape]), arrange=arrange)
    if arrange is channels_last and out[0, 0].numel() > 1 < out.shape[1]:
        for t in (out, *grads[:2]):
            assert t.is_contiguous(memory_format=torch.channels_last)
            assert not t.is_contiguous()


@pytest.mark.parametrize("arrange", [surrounded, channels_last])
def test_tiles_of_one_program(monkeypatch, arrange):
    monkeypatch.setattr(division, "PROGRAMS", 1)
    monkeypatch.setattr(division, "VALUES", 512)
    x = arrange(torch.empty(SHAPES["several tiles"], device=DEVICE))
    assert division.Division.of(x).options["steps"] > 1
    check(arguments(SHAPES["several tiles"]), arrange=arrange)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype):
    check(arguments(SHAPES["several tiles"], dtype), TOLERANCE[dtype])


def test_share_of_another_dtype():
    first, second, share, grad = arguments(SHAPES["odd"], torch.bfloat16)
    check([first, second, share.float(), grad], TOLERANCE[torch.bfloat16])


def test_both_ends_are_the_maps():
    first, second, share, _ = arguments(SHAPES["odd"])
    assert torch.equal(TRITON.run(first * 1e8, second, torch.ones_like(share)), second)
    assert torch.equal(TRITON.run(first, second * 1e8, torch.zeros_like(share)), first)


def test_expanded_tensors():
    """Of stride 0, as the gradient of a sum is."""
    first, second, share, grad = arguments(SHAPES["odd"])
    check([first, second, share[:, :1].expand_as(share), grad[..., :1, :1].expand_as(first)])


def test_nan_stays_in_its_map():
    first, second, share, grad = arguments(SHAPES["several blocks of channels"])
    first[1, 7, 2, 2] = torch.nan
    out, _, _, to_share = results(TRITON.run, [first, second, share], grad)
    assert out.isnan().sum() == 1
    assert to_share.isnan().flatten().nonzero().tolist() == [[17 + 7]]


def test_indices_of_64_bits(monkeypatch):
    monkeypatch.setattr(division, "needs_long_index", lambda *_: True)
    for arrange in (surrounded, channels_last):
        check(arguments(SHAPES["odd"]), arrange=arrange)


def test_the_gradient_of_one_alone():
    tensors = arguments(SHAPES["odd"])
    grad = tensors.pop()
    expected = results(selection_reference, tensors, grad)[1:]
    for place in range(3):
        wanted = [t.detach().requires_grad_(i == place) for i, t in enumerate(tensors)]
        TRITON.run(*wanted).backward(grad)
        assert [t.grad is not None for t in wanted] == [i == place for i in range(3)]
        assert_close(wanted[place].grad, expected[place], rtol=1e-5, atol=1e-5)


def test_empty_batch():
    check(arguments((0, 3, 4, 4)))
    *_, to_share = check(arguments((2, 3, 0, 4)))
    assert not to_share.any()


def test_second_derivative():
    tensors = arguments((1, 2, 2, 3))[:3]

    def second(run, tensors):
        tensors = [t.detach().requires_grad_() for t in tensors]
        grads = torch.autograd.grad(run(*tensors).sin().sum(), tensors, None, True, True)
        return torch.autograd.grad(sum((g**2).sum() for g in grads), tensors)

    expected = second(selection_reference, [t.double() for t in tensors])
    for ours, theirs in zip(second(TRITON.run, tensors), expected, strict=True):
        assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("arrange", [torch.clone, channels_last])
def test_operators_are_registered_correctly(arrange):
    torch.use_deterministic_algorithms(False)
    first, second, share, grad = arguments((1, 2, 3, 2))
    first, second, grad = (arrange(t).requires_grad_() for t in (first, second, grad))
    tensors = (first, second, share.requires_grad_())
    operators = torch.ops.visgraft
    torch.library.opcheck(operators.selection_triton.default, tensors)
    torch.library.opcheck(
        operators.selection_triton_backward.default,
        (grad, *tensors),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_is_chosen_but_not_within_a_graph(monkeypatch):
    monkeypatch.setenv("VISGRAFT_NATIVE", "0")  # the interpreter's tensors are for C, too
    first, second, share, _ = arguments(SHAPES["odd"])
    out = selection(first, second, share)
    assert torch.equal(out, TRITON.run(first, second, share))
    graphs = []

    def backend(graph, _):
        graphs.append(str(graph.graph))
        return graph.forward

    compiled = torch.compile(lambda *tensors: selection(*tensors), fullgraph=True, backend=backend)
    assert_close(compiled(first, second, share), out)
    assert "selection_triton" not in graphs[0]
