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
from visgraft.ops.relative_attention import RELATIVE_ATTENTION, relative_attention
from visgraft.ops.relative_attention.native import NATIVE
from visgraft.ops.relative_attention.reference import relative_attention_reference

LARGE = (15, 14)  # more positions than the direct form is faster for


@pytest.fixture(autouse=True)
def _available():
    needs(NATIVE, *make(LARGE))


def make(size, dtype=torch.float32, batch=2, heads=2, depth=7, value_depth=5):
    maps = [torch.randn(batch, heads, d, *size) for d in (depth, depth, value_depth)]
    tables = [torch.randn(2 * n - 1, depth) for n in size]
    return [t.to(dtype).requires_grad_() for t in (*maps, *tables)]


@pytest.mark.parametrize("size", [(2, 3), (5, 7), (8, 8), (9, 13), (17, 20)], ids=str)
@pytest.mark.parametrize(("depth", "value_depth"), [(3, 5), (16, 16), (20, 7)])
def test_equals_reference(size, depth, value_depth):
    tensors = make(size, depth=depth, value_depth=value_depth)
    expected = gradients(relative_attention_reference, in_float64(tensors), ())
    with poisoned():
        close(gradients(NATIVE.run, tensors, ()), expected, torch.float32)


@pytest.mark.parametrize("size", [(5, 7), (16, 17)], ids=str)
def test_equals_reference_in_bfloat16(size):
    tensors = make(size, torch.bfloat16)
    expected = gradients(relative_attention_reference, in_float64(tensors), ())
    ours = gradients(NATIVE.run, tensors, ())
    close(ours[:1], expected[:1], torch.bfloat16)
    for mine, wanted in zip(ours[1:], expected[1:], strict=True):
        assert (mine.double() - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_one_position_copies_its_value():
    tensors = make((1, 1))
    out, *grads = gradients(NATIVE.run, tensors, ())
    assert torch.equal(out, tensors[2])
    assert all(g.abs().max() < 1e-6 for g in (*grads[:2], *grads[3:]))


def test_large_logits_neither_overflow_nor_vanish():
    tensors = make((6, 7))
    tensors[0] = (300 * tensors[0]).detach().requires_grad_()
    expected = relative_attention_reference(*in_float64(tensors))
    ours = gradients(NATIVE.run, tensors, ())
    assert all(t.isfinite().all() for t in ours)
    torch.testing.assert_close(ours[0].double(), expected, rtol=0, atol=1e-3)


def test_threads_do_not_change_a_bit(monkeypatch):
    check_equal_bits(NATIVE.run, make((7, 5), batch=3), (), monkeypatch)


def test_heads_and_channels_may_lie_apart():
    tensors = make((6, 7))
    expected = gradients(NATIVE.run, tensors, ())
    apart = [t.detach().transpose(1, 2).contiguous().transpose(1, 2) for t in tensors[:3]]
    last = [
        t.detach().permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2) for t in tensors[:3]
    ]
    for layout in (apart, last):
        layout = [t.requires_grad_() for t in layout]
        ours = gradients(NATIVE.run, [*layout, *tensors[3:]], ())
        for mine, wanted in zip(ours, expected, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


def test_empty_batch():
    tensors = make((6, 7), batch=0)
    results = gradients(NATIVE.run, tensors, ())
    assert [t.shape for t in results[1:]] == [t.shape for t in tensors]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_operator_is_registered_correctly():
    maps = [t.detach().requires_grad_() for t in make((3, 4))[:3]]
    biases = [torch.randn(2, 2, n, 3, 4, requires_grad=True) for n in (3, 4)]
    operator = torch.ops.visgraft.biased_attention_native.default
    torch.library.opcheck(operator, (*maps, *biases))


def test_compiled_graph_calls_it_and_exported_graph_does_not():
    tensors = [t.detach() for t in make(LARGE, batch=1)]
    graphs = []

    def keep(module, _):
        graphs.append(str(module.graph))
        return module.forward

    compiled = torch.compile(relative_attention, fullgraph=True, backend=keep)
    assert torch.equal(compiled(*tensors), relative_attention(*tensors))
    assert "biased_attention_native" in graphs[0]

    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return relative_attention(*tensors)

    graph = str(torch.export.export(Module(), tuple(tensors)).graph)
    assert "visgraft" not in graph
    assert "softmax" in graph


def test_memory_does_not_grow_with_the_square_of_the_map():
    """What is saved for the backward pass: the arguments and the two biases, no attention."""
    kept = []
    tensors = make((20, 20), batch=1, heads=1)

    def note(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        NATIVE.run(*tensors)
    assert max(kept) == 400 * 20


def test_products_are_counted():
    query, key, value, *_ = make((15, 14), batch=1, heads=1, depth=4, value_depth=6)
    biases = [torch.zeros(1, 1, n, 15, 14) for n in (15, 14)]
    with FlopCounterMode(display=False) as counter:
        out = torch.ops.visgraft.biased_attention_native(query, key, value, *biases)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert forward == 2 * 210**2 * 10
    assert counter.get_total_flops() == forward + 2 * 210**2 * (12 + 12)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ([t.detach().double() for t in make(LARGE)], "needs float32 or bfloat16, got float64"),
        ([t.detach().to("meta") for t in make(LARGE)], "needs CPU tensors, got meta"),
        (make((14, 14)), "the map has 196 positions; up to 200 the direct form is faster"),
        (
            [*make(LARGE)[:2], make(LARGE)[2].bfloat16(), *make(LARGE)[3:]],
            "needs one dtype, got torch.float32, torch.float32 and torch.bfloat16",
        ),
    ],
)
def test_refuses_in_a_sentence(tensors, reason):
    assert RELATIVE_ATTENTION.explain(*tensors)["native"] == reason
