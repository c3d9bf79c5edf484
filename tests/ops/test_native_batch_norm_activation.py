import pytest
import torch
from torch import nn

from tests.ops.native_checks import check_equal_bits, close, in_float64, needs, poisoned
from visgraft.blocks import _norm_activation
from visgraft.blocks._norm_activation import normalised, normalised_and_pooled
from visgraft.ops.batch_norm_activation import BATCH_NORM_ACTIVATION, batch_norm_activation
from visgraft.ops.batch_norm_activation.native import NATIVE
from visgraft.ops.batch_norm_activation.reference import (
    ACTIVATIONS,
    batch_norm_activation_reference,
)

SHAPES = [(3, 2, 1, 1), (2, 5, 1, 7), (1, 3, 7, 7), (4, 2, 3, 3), (2, 3, 5, 8), (2, 2, 61, 37)]


@pytest.fixture(autouse=True)
def _available():
    needs(NATIVE, *make((2, 1, 1, 1)), 1e-5, "relu")


def make(shape, dtype=torch.float32):
    x = (torch.randn(shape) * 2 + torch.arange(shape[1]).view(-1, 1, 1) - 1).to(dtype)
    weight, bias = torch.randn(shape[1]), torch.randn(shape[1])
    return [t.requires_grad_() for t in (x, weight, bias)]


def results(run, tensors, numbers):
    """Returns what a call returns and the gradients of the first two, each with its own probe."""
    outputs = run(*tensors, *numbers)
    probes = [  # numbers that each dtype holds
        torch.linspace(-1, 2, y.numel()).sin().bfloat16().view(y.shape).to(y.dtype)
        for y in outputs[:2]
    ]
    assert not any(t.requires_grad for t in outputs[2:])
    return [*outputs, *torch.autograd.grad(outputs[:2], tensors, probes)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_equals_reference(activation, dtype):
    for shape in SHAPES:
        tensors = make(shape, dtype)
        numbers = (1e-3, activation)
        expected = results(batch_norm_activation_reference, in_float64(tensors), numbers)
        with poisoned():
            ours = results(NATIVE.run, tensors, numbers)
        for place, (mine, wanted) in enumerate(zip(ours, expected, strict=True)):
            of_map = place in (0, 1, 4)
            close([mine], [wanted], dtype if of_map else torch.float32 if place < 4 else mine.dtype)


def test_one_gradient_of_two():
    call = (*make((2, 3, 6, 5)), 1e-5, "silu")
    for place in (0, 1):
        grads = torch.autograd.grad(NATIVE.run(*call)[place].square().sum(), call[:3])
        tensors = in_float64(call[:3])
        wanted = batch_norm_activation_reference(*tensors, *call[3:])[place]
        close(grads, torch.autograd.grad(wanted.square().sum(), tensors), torch.float32)


def test_statistics_of_values_far_from_zero():
    """A variance from sums of squares would be lost beside a mean of 10 000."""
    x = torch.randn(2, 2, 90, 70) + 1e4
    _, _, mean, variance = NATIVE.run(x, torch.ones(2), torch.zeros(2), 1e-5, "none")
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-7, atol=0)
    wanted = x.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance.double(), wanted, rtol=1e-5, atol=0)


def test_extreme_values_do_not_overflow():
    x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)
    weight = torch.tensor([1e6], requires_grad=True)
    y, *_ = NATIVE.run(x, weight, torch.zeros(1), 0.0, "silu")
    assert y.flatten().tolist() == pytest.approx([0, 1e6])
    y.sum().backward()
    assert weight.grad.item() == pytest.approx(1)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_stays_nan_and_in_its_channel(activation):
    x, weight, bias = (t.detach() for t in make((2, 2, 5, 5)))
    x[1, 0, 2, 2] = torch.nan
    y, *_ = NATIVE.run(x, weight, bias, 1e-5, activation)
    assert y[:, 0].isnan().all()
    assert y[:, 1].isfinite().all()


def test_threads_do_not_change_a_bit(monkeypatch):
    tensors = make((3, 7, 6, 5))

    def first(*args):
        y, pooled, *_ = NATIVE.run(*args)
        return y + pooled

    check_equal_bits(first, tensors, (1e-5, "silu"), monkeypatch)


def test_second_derivatives():
    def second(run, tensors):
        y, pooled, *_ = run(*tensors, 1e-5, "silu")
        out = (y * y).sum() + (pooled**3).sum()
        first = torch.autograd.grad(out, tensors, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), tensors)

    tensors = make((3, 2, 4, 3))
    expected = second(batch_norm_activation_reference, in_float64(tensors))
    close(second(NATIVE.run, tensors), expected, torch.float32)
    x, weight, bias = make((3, 2, 4, 3))
    weight.requires_grad_(False)
    y, *_ = NATIVE.run(x, weight, bias, 1e-5, "silu")
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    assert grad.requires_grad


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_operators_are_registered_correctly():
    x, weight, bias = make((2, 3, 4, 3))
    ops = torch.ops.visgraft
    torch.library.opcheck(ops.batch_norm_activation_native.default, (x, weight, bias, 1e-5, "silu"))
    y, pooled, mean, variance = (t.detach() for t in NATIVE.run(x, weight, bias, 1e-5, "silu"))
    torch.library.opcheck(
        ops.batch_norm_activation_native_backward.default,
        (y, pooled, *(t.detach() for t in (x, weight, bias)), mean, variance, 1e-5, "silu"),
    )


def test_is_seen_by_what_watches_operators():
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    tensors = make((2, 3, 4, 3))
    with Watch():
        results(NATIVE.run, tensors, (1e-5, "relu"))
    named = "visgraft.batch_norm_activation_native"
    assert [name for name in seen if "visgraft" in name] == [
        f"{named}.default",
        f"{named}_backward.default",
    ]


# --- in place of a module ------------------------------------------------------------------------


def twins(channels=3):
    ours = nn.BatchNorm2d(channels, eps=1e-2, momentum=0.3)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs = nn.BatchNorm2d(channels, eps=1e-2, momentum=0.3)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def calls(monkeypatch, least=0):
    """Returns the list of calls of the module from now on; maps of any size are large enough."""
    monkeypatch.setattr(_norm_activation, "_LEAST", least)
    made = []
    forward = nn.BatchNorm2d.forward
    monkeypatch.setattr(
        nn.BatchNorm2d, "forward", lambda self, x: made.append(self) or forward(self, x)
    )
    return made


def test_does_what_the_module_does(monkeypatch):
    ours, theirs = twins()
    made = calls(monkeypatch)
    for _ in range(3):
        x = torch.randn(2, 3, 5, 4)
        y, pooled = normalised_and_pooled(ours, x, "silu")
        assert made == []
        wanted = nn.functional.silu(theirs(x))
        made.clear()
        torch.testing.assert_close(y, wanted)
        torch.testing.assert_close(pooled, wanted.mean((2, 3), keepdim=True))
    assert ours.num_batches_tracked == 3
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer)


def in_eval(norm):
    norm.eval()


def frozen_statistics(norm):
    norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None


def cumulative(norm):
    norm.momentum = None


def hooked(norm):
    norm.register_forward_hook(lambda *_: None)


def hooked_before(norm):
    norm.register_forward_pre_hook(lambda *_: None)


def hooked_backward(norm):
    norm.register_full_backward_hook(lambda *_: None)


def patched(norm):
    norm.forward = lambda x: nn.BatchNorm2d.forward(norm, x)


def wide(norm):
    norm.double()


@pytest.mark.parametrize(
    "change",
    [
        in_eval,
        frozen_statistics,
        cumulative,
        hooked,
        hooked_before,
        hooked_backward,
        patched,
        wide,
    ],
)
def test_calls_the_module_where_it_does_more_or_less(change, monkeypatch):
    ours, theirs = twins()
    made = calls(monkeypatch)
    change(ours)
    change(theirs)
    x = torch.randn(2, 3, 5, 4, dtype=ours.weight.dtype)
    y, pooled = normalised_and_pooled(ours, x, "relu")
    assert made == [ours]
    wanted = theirs(x).relu()
    assert torch.equal(y, wanted)
    assert torch.equal(normalised(theirs, x, "relu"), y)
    assert torch.equal(pooled, wanted.mean((2, 3), keepdim=True))


def test_calls_the_module_on_small_maps(monkeypatch):
    ours, theirs = twins()
    made = calls(monkeypatch, least=121)
    x = torch.randn(2, 3, 5, 4)
    assert torch.equal(normalised(ours, x, "relu"), theirs(x).relu())
    assert made == [ours, theirs]
    normalised(ours, torch.randn(1, 3, 41, 1), "relu")
    assert made == [ours, theirs]


@pytest.mark.parametrize("kind", [nn.SyncBatchNorm, nn.InstanceNorm2d, nn.Identity])
def test_calls_other_modules(kind, monkeypatch):
    monkeypatch.setattr(_norm_activation, "_LEAST", 0)
    norm = kind(3).train()
    monkeypatch.setattr(kind, "forward", lambda _, x: x - 2)
    x = torch.randn(2, 3, 5, 4)
    assert torch.equal(normalised(norm, x, "relu"), (x - 2).relu())


def test_a_single_value_is_the_modules_error(monkeypatch):
    monkeypatch.setattr(_norm_activation, "_LEAST", 0)
    norm = nn.BatchNorm2d(3)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        normalised(norm, torch.randn(1, 3, 1, 1), "relu")


def test_runs_in_bf16_under_autocast_and_without_a_gradient(monkeypatch):
    monkeypatch.setattr(_norm_activation, "_LEAST", 0)
    ours, theirs = twins()
    x = torch.randn(2, 3, 5, 4).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y, pooled = normalised_and_pooled(ours, x, "relu")
        wanted = theirs(x).relu()
    assert (y.dtype, pooled.dtype) == (torch.bfloat16, torch.bfloat16)
    torch.testing.assert_close(y, wanted)


# --- choice and errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, w, b: (x.double(), w, b), "needs float32 or bfloat16, got float64"),
        (
            lambda x, w, b: (x, w.bfloat16(), b),
            "needs float32 weight and bias, got torch.bfloat16 and torch.float32",
        ),
        (
            lambda x, w, b: (x.mT, w, b),
            "needs maps that lie row by row in memory, or channels_last",
        ),
        (lambda *t: tuple(i.to("meta") for i in t), "needs CPU tensors, got meta"),
    ],
)
def test_refuses_in_a_sentence(change, reason):
    tensors = change(*make((2, 3, 4, 4)))
    assert BATCH_NORM_ACTIVATION.explain(*tensors, 1e-5, "relu")["native"] == reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, b: (x[0], w, b), r"x must be \(B, C, H, W\), got \(3, 4, 4\)"),
        (lambda x, w, b: (x, w[:2], b), r"must be \(3,\) for this x, got \(2,\) and \(3,\)"),
        (lambda x, w, b: (x[:1, :, :1, :1], w, b), "needs two or more values in a channel"),
    ],
)
def test_refuses_wrong_shapes(change, message):
    with pytest.raises(ValueError, match=message):
        batch_norm_activation(*change(*make((2, 3, 4, 4))))


def test_refuses_an_unknown_activation():
    with pytest.raises(ValueError, match="must be one of none, relu, silu, got 'gelu'"):
        batch_norm_activation(*make((2, 3, 4, 4)), activation="gelu")
