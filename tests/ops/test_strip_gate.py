import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ops.native_checks import close, in_float64, needs, poisoned, threads
from visgraft.ops.strip_gate import STRIP_GATE, STRIP_MEANS, strip_gate, strip_means
from visgraft.ops.strip_gate.native import NATIVE as GATE
from visgraft.ops.strip_gate.native_means import NATIVE as MEANS
from visgraft.ops.strip_gate.reference import strip_gate_reference, strip_means_reference

SHAPES = [
    (2, 3, 1, 1), (1, 2, 1, 3), (2, 3, 9, 1), (1, 2, 3, 3), (2, 3, 7, 7), (1, 9, 4, 8),
    (1, 72, 9, 13), (2, 33, 5, 14), (1, 2, 61, 37), (0, 2, 4, 4), (3, 0, 4, 4), (2, 8, 3, 17),
]  # fmt: skip
FORMATS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def _available():
    needs(GATE, *make((1, 1, 1, 1)))
    needs(MEANS, torch.zeros(1, 1, 1, 1))


def make(shape, dtype=torch.float32, order=torch.contiguous_format):
    b, c, h, w = shape
    x = torch.randn(shape, dtype=dtype).to(memory_format=order)
    strips = (3 * torch.randn(b, c, *size, dtype=dtype) for size in ((h, 1), (1, w)))
    return [t.detach().requires_grad_() for t in (x, *strips)]


def gate_alone(implementation, x, rows, columns):
    return [implementation(x, rows, columns)]


def means_alone(implementation, x, *_):
    return [implementation(x)[0]]


def both(implementations, x, rows, columns):
    """The strips, and the gated map that `strip_means` hands on."""
    means, handed = implementations[0](x)
    return [implementations[1](handed, rows, columns), means]


NATIVE_FORMS = {gate_alone: GATE.run, means_alone: MEANS.run, both: (MEANS.run, GATE.run)}
REFERENCES = {
    gate_alone: strip_gate_reference,
    means_alone: strip_means_reference,
    both: (strip_means_reference, strip_gate_reference),
}


def results(what, forms, tensors):
    """Returns the results of a computation and the gradients of what takes part in it."""
    outs = what(forms[what], *tensors)
    wanted = tensors[:1] if what is means_alone else tensors
    wanted = [t for t in wanted if t.requires_grad]
    probes = [
        torch.linspace(-1, 2, o.numel(), dtype=torch.float64).view(o.shape).to(o.dtype)
        for o in outs
    ]
    return [*outs, *torch.autograd.grad(outs, wanted, probes)]


@pytest.mark.parametrize("what", NATIVE_FORMS)
@pytest.mark.parametrize("order", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_reference(dtype, order, what):
    for shape in SHAPES:
        tensors = make(shape, dtype, order)
        expected = results(what, REFERENCES, in_float64(tensors))
        with poisoned():
            close(results(what, NATIVE_FORMS, tensors), expected, dtype)


@pytest.mark.parametrize("order", FORMATS, ids=str)
def test_large_maps_keep_their_precision(order):
    """Sums over 700 values of one sign."""
    x, rows, columns = (t.detach().abs().requires_grad_() for t in make((1, 8, 700, 690)))
    x = x.detach().to(memory_format=order).requires_grad_()
    tensors = [x, rows, columns]
    close(
        results(both, NATIVE_FORMS, tensors),
        results(both, REFERENCES, in_float64(tensors)),
        torch.float32,
    )


@pytest.mark.parametrize("order", FORMATS, ids=str)
def test_gradient_of_another_order_or_expanded(order):
    for shape in ((2, 9, 5, 7), (2, 8, 6, 11)):
        x, rows, columns = make(shape, order=order)
        other = torch.randn(shape).mT.contiguous().mT
        for grad in (other, torch.tensor(0.5).expand(shape)):
            ours, theirs = (
                torch.autograd.grad(both(f[both], *ts)[0], ts, grad.to(ts[0].dtype))
                for f, ts in (
                    (NATIVE_FORMS, [x, rows, columns]),
                    (REFERENCES, in_float64([x, rows, columns])),
                )
            )
            close(ours, theirs, torch.float32)


def test_keeps_the_order_of_memory():
    x, rows, columns = make((2, 9, 5, 7), order=torch.channels_last)
    means, handed = MEANS.run(x)
    y = GATE.run(handed, rows, columns)
    grad = torch.autograd.grad(y.sum() + means.sum(), x)[0]
    for each in (means, y, grad):
        assert each.is_contiguous(memory_format=torch.channels_last)


def test_gates_of_another_dtype():
    """As autocast gives them: a float32 map and gates in bfloat16."""
    x, rows, columns = make((2, 3, 5, 4))
    tensors = [x, *(t.detach().bfloat16().requires_grad_() for t in (rows, columns))]
    ours = results(gate_alone, NATIVE_FORMS, tensors)
    assert [t.dtype for t in ours] == [torch.float32] * 2 + [torch.bfloat16] * 2
    expected = results(gate_alone, REFERENCES, in_float64(tensors))
    close(ours[:2], expected[:2], torch.float32)
    close(ours[2:], expected[2:], torch.bfloat16)


@pytest.mark.parametrize("order", FORMATS, ids=str)
def test_threads_do_not_change_a_bit(order, monkeypatch):
    tensors = make((3, 70, 6, 9), order=order)
    found = []
    for count in (1, 2, 5):
        with threads(count, monkeypatch):
            found.append(results(both, NATIVE_FORMS, tensors))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("order", FORMATS, ids=str)
@pytest.mark.parametrize("shape", [(1, 9, 5, 3), (1, 9, 5, 11)])
def test_nan_stays_in_its_row_and_column(shape, order):
    x, rows, columns = (t.detach() for t in make(shape, order=order))
    x[0, 4, 2, 1] = float("nan")
    means = MEANS.run(x)[0].isnan().nonzero()[:, 1:3].tolist()
    assert means == [[4, 2], [4, shape[2] + 1]]
    assert GATE.run(x, rows, columns).isnan().nonzero().tolist() == [[0, 4, 2, 1]]
    tensors = [t.requires_grad_() for t in (x, rows, columns)]
    found = torch.autograd.grad(GATE.run(*tensors).sum(), tensors)
    assert [g.isnan().nonzero().tolist() for g in found] == [[], [[0, 4, 2, 0]], [[0, 4, 0, 1]]]


def test_saturated_gates():
    rows = torch.tensor([-float("inf"), -1e4, 1e4, float("inf"), float("nan")]).view(1, 1, 5, 1)
    y = GATE.run(torch.ones(1, 1, 5, 2), rows, torch.full((1, 1, 1, 2), 1e4))
    expected = torch.tensor([0.0, 0.0, 1.0, 1.0, float("nan")]).view(1, 1, 5, 1)
    assert_close(y, expected.expand(1, 1, 5, 2), equal_nan=True, rtol=0, atol=1e-37)


@pytest.mark.parametrize("what", NATIVE_FORMS)
def test_second_derivatives(what):
    def second(forms, tensors):
        wanted = tensors[:1] if what is means_alone else tensors
        value = sum((o**2).sum() for o in what(forms[what], *tensors))
        first = torch.autograd.grad(value, wanted, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), wanted)

    tensors = make((2, 3, 3, 4))
    expected = second(REFERENCES, in_float64(tensors))
    close(second(NATIVE_FORMS, tensors), expected, torch.float32)


def test_the_gradient_of_one_alone():
    for place in range(3):
        tensors = make((2, 3, 3, 9))
        for other in range(3):
            tensors[other].requires_grad_(other == place)
        expected = results(gate_alone, REFERENCES, in_float64(tensors))
        close(results(gate_alone, NATIVE_FORMS, tensors), expected, torch.float32)


def test_reference_has_right_gradients():
    tensors = [t.double() for t in make((2, 2, 3, 4))]
    tensors = in_float64(tensors)
    assert torch.autograd.gradcheck(lambda *t: tuple(both(REFERENCES[both], *t)), tensors)


def test_a_graph_can_be_used_twice():
    """The gradient that is added to in its place is of that call alone."""
    tensors = make((2, 3, 5, 9))
    y, means = both(NATIVE_FORMS[both], *tensors)
    value = (y * y).sum() + (means * means).sum()
    first = torch.autograd.grad(value, tensors, retain_graph=True)
    kept = [t.clone() for t in first]
    again = torch.autograd.grad(value, tensors)
    for a, b, c in zip(first, kept, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_the_map_alone_or_the_means_alone():
    x, rows, columns = make((2, 3, 5, 9))
    means, handed = MEANS.run(x)
    y = GATE.run(handed, rows, columns)
    alone = torch.autograd.grad(GATE.run(x, rows, columns).sum(), x)[0]
    assert torch.equal(torch.autograd.grad(y.sum(), x, retain_graph=True)[0], alone)
    expected = torch.full_like(x, 1 / 9 + 1 / 5)
    assert_close(torch.autograd.grad(means.sum(), x)[0], expected)


def test_a_map_whose_gradient_lies_otherwise():
    x, *_ = make((2, 3, 5, 9))
    other = torch.randn(2, 3, 9, 5)
    grads = []
    for run, each in ((MEANS.run, x), (strip_means_reference, x.detach().double())):
        each = each.detach().requires_grad_()
        means, handed = run(each)
        value = (handed.mT * other).sum() + (means**3).sum()
        grads.append(torch.autograd.grad(value, each))
    close(*grads, torch.float32)


def test_keeps_only_its_arguments():
    x, rows, columns = make((2, 3, 16, 16))
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, id):
        both(NATIVE_FORMS[both], x, rows, columns)
    assert sorted(sizes) == sorted(t.numel() for t in (x, rows, columns))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("order", FORMATS, ids=str)
def test_operators_are_registered_correctly(order):
    x, rows, columns = make((2, 3, 4, 3), order=order)
    ops = torch.ops.visgraft
    torch.library.opcheck(ops.strip_gate_native.default, (x, rows, columns))
    torch.library.opcheck(ops.strip_means_native.default, (x,))
    with torch.no_grad():
        plain = x.detach(), rows.detach(), columns.detach()
        torch.library.opcheck(ops.strip_gate_native_backward.default, (x.detach() + 1, *plain))
        grad = torch.randn(2, 3, 7, 1)
        last = order == torch.channels_last
        torch.library.opcheck(ops.strip_means_native_backward.default, (grad, 4, 3, last))


class Watch(TorchDispatchMode):
    """Keeps the names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_seen_by_those_who_watch():
    tensors = make((2, 3, 5, 9))
    expected = results(both, NATIVE_FORMS, tensors)
    with Watch() as watch:
        watched = results(both, NATIVE_FORMS, tensors)
    assert all(torch.equal(a, b) for a, b in zip(watched, expected, strict=True))
    operators = ("strip_gate_native", "strip_means_native")
    names = {f"visgraft::{name}{end}" for name in operators for end in ("", "_backward")}
    assert watch.names >= names


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.double(), "needs float32 or bfloat16, got float64"),
        (
            lambda x: x.mT,
            "needs a map that lies row by row in memory, or with the channels last",
        ),
    ],
)
def test_refuses_in_a_sentence(change, reason):
    x, rows, columns = (t.detach() for t in make((2, 3, 4, 4)))
    assert STRIP_MEANS.explain(change(x))["native"] == reason
    assert STRIP_GATE.explain(change(x), rows, columns)["native"] == reason


def test_refuses_gates_that_would_widen_the_result():
    x, rows, columns = (t.detach() for t in make((2, 3, 4, 4)))
    reason = "needs gates no wider than the map, got torch.bfloat16 and torch.float32"
    assert STRIP_GATE.explain(x.bfloat16(), rows, columns)["native"] == reason
    assert strip_gate(x.bfloat16(), rows, columns).dtype == torch.float32


def test_refuses_wrong_shapes():
    x, rows, columns = make((2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"columns \(B, C, 1, W\), got .* and \(2, 3, 4, 1\)$"):
        strip_gate(x, rows, columns.mT)
    with pytest.raises(ValueError, match=r"needs a map \(B, C, H, W\), got \(2, 3, 0, 4\)"):
        strip_means(x[:, :, :0])
