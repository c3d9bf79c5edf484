"""The kernels of batch normalisation against the definition in float64; see ``gpu_kernels``."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.ops.gpu_kernels import DEVICE, channels_last, surrounded
from visgraft.blocks import _norm_activation
from visgraft.blocks._norm_activation import normalised_and_pooled
from visgraft.ops._map_tiles import division
from visgraft.ops.batch_norm_activation import ACTIVATIONS, batch_norm_activation
from visgraft.ops.batch_norm_activation.reference import batch_norm_activation_reference
from visgraft.ops.batch_norm_activation.triton_operator import TRITON

SHAPES = {
    "odd": (2, 3, 5, 7),
    "several tiles": (2, 2, 19, 29),
    "several blocks of channels": (3, 41, 5, 4),
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
    """Returns the map, weight and bias."""
    x = torch.randn(shape) * 2 + torch.arange(shape[1]).view(-1, 1, 1) % 5 - 1
    return [x.to(DEVICE, dtype), *(torch.randn(shape[1], device=DEVICE) for _ in range(2))]


def results(run, tensors, numbers, probes):
    """Returns what a call returns and the gradients of the first two, each with its own probe."""
    tensors = [t.detach().requires_grad_() for t in tensors]
    outputs = run(*tensors, *numbers)
    assert not any(t.requires_grad for t in outputs[2:])
    probes = [p.to(y.dtype) for p, y in zip(probes, outputs, strict=False)]
    return [*outputs, *torch.autograd.grad(outputs[:2], tensors, probes)]


def check(tensors, activation="silu", tolerance=1e-5, arrange=lambda t: t):
    """Compares everything with float64; the maps are arranged first."""
    x, weight, bias = tensors
    probes = [arrange(torch.randn_like(x)), torch.randn_like(x[..., :1, :1])]
    tensors, numbers = [arrange(x), weight, bias], (1e-3, activation)
    exact = [t.double() for t in tensors]
    expected = results(batch_norm_activation_reference, exact, numbers, probes)
    actual = results(TRITON.run, tensors, numbers, probes)
    of_map = (True, True, False, False, True, False, False)
    for ours, theirs, rounded in zip(actual, expected, of_map, strict=True):
        assert ours.dtype == (x.dtype if rounded else torch.float32)
        limit = (tolerance if rounded else 1e-5) * max(1.0, theirs.abs().max().item())
        assert_close(ours.double(), theirs, rtol=0, atol=limit)
    return actual


@pytest.mark.parametrize("arrange", [surrounded, channels_last])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_definition(shape, arrange):
    y, *_, to_x, _, _ = check(arguments(SHAPES[shape]), arrange=arrange)
    if arrange is channels_last and y[0, 0].numel() > 1 < y.shape[1]:
        for t in (y, to_x):
            assert t.is_contiguous(memory_format=torch.channels_last)
            assert not t.is_contiguous()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    check(arguments(SHAPES["odd"]), activation)


@pytest.mark.parametrize("arrange", [surrounded, channels_last])
def test_tiles_of_one_program(monkeypatch, arrange):
    monkeypatch.setattr(division, "PROGRAMS", 1)
    monkeypatch.setattr(division, "VALUES", 512)
    tensors = arguments(SHAPES["several tiles"])
    assert division.Division.of(arrange(tensors[0])).options["steps"] > 1
    check(tensors, arrange=arrange)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision(dtype):
    check(arguments(SHAPES["several tiles"], dtype), tolerance=TOLERANCE[dtype])
    check(arguments(SHAPES["odd"], dtype), "relu", TOLERANCE[dtype])


@pytest.mark.parametrize("programs", [1, 1024])
def test_statistics_of_values_far_from_zero(monkeypatch, programs):
    """A variance from sums of squares would be lost beside a mean of 10 000."""
    monkeypatch.setattr(division, "PROGRAMS", programs)
    x = (torch.randn(2, 2, 45, 35) + 1e4).to(DEVICE)
    one, zero = torch.ones(2, device=DEVICE), torch.zeros(2, device=DEVICE)
    _, _, mean, variance = TRITON.run(x, one, zero, 1e-5, "none")
    assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=2e-7, atol=0)
    assert_close(variance.double(), x.double().var((0, 2, 3), correction=0), rtol=1e-5, atol=0)


def test_first_value_far_from_the_others():
    """As in an image with a black corner: distances from it alone would lose the variance."""
    x = (torch.randn(2, 1, 45, 35) + 1e3).to(DEVICE)
    x[..., 0, 0] = 0
    one, zero = torch.ones(1, device=DEVICE), torch.zeros(1, device=DEVICE)
    *_, variance = TRITON.run(x, one, zero, 1e-5, "none")
    assert_close(variance.double(), x.double().var((0, 2, 3), correction=0), rtol=1e-5, atol=0)


def test_extreme_values_do_not_overflow():
    x = torch.tensor([-1.0, 1.0], device=DEVICE).view(2, 1, 1, 1)
    weight = torch.tensor([1e6], device=DEVICE, requires_grad=True)
    y, *_ = TRITON.run(x, weight, torch.zeros(1, device=DEVICE), 0.0, "silu")
    assert y.flatten().tolist() == pytest.approx([0, 1e6])
    y.sum().backward()
    assert weight.grad.item() == pytest.approx(1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_stays_nan_and_in_its_channel(activation):
    x, weight, bias = arguments(SHAPES["odd"])
    x[1, 0, 2, 2] = torch.nan
    y, *_ = TRITON.run(x, weight, bias, 1e-5, activation)
    assert y[:, 0].isnan().all()
    assert y[:, 1:].isfinite().all()


@pytest.mark.parametrize("place", [0, 1])
def test_one_gradient_of_two(place):
    tensors = [t.requires_grad_() for t in arguments(SHAPES["odd"])]
    grads = torch.autograd.grad(TRITON.run(*tensors, 1e-5, "silu")[place].square().sum(), tensors)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    wanted = batch_norm_activation_reference(*exact, 1e-5, "silu")[place].square().sum()
    for ours, theirs in zip(grads, torch.autograd.grad(wanted, exact), strict=True):
        assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-4)


def test_indices_of_64_bits(monkeypatch):
    monkeypatch.setattr(division, "needs_long_index", lambda *_: True)
    for arrange in (surrounded, channels_last):
        check(arguments(SHAPES["odd"]), arrange=arrange)


def test_no_channels():
    x, weight, bias = (t.requires_grad_() for t in arguments((2, 0, 3, 3)))
    y, pooled, mean, variance = TRITON.run(x, weight, bias, 1e-5, "relu")
    assert [tuple(t.shape) for t in (y, pooled, mean, variance)] == [
        (2, 0, 3, 3),
        (2, 0, 1, 1),
        (0,),
        (0,),
    ]
    y.sum().backward()
    assert weight.grad.shape == (0,)


def test_second_derivative():
    tensors = arguments((3, 2, 2, 3))

    def second(run, tensors):
        tensors = [t.detach().requires_grad_() for t in tensors]
        y, pooled, *_ = run(*tensors, 1e-5, "silu")
        out = (y * y).sum() + (pooled**3).sum()
        first = torch.autograd.grad(out, tensors, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), tensors)

    expected = second(batch_norm_activation_reference, [t.double() for t in tensors])
    for ours, theirs in zip(second(TRITON.run, tensors), expected, strict=True):
        assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("arrange", [torch.clone, channels_last])
def test_operators_are_registered_correctly(arrange):
    torch.use_deterministic_algorithms(False)
    x, weight, bias = arguments((2, 2, 3, 2))
    tensors = [t.requires_grad_() for t in (arrange(x), weight, bias)]
    operators = torch.ops.visgraft
    torch.library.opcheck(operators.batch_norm_activation_triton.default, (*tensors, 1e-5, "silu"))
    y, pooled, mean, variance = (t.detach() for t in TRITON.run(*tensors, 1e-5, "silu"))
    torch.library.opcheck(
        operators.batch_norm_activation_triton_backward.default,
        (y, pooled, *(t.detach() for t in tensors), mean, variance, 1e-5, "silu"),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_is_chosen(monkeypatch):
    monkeypatch.setenv("VISGRAFT_NATIVE", "0")  # the interpreter's tensors are for C, too
    tensors = arguments(SHAPES["odd"])
    for ours, theirs in zip(
        batch_norm_activation(*tensors, activation="relu"),
        TRITON.run(*tensors, 1e-5, "relu"),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_does_what_the_module_does(monkeypatch):
    ours, theirs = (nn.BatchNorm2d(3, eps=1e-2, momentum=0.3, device=DEVICE) for _ in range(2))
    monkeypatch.setattr(_norm_activation, "_LEAST", 0)
    monkeypatch.setenv("VISGRAFT_NATIVE", "0")  # the interpreter's tensors are for C, too
    for _ in range(2):
        x = torch.randn(2, 3, 5, 4, device=DEVICE)
        wanted = nn.functional.silu(theirs(x))
        with monkeypatch.context() as inner:
            inner.setattr(nn.BatchNorm2d, "forward", None)  # not called
            y, pooled = normalised_and_pooled(ours, x, "silu")
        assert_close(y, wanted)
        assert_close(pooled, wanted.mean((2, 3), keepdim=True))
    assert ours.num_batches_tracked == 2
    for name, buffer in theirs.named_buffers():
        assert_close(ours.get_buffer(name), buffer)
