"""Window attention: the definition by hand, every form against it, and what each refuses."""

import itertools
import sys
import weakref

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from visgraft.ops import window_attention
from visgraft.ops.window_attention import WINDOW_ATTENTION

FORMS = ("dense", "tiles")
TILES_MODULE = sys.modules["visgraft.ops.window_attention.tiles"]


def make(size, stride=1, dtype=torch.float64, batch=2, heads=2, depth=3):
    """Returns a query, a key and a value that want gradients."""
    shape = (batch, heads, depth)
    queries = [-(-n // stride) for n in size]
    return [
        torch.randn(*shape, *each, dtype=dtype, requires_grad=True)
        for each in (queries, size, size)
    ]


def run_form(name, *args):
    """Runs a form by name, also where the dispatch would not choose it."""
    return next(i for i in WINDOW_ATTENTION.implementations if i.name == name).run(*args)


def by_hand(query, key, value, kernel_size, stride, dilation):
    """One query at a time, from the words of the docstring."""

    def inside(position, size):
        if size > dilation * (kernel_size // 2):
            position = abs(position)
            return position if position < size else 2 * (size - 1) - position
        return min(max(position, 0), size - 1)

    h, w = key.shape[3:]
    offsets = [(u - kernel_size // 2) * dilation for u in range(kernel_size)]
    out = torch.empty_like(query)
    for i, j in itertools.product(*map(range, query.shape[3:])):
        rows = [inside(i * stride + u, h) for u in offsets]
        columns = [inside(j * stride + u, w) for u in offsets]
        keys = key[..., rows, :][..., columns].flatten(3)
        values = value[..., rows, :][..., columns].flatten(3)
        logits = torch.einsum("bmd,bmdp->bmp", query[..., i, j], keys) / query.shape[2] ** 0.5
        out[..., i, j] = torch.einsum("bmp,bmdp->bmd", logits.softmax(2), values)
    return out


@pytest.mark.parametrize(
    ("size", "numbers"),
    [((4, 9), (7, 1, 1)), ((2, 5), (5, 2, 1)), ((5, 3), (3, 1, 2)), ((1, 4), (3, 3, 1))],
)
def test_reference_is_the_definition(size, numbers):
    query, key, value = (x.detach() for x in make(size, numbers[1]))
    y = window_attention(query, key, value, *numbers, backend="reference")
    assert_close(y, by_hand(query, key, value, *numbers), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (9, 13), (17, 20)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(7, 1), (5, 2), (3, 3), (3, 6), (1, 2)])
def test_forms_agree(form, size, stride, kernel_size, dilation):
    args = make(size, stride)
    numbers = (kernel_size, stride, dilation)
    expected = window_attention(*args, *numbers, backend="reference")
    probe = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * probe).sum(), args)
    y = run_form(form, *args, *numbers)
    assert_close(y, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(torch.autograd.grad((y * probe).sum(), args), gradients, strict=True):
        assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)]
)
def test_precision(form, dtype, tolerance):
    args = make((11, 9))
    expected = window_attention(*args, 7, backend="reference")
    expected.sum().backward()
    low = [x.detach().to(dtype).requires_grad_() for x in args]
    y = run_form(form, *low, 7, 1, 1)
    y.float().sum().backward()
    assert y.dtype == dtype
    for ours, theirs in [
        (y, expected),
        *((a.grad, b.grad) for a, b in zip(low, args, strict=True)),
    ]:
        error = (ours.double() - theirs).abs().max() / theirs.abs().max()
        assert error < tolerance


def test_chunks_of_images_agree(monkeypatch):
    args = make((9, 9), batch=5)
    whole = run_form("tiles", *args, 3, 1, 1)
    monkeypatch.setattr(TILES_MODULE, "_AT_ONCE_ON_CPU", 2500)
    assert_close(run_form("tiles", *args, 3, 1, 1), whole, rtol=0, atol=0)


def test_tiles_keep_no_gathered_keys(monkeypatch):
    """The keys and values of the tiles are gone after the forward pass, and come back right."""
    made = []

    def key_tiles(x, index):
        tiles = TILES_MODULE.__dict__["original"](x, index)
        made.append(weakref.ref(tiles))
        return tiles

    monkeypatch.setattr(TILES_MODULE, "original", TILES_MODULE._key_tiles, raising=False)
    monkeypatch.setattr(TILES_MODULE, "_key_tiles", key_tiles)
    y = run_form("tiles", *make((20, 20)), 7, 1, 1)
    assert [tiles() for tiles in made] == [None, None]
    y.sum().backward()
    assert len(made) == 4


def test_changed_key_is_noticed():
    query, key, value = make((20, 20))
    key = key * 1
    y = run_form("tiles", query, key, value, 3, 1, 1)
    key.add_(1)
    with pytest.raises(RuntimeError, match="changed in place before the backward pass"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("size", "kernel_size", "form"),
    [((7, 7), 7, "dense"), ((14, 14), 7, "dense"), ((16, 16), 7, "tiles"), ((14, 14), 3, "tiles")],
)
def test_choice(size, kernel_size, form):
    args = (*make(size), kernel_size, 1, 1)
    chosen = next(n for n, why in WINDOW_ATTENTION.explain(*args).items() if why == "ok")
    assert chosen == form


def test_refusal_is_a_sentence():
    message = (
        r"backend 'dense' cannot run here: the map has 400 positions, over 1\.25 times the 169"
    )
    with pytest.raises(ValueError, match=message):
        window_attention(*make((20, 20)), 7, backend="dense")


def test_products_are_counted():
    query, key, value = make((7, 7), batch=1, heads=1, depth=4, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        window_attention(query, key, value, 7)
    assert counter.get_total_flops() == 2 * 2 * 49 * 49 * 4


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2])
def test_exported_graph_pads_each_size_right(stride):
    """Where the example reflects, other sizes repeat the edge, and the other way round."""

    class Mix(torch.nn.Module):
        def forward(self, key, value):
            return window_attention(key[..., ::stride, ::stride], key, value, 7, stride)

    dynamic = {
        0: torch.export.Dim.DYNAMIC,
        3: torch.export.Dim.DYNAMIC,
        4: torch.export.Dim.DYNAMIC,
    }
    _, key, value = (x.detach() for x in make((5, 3), dtype=torch.float32))
    program = torch.export.export(Mix(), (key, value), dynamic_shapes=(dynamic, dynamic)).module()
    for size in ((5, 3), (3, 4), (9, 20)):
        _, key, value = (x.detach() for x in make(size, dtype=torch.float32, batch=3))
        query = key[..., ::stride, ::stride]
        expected = window_attention(query, key, value, 7, stride, backend="reference")
        assert_close(program(key, value), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_size": 4}, r"kernel_size must be odd, got 4"),
        ({"kernel_size": 0}, r"kernel_size must be an integer >= 1, got 0"),
        ({"stride": 1.5}, r"stride must be an integer >= 1, got 1\.5"),
        ({"dilation": True}, r"dilation must be an integer >= 1, got True"),
        ({"query": torch.zeros(2, 2, 3, 4)}, r"query must be .*got torch\.float32 \(2, 2, 3, 4\)"),
        ({"key": torch.zeros(2, 2, 3, 4, 5).int()}, r"key must be floating point .*torch\.int32"),
        (
            {"value": torch.zeros(2, 2, 3, 4, 5).half()},
            r"value must have dtype and device of query",
        ),
        ({"value": torch.zeros(2, 2, 3, 4, 6)}, r"key and value must have one shape"),
        ({"stride": 2}, r"query must be \(2, 2, 3, 2, 3\) for this key and stride 2"),
        ({"backend": "fast"}, r"no backend 'fast'; it has triton, native, dense, tiles"),
    ],
)
def test_rejects(change, message):
    x = torch.zeros(2, 2, 3, 4, 5)
    with pytest.raises(ValueError, match=message):
        window_attention(**{"query": x, "key": x, "value": x, "kernel_size": 3, **change})


def test_rejects_an_empty_map():
    x = torch.zeros(1, 1, 2, 0, 3)
    with pytest.raises(ValueError, match=r"the map has no positions"):
        window_attention(x, x, x, 3)
