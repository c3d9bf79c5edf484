"""The kernels for gates and means of strips against the definition; see ``gpu_kernels``."""

import pytest
import torch
from torch.testing import assert_close

from tests.ops.gpu_kernels import DEVICE, channels_last, surrounded
from visgraft.blocks.coord_attention import CoordAttention
from visgraft.ops._map_tiles import strips as division
from visgraft.ops.strip_gate import STRIP_GATE, STRIP_MEANS, strip_gate, strip_means
from visgraft.ops.strip_gate.reference import strip_gate_reference, strip_means_reference
from visgraft.ops.strip_gate.triton_means import TRITON as TRITON_MEANS
from visgraft.ops.strip_gate.triton_operator import TRITON

SHAPES = {
    "odd": (2, 3, 5, 7),
    "several blocks of channels": (2, 37, 4, 9),
    "one position": (3, 5, 1, 1),
    "one row": (2, 1, 1, 9),
    "one column": (1, 4, 6, 1),
    "wide": (1, 2, 3, 150),
    "tall": (1, 1, 150, 3),
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def _poisoned_outputs():
    """New tensors are full of NaN: what is not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def small_tiles(monkeypatch):
    """Makes a program take some tiles of many, one after the other."""
    monkeypatch.setattr(division, "VALUES", 64)
    monkeypatch.setattr(division, "PROGRAMS", 1)
    monkeypatch.setattr(division, "_COLUMNS", {False: 8, True: 4})


def arguments(shape, dtype=torch.float32, arrange=lambda t: t):
    """Returns the map and what is behind both gates, and a gradient for the map and the means."""
    b, c, h, w = shape
    sizes = (shape, (b, c, h, 1), (b, c, 1, w), shape, (b, c, h + w, 1))
    x, rows, columns, grad, of_means = (torch.randn(size).to(DEVICE, dtype) for size in sizes)
    return [arrange(x), rows, columns], arrange(grad), of_means


def results(run, tensors, grads):
    """Returns the outputs and all gradients."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    outputs = run(*tensors)
    return [*outputs, *torch.autograd.grad(outputs, tensors, grads)]


def gate(run):
    return lambda *tensors: (run(*tensors),)


def means(run):
    def both(x):
        strips, x = run(x)
        return strips, x * 0.5

    return both


def check(arguments, tolerance=1e-5):
    """Compares everything with float64."""
    tensors, grad, of_means = arguments
    for ours, theirs, inputs, grads in (
        (gate(TRITON.run), gate(strip_gate_reference), tensors, [grad]),
        (means(TRITON_MEANS.run), means(strip_means_reference), tensors[:1], [of_means, grad]),
    ):
        wide = [t.double() for t in inputs]
        expected = results(theirs, wide, [g.double() for g in grads])
        for mine, wanted in zip(results(ours, inputs, grads), expected, strict=True):
            assert mine.dtype == tensors[0].dtype
            scale = max(1.0, wanted.abs().max().item()) if wanted.numel() else 1.0
            assert_close(mine.double(), wanted, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("arrange", [surrounded, channels_last])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_definition(shape, arrange):
    check(arguments(SHAPES[shape], arrange=arrange))


@pytest.mark.parametrize("arrange", [surrounded, channels_last])
@pytest.mark.parametrize("programs", [1, 1024])
def test_many_tiles(programs, arrange, monkeypatch):
    small_tiles(monkeypatch)
    monkeypatch.setattr(division, "PROGRAMS", programs)
    call = arguments((1, 2, 9, 11), arrange=arrange)
    divided = division.StripDivision.of(call[0][0])
    assert divided.column_parts > 1
    assert (divided.options["steps"] > 1, divided.row_parts > 1) == (programs == 1, programs > 1)
    check(call)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype):
    check(arguments(SHAPES["several blocks of channels"], dtype), TOLERANCE[dtype])


def test_layouts_are_kept():
    (x, rows, columns), *_ = arguments(SHAPES["odd"], arrange=channels_last)
    for t in (TRITON.run(x, rows, columns), TRITON_MEANS.run(x)[0]):
        assert t.is_contiguous(memory_format=torch.channels_last)
        assert not t.is_contiguous()


def test_strips_and_gradients_of_any_strides():
    """Such as one of stride 0, the gradient of a sum, and halves of a tensor with both strips."""
    (x, rows, columns), grad, of_means = arguments(SHAPES["odd"])
    both = channels_last(torch.cat([rows, columns.transpose(2, 3)], 2))
    rows, columns = both.split([5, 7], 2)
    grad, of_means = grad[..., :1, :1].expand_as(grad), of_means[:, :1].expand_as(of_means)
    check(([x, rows, columns.transpose(2, 3)], grad, of_means))


def test_indices_of_64_bits(monkeypatch):
    monkeypatch.setattr(division, "needs_long_index", lambda *_: True)
    for arrange in (surrounded, channels_last):
        check(arguments(SHAPES["odd"], arrange=arrange))


def test_empty_batch():
    check(arguments((0, 3, 4, 5)))


def test_nan_stays_in_its_row_and_column():
    (x, rows, columns), *_ = arguments(SHAPES["odd"])
    x[1, 2, 3, 4] = torch.nan
    assert TRITON.run(x, rows, columns).isnan().sum() == 1
    strips, _ = TRITON_MEANS.run(x)
    assert strips.isnan().squeeze(3).nonzero().tolist() == [[1, 2, 3], [1, 2, 5 + 4]]


def test_gradient_of_the_means_is_added_where_that_of_the_map_lies():
    (x, *_), grad, of_means = arguments(SHAPES["odd"])
    strips, same = TRITON_MEANS.run(x.requires_grad_())
    (found,) = torch.autograd.grad((strips, same), x, (of_means, grad.clone()))
    (other,) = torch.autograd.grad(TRITON_MEANS.run(x)[0], x, of_means)
    assert_close(found, grad + other)


def test_second_derivative():
    (x, rows, columns), *_ = arguments((1, 2, 2, 3))

    def second(run_gate, run_means, tensors):
        tensors = [t.detach().requires_grad_() for t in tensors]
        strips, x = run_means(tensors[0])
        out = run_gate(x, *tensors[1:]).sin().sum() + (strips**3).sum()
        grads = torch.autograd.grad(out, tensors, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in grads), tensors)

    tensors = [x, rows, columns]
    exact = [t.double() for t in tensors]
    expected = second(strip_gate_reference, strip_means_reference, exact)
    for ours, theirs in zip(second(TRITON.run, TRITON_MEANS.run, tensors), expected, strict=True):
        assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("arrange", [torch.clone, channels_last])
def test_operators_are_registered_correctly(arrange):
    torch.use_deterministic_algorithms(False)
    tensors, grad, of_means = arguments((1, 2, 3, 2), arrange=arrange)
    for t in (*tensors, of_means):
        t.requires_grad_()
    operators, linear = torch.ops.visgraft, ("test_schema", "test_faketensor")
    torch.library.opcheck(operators.strip_gate_triton.default, tuple(tensors))
    torch.library.opcheck(operators.strip_means_triton.default, tuple(tensors[:1]))
    for operator, call in (
        (operators.strip_gate_triton_backward, (grad, *tensors)),
        (operators.strip_means_triton_backward, (of_means, 3, 2, arrange is channels_last)),
    ):
        torch.library.opcheck(operator.default, call, test_utils=linear)


def test_are_chosen(monkeypatch):
    monkeypatch.setenv("VISGRAFT_NATIVE", "0")  # the interpreter's tensors are for C, too
    (x, rows, columns), *_ = arguments(SHAPES["odd"])
    assert torch.equal(strip_gate(x, rows, columns), TRITON.run(x, rows, columns))
    assert torch.equal(strip_means(x)[0], TRITON_MEANS.run(x)[0])
    for answers in (STRIP_GATE.explain(x, rows, columns), STRIP_MEANS.explain(x)):
        assert next(name for name, why in answers.items() if why == "ok") == "triton"


def test_within_the_block(monkeypatch):
    monkeypatch.setenv("VISGRAFT_NATIVE", "0")  # the interpreter's tensors are for C, too
    block = CoordAttention(16).to(DEVICE)
    x, grad = torch.randn(2, 2, 16, 5, 6).to(DEVICE)

    def run(block, x):
        parameters = list(block.parameters())
        x = x.detach().requires_grad_()
        return torch.autograd.grad(block(x), [x, *parameters], grad.to(x.dtype))

    ours = run(block, x)
    for theirs, mine in zip(run(block.double(), x.double()), ours, strict=True):
        assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)
