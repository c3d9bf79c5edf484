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
from visgraft.ops.window_attention import WINDOW_ATTENTION, window_attention
from visgraft.ops.window_attention.native import NATIVE
from visgraft.ops.window_attention.reference import window_attention_reference

SIZES = [(1, 9), (2, 3), (7, 7), (9, 13), (17, 20)]


@pytest.fixture(autouse=True)
def _available():
    needs(NATIVE, *make((9, 9)))


def make(size, stride=1, dtype=torch.float32, batch=2, heads=2, depth=7):
    shape = (batch, heads, depth)
    queries = [-(-n // stride) for n in size]
    return [
        torch.randn(*shape, *each, dtype=dtype).requires_grad_() for each in (queries, size, size)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(7, 1), (5, 2), (3, 3), (3, 6), (9, 1)])
def test_equals_reference(dtype, stride, kernel_size, dilation):
    numbers = (kernel_size, stride, dilation)
    for size in SIZES:
        tensors = make(size, stride, dtype)
        expected = gradients(window_attention_reference, in_float64(tensors), numbers)
        with poisoned():
            close(gradients(NATIVE.run, tensors, numbers), expected, dtype)


@pytest.mark.parametrize("depth", [1, 4, 6])
def test_any_depth_and_a_window_of_one(depth):
    tensors = make((9, 8), depth=depth)
    for kernel_size in (1, 3):
        numbers = (kernel_size, 1, 1)
        expected = gradients(window_attention_reference, in_float64(tensors), numbers)
        close(gradients(NATIVE.run, tensors, numbers), expected, torch.float32)


def test_large_logits_neither_overflow_nor_vanish():
    query, key, value = make((9, 9))
    tensors = [(300 * query).detach().requires_grad_(), key, value]
    expected = gradients(window_attention_reference, in_float64(tensors), (7, 1, 1))
    ours = gradients(NATIVE.run, tensors, (7, 1, 1))
    assert all(t.isfinite().all() for t in ours)
    torch.testing.assert_close(ours[0].double(), expected[0], rtol=0, atol=1e-3)


def test_nan_is_seen_by_the_windows_that_contain_it_and_by_no_other():
    query, key, value = (t.detach() for t in make((11, 12), batch=1, heads=1))
    key[..., 5, 6] = torch.nan
    out = NATIVE.run(query, key, value, 3, 1, 1)
    expected = torch.zeros(11, 12, dtype=torch.bool)
    expected[4:7, 5:8] = True
    assert torch.equal(out[0, 0].isnan().any(0), expected)


def test_threads_do_not_change_a_bit(monkeypatch):
    check_equal_bits(NATIVE.run, make((9, 11), batch=3), (5, 1, 1), monkeypatch)


def test_heads_and_channels_may_lie_apart():
    """As in ACmix, where the three are slices of one tensor with heads and channels exchanged."""
    tensors = make((9, 10))
    expected = gradients(NATIVE.run, tensors, (7, 1, 1))
    joined = torch.cat([t.detach().transpose(1, 2) for t in tensors], 2)
    apart = [t.transpose(1, 2).requires_grad_() for t in joined.split(2, 2)]
    assert not apart[0].is_contiguous()
    last = [t.detach().mT.contiguous().mT.requires_grad_() for t in tensors]
    for layout in (apart, last):
        ours = gradients(NATIVE.run, layout, (7, 1, 1))
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_empty_batch():
    tensors = make((9, 9), batch=0)
    results = gradients(NATIVE.run, tensors, (7, 1, 1))
    assert [t.shape for t in results[1:]] == [t.shape for t in tensors]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_operator_is_registered_correctly():
    operator = torch.ops.visgraft.window_attention_native.default
    torch.library.opcheck(operator, (*make((9, 8), 2), 3, 2, 1))


def test_cannot_be_differentiated_twice():
    tensors = make((9, 9))
    first = torch.autograd.grad(NATIVE.run(*tensors, 3, 1, 1).sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        first[0].sum().backward()


def test_compiled_graph_calls_it_and_exported_graph_does_not():
    tensors = [t.detach() for t in make((9, 9))]
    graphs = []

    def keep(module, _):
        graphs.append(str(module.graph))
        return module.forward

    def run(*tensors):
        return window_attention(*tensors, 7)

    compiled = torch.compile(run, fullgraph=True, backend=keep)
    assert torch.equal(compiled(*tensors), run(*tensors))
    assert "window_attention_native" in graphs[0]

    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return run(*tensors)

    graph = str(torch.export.export(Module(), tuple(tensors)).graph)
    assert "visgraft" not in graph
    assert "scaled_dot_product_attention" in graph


def test_products_are_counted():
    tensors = make((9, 9), batch=1, heads=1, depth=4)
    with FlopCounterMode(display=False) as counter:
        out = NATIVE.run(*tensors, 7, 1, 1)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 2 * 2 * 81 * 49 * 4
    assert counter.get_total_flops() == forward * 7 // 2


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ([t.detach().double() for t in make((9, 9))], "needs float32 or bfloat16, got float64"),
        ([t.detach().to("meta") for t in make((9, 9))], "ok"),  # counted, not computed
        (make((8, 8)), "the map has 64 positions; up to 64 the dense form is faster"),
    ],
)
def test_takes_the_call_or_refuses_in_a_sentence(tensors, reason):
    assert WINDOW_ATTENTION.explain(*tensors, 7, 1, 1)["native"] == reason


def test_meta_tensors_have_shapes_and_nothing_else():
    tensors = [t.detach().to("meta").requires_grad_() for t in make((9, 9))]
    out = window_attention(*tensors, kernel_size=7)
    out.sum().backward()
    with torch.no_grad():
        again = window_attention(*tensors, kernel_size=7)
    assert out.is_meta
    assert out.shape == again.shape == tensors[2].shape
    assert [t.grad.shape for t in tensors] == [t.shape for t in tensors]
