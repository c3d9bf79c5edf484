"""Relative attention: the definition by hand, every form against it, and what is refused."""

import itertools
import sys
import time

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from visgraft.ops import relative_attention
from visgraft.ops.relative_attention import RELATIVE_ATTENTION

FORMS = ("direct", "chunked")


def make(size, depth=3, value_depth=3, dtype=torch.float64, batch=2, heads=2):
    """Returns a query, key, value and two tables that want gradients."""
    h, w = size
    shapes = [(batch, heads, d, h, w) for d in (depth, depth, value_depth)]
    shapes += [(2 * h - 1, depth), (2 * w - 1, depth)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def run_form(name, *args):
    """Runs a form by name, also where the dispatch would not choose it."""
    return next(i for i in RELATIVE_ATTENTION.implementations if i.name == name).run(*args)


def test_reference_is_the_definition():
    query, key, value, rows, columns = (x.detach() for x in make((3, 4), depth=2))
    h, w = 3, 4
    out = torch.empty_like(value)
    for y, x in itertools.product(range(h), range(w)):
        logits = torch.empty(2, 2, h, w, dtype=query.dtype)
        for p, q in itertools.product(range(h), range(w)):
            offset = rows[p - y + h - 1] + columns[q - x + w - 1]
            logits[:, :, p, q] = (query[..., y, x] * (key[..., p, q] + offset)).sum(2) / 2**0.5
        attention = logits.flatten(2).softmax(2).view(2, 2, 1, h, w)
        out[..., y, x] = (attention * value).sum((3, 4))
    ours = relative_attention(query, key, value, rows, columns, backend="reference")
    assert_close(ours, out, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("at_once", [8, 60, 2**20])
@pytest.mark.parametrize(("size", "value_depth"), [((1, 1), 3), ((1, 6), 3), ((5, 3), 2)])
def test_forms_agree(form, at_once, size, value_depth, monkeypatch):
    module = sys.modules["visgraft.ops.relative_attention.chunked"]
    monkeypatch.setattr(module, "_AT_ONCE_ON_CPU", at_once)
    args = make(size, value_depth=value_depth)
    expected = relative_attention(*args, backend="reference")
    probe = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * probe).sum(), args)
    y = run_form(form, *args)
    assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad((y * probe).sum(), args), gradients, strict=True):
        assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2), (torch.float16, 5e-3)]
)
def test_precision(form, dtype, tolerance):
    args = make((6, 5))
    expected = relative_attention(*args, backend="reference")
    y = run_form(form, *(x.detach().to(dtype) for x in args))
    assert y.dtype == dtype
    assert (y.double() - expected).abs().max() / expected.abs().max() < tolerance


def test_memory_is_linear_above_the_limit():
    """No tensor of one logit per pair of positions is kept for the backward pass."""
    args = make((24, 24), dtype=torch.float32, batch=1, heads=1)
    largest = 0

    def pack(tensor):
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        relative_attention(*args)
    assert largest < 24**4 / 10


@pytest.mark.parametrize(("size", "form"), [((20, 20), "direct"), ((20, 21), "chunked")])
def test_choice(size, form):
    explained = RELATIVE_ATTENTION.explain(*make(size, batch=1, heads=1))
    assert next(name for name, why in explained.items() if why == "ok") == form


def test_refusal_is_a_sentence():
    message = r"backend 'direct' cannot run here: the map has 420 positions, more than 400"
    with pytest.raises(ValueError, match=message):
        relative_attention(*make((20, 21), batch=1), backend="direct")


def test_operators_keep_the_rules_of_torch():
    args = [torch.randn(s, requires_grad=True) for s in ((3, 6, 4),) * 3 + ((3, 6, 2), (3, 6, 3))]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.visgraft.biased_attention.default, args, test_utils=tests)


def test_products_are_counted():
    args = make((21, 20), depth=4, value_depth=6, dtype=torch.float32, batch=1)
    positions, pairs = 420, 420**2
    tables = 2 * 2 * positions * (21 + 20) * 4
    with FlopCounterMode(display=False) as counter:
        y = relative_attention(*args)
    assert counter.get_total_flops() == 2 * 2 * pairs * (4 + 6) + tables
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * pairs * (3 * 4 + 2 * 6) + 2 * tables


def test_chunks_in_bfloat16_cost_no_more_than_a_few_times_float32():
    """Some products of matrices have no fast form in bfloat16, and cost a hundred times as much."""

    def seconds(dtype):
        args = make((16, 16), 32, 32, dtype)
        taken = []
        for _ in range(3):
            start = time.process_time()
            run_form("chunked", *args).sum().backward()
            taken.append(time.process_time() - start)
        return min(taken)

    assert seconds(torch.bfloat16) < 12 * seconds(torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(2, 2, 3, 4)}, r"query must be floating point and \(B, M, D, H, W\)"),
        ({"value": torch.zeros(2, 2, 3, 4, 5).int()}, r"value must be floating .* torch\.int32"),
        ({"key": torch.zeros(2, 2, 4, 4, 5)}, r"key must be \(2, 2, 3, 4, 5\) like query"),
        ({"value": torch.zeros(2, 1, 3, 4, 5)}, r"value must be \(2, 2, D, 4, 5\), got"),
        ({"rows": torch.zeros(9, 3)}, r"rows must be \(7, 3\) for this map, got \(9, 3\)"),
        ({"columns": torch.zeros(9, 4)}, r"columns must be \(9, 3\) for this map"),
        ({"backend": "fast"}, r"no backend 'fast'; it has native, direct"),
    ],
)
def test_rejects(change, message):
    x = torch.zeros(2, 2, 3, 4, 5)
    tables = {"rows": torch.zeros(7, 3), "columns": torch.zeros(9, 3)}
    with pytest.raises(ValueError, match=message):
        relative_attention(**{"query": x, "key": x, "value": x, **tables, **change})


def test_rejects_an_empty_map():
    x = torch.zeros(1, 1, 2, 0, 3)
    with pytest.raises(ValueError, match=r"the map has no positions"):
        relative_attention(x, x, x, torch.zeros(1, 2), torch.zeros(5, 2))
