"""The native forms of what `cot` is made of, on maps that are channels_last."""

import pytest
import torch

from tests.ops import test_native_batch_norm_activation as normalisation
from tests.ops.native_checks import (
    check_equal_bits,
    close,
    gradients,
    in_float64,
    needs,
    poisoned,
)
from tests.ops.test_native_local_aggregation import CALLS, SIZES
from tests.ops.test_native_selection import make as make_selection
from visgraft.ops.batch_norm_activation.native import NATIVE as NORMALISE
from visgraft.ops.batch_norm_activation.reference import (
    ACTIVATIONS,
    batch_norm_activation_reference,
)
from visgraft.ops.local_aggregation.native import NATIVE as AGGREGATE
from visgraft.ops.local_aggregation.reference import local_aggregation_reference
from visgraft.ops.selection.native import NATIVE as SELECT
from visgraft.ops.selection.reference import selection_reference

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
WIDE = {  # kernel size, stride, padding, dilation, and channels, weight channels, heads
    "k3, 8 groups": (3, 1, 1, 1, 24, 8, 1),
    "k3, 19 groups": (3, 1, 1, 1, 38, 19, 1),
    "k3, 16 groups, dilation 2, 2 heads": (3, 1, 2, 2, 32, 16, 2),
    "k3, 16 groups, stride 2": (3, 2, 1, 1, 16, 16, 1),
    "k3, 9 groups, no padding": (3, 1, 0, 1, 9, 9, 1),
    "k5, 11 groups": (5, 1, 2, 1, 22, 11, 1),
    "k2, 8 groups, 3 heads": (2, 1, 1, 1, 16, 8, 3),
}
ALL = CALLS | WIDE
MAPS = [(2, 3, 2, 1), (3, 7, 1, 5), (2, 37, 8, 8), (2, 64, 9, 35), (2, 33, 23, 25), (2, 520, 3, 21)]


@pytest.fixture(autouse=True)
def _available():
    needs(AGGREGATE, torch.ones(1), torch.ones(1))


def last(t):
    """Returns the map, or the weights, position by position in memory."""
    if t.ndim == 4:
        out = t.detach().contiguous(memory_format=torch.channels_last)
    else:
        out = t.detach().permute(0, 4, 5, 1, 2, 3).contiguous().permute(0, 3, 4, 5, 1, 2)
    return out.requires_grad_(t.requires_grad)


def make(call, size, dtype=torch.float32, batch=2):
    kernel_size, stride, padding, dilation, channels, groups, heads = ALL[call]
    reach = dilation * (kernel_size - 1) + 1
    out = [(n + 2 * padding - reach) // stride + 1 for n in size]
    x = torch.randn(batch, channels, *size, dtype=dtype).requires_grad_()
    weight = torch.randn(batch, heads, groups, kernel_size**2, *out, dtype=dtype).requires_grad_()
    return [last(x), last(weight)], (kernel_size, stride, padding, dilation)


def fits(call, size):
    kernel_size, _, padding, dilation, *_ = ALL[call]
    return min(size) + 2 * padding > dilation * (kernel_size - 1)


# --- aggregation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ALL)
@BOTH
def test_aggregation_equals_reference(call, dtype):
    for size in SIZES:
        if fits(call, size):
            tensors, numbers = make(call, size, dtype)
            expected = gradients(local_aggregation_reference, in_float64(tensors), numbers)
            with poisoned():
                ours = gradients(AGGREGATE.run, tensors, numbers)
            close(ours, expected, dtype)


def test_results_of_an_aggregation_lie_as_the_map():
    (x, weight), numbers = make("k3, 8 groups", (5, 6))
    out, grad_x, grad_weight = gradients(AGGREGATE.run, [x, weight], numbers)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert grad_x.stride() == x.stride()
    assert grad_weight.stride() == weight.stride()
    assert grad_weight.permute(0, 4, 5, 1, 2, 3).is_contiguous()


@pytest.mark.parametrize("call", ["k3, 19 groups", "k3, dilation 2, stride 2, 2 heads"])
def test_layout_of_weights_and_of_the_gradient(call):
    (x, weight), numbers = make(call, (6, 9))
    expected = gradients(AGGREGATE.run, [x, weight], numbers)
    rows = weight.detach().contiguous().requires_grad_()
    part = torch.cat([x.detach(), x.detach() * torch.nan], 1)
    part = last(part)[:, : x.shape[1]].detach().requires_grad_()
    assert not part.is_contiguous(memory_format=torch.channels_last)
    for tensors in ([x, rows], [part, weight]):
        ours = gradients(AGGREGATE.run, tensors, numbers)
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.mark.parametrize("call", ["k3, 8 groups", "k3, 16 groups, stride 2", "k5, 11 groups"])
def test_threads_do_not_change_a_bit_of_an_aggregation(call, monkeypatch):
    tensors, numbers = make(call, (13, 9), batch=3)
    check_equal_bits(AGGREGATE.run, tensors, numbers, monkeypatch)


@pytest.mark.parametrize("only", [0, 1], ids=["x", "weight"])
def test_aggregation_computes_only_the_gradient_asked_for(only):
    tensors, numbers = make("k3, 16 groups, stride 2", (5, 9))
    expected = gradients(AGGREGATE.run, tensors, numbers)[1 + only]
    tensors[1 - only].requires_grad_(False)
    assert torch.equal(gradients(AGGREGATE.run, tensors, numbers)[1], expected)


def test_aggregation_of_an_empty_batch():
    tensors, numbers = make("k3, 8 groups", (5, 4), batch=0)
    out, grad_x, grad_weight = gradients(AGGREGATE.run, tensors, numbers)
    assert out.shape == (0, 24, 5, 4)
    assert (grad_x.shape, grad_weight.shape) == (tensors[0].shape, tensors[1].shape)


def test_nan_reaches_its_neighbours_only():
    """Beside the right edge, where a row of the map continues in the next one."""
    (x, weight), numbers = make("k3, 8 groups", (5, 6))
    x.data[0, 3, 2, 5] = torch.nan
    out = AGGREGATE.run(x, weight, *numbers)
    expected = torch.zeros_like(out, dtype=torch.bool)
    expected[0, 3, 1:4, 4:] = True
    assert torch.equal(out.isnan(), expected)


def test_aggregation_of_mixed_dtypes():
    (x, weight), numbers = make("k3, 8 groups", (5, 6))
    x = last(x.bfloat16().detach()).requires_grad_()
    ours = gradients(AGGREGATE.run, [x, weight], numbers)
    assert [t.dtype for t in ours] == [torch.bfloat16] * 2 + [torch.float32]
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    expected = gradients(local_aggregation_reference, in_float64([x, weight]), numbers)
    close(ours[:2], expected[:2], torch.bfloat16)


def test_rounding_of_vectors_to_bfloat16_is_pytorchs():
    """A sum of two neighbours, exact in float32: ties to even, overflow, NaN kept."""
    values = torch.randint(-(2**15), 2**15, (4096, 2), dtype=torch.int16).view(torch.bfloat16)
    special = torch.tensor([3.38e38, 3.38e38, torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1.0])
    values[:4] = special.bfloat16().view(4, 2)
    values[4:2000] = (1 + torch.randint(0, 128, (1996, 2)) / 128) * torch.tensor([1.0, 1 / 256])
    x = torch.stack([values, torch.zeros_like(values)], 1)[None]
    weight = torch.ones(1, 1, 8, 4, 1, 1, dtype=torch.bfloat16)
    out = AGGREGATE.run(last(x), last(weight), 2, 1, 0, 1).flatten()
    expected = (values[:, 0].float() + values[:, 1].float()).bfloat16()
    assert torch.equal(out.isnan(), expected.isnan())
    assert torch.equal(
        out.nan_to_num(7.0, torch.inf, -torch.inf), expected.nan_to_num(7.0, torch.inf, -torch.inf)
    )


# --- normalisation and selection -----------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@BOTH
def test_normalisation_equals_reference(activation, dtype):
    for shape in MAPS:
        x, weight, bias = (t.detach() for t in normalisation.make(shape, dtype))
        tensors = [
            t.requires_grad_() for t in (last(x - x.mean((0, 2, 3), True) + 0.5), weight, bias)
        ]
        assert NORMALISE.refusal(*tensors) is None
        numbers = (1e-3, activation)
        expected = normalisation.results(
            batch_norm_activation_reference, in_float64(tensors), numbers
        )
        with poisoned():
            ours = normalisation.results(NORMALISE.run, tensors, numbers)
        assert ours[0].stride() == ours[4].stride() == tensors[0].stride()
        close([*ours[:2], ours[4]], [*expected[:2], expected[4]], dtype)
        close(ours[2:4], expected[2:4], torch.float32)
        rounding = 2e-6 * tensors[0].numel() / shape[1]  # sums of many values of both signs
        for mine, wanted in zip(ours[5:], expected[5:], strict=True):
            torch.testing.assert_close(mine.double(), wanted, rtol=1e-5, atol=rounding)


def test_statistics_of_values_far_from_zero():
    x = last(torch.randn(2, 9, 90, 70) + 1e4)
    _, _, mean, variance = NORMALISE.run(x, torch.ones(9), torch.zeros(9), 1e-5, "none")
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-7, atol=0)
    wanted = x.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(variance.double(), wanted, rtol=1e-5, atol=0)


def test_nan_stays_in_its_channel():
    x = last(torch.randn(2, 9, 5, 5))
    x[1, 3, 2, 2] = torch.nan
    y, *_ = NORMALISE.run(x, torch.ones(9), torch.zeros(9), 1e-5, "relu")
    assert y.isnan().any((0, 2, 3)).tolist() == [c == 3 for c in range(9)]


def test_no_nan_is_rounded_to_a_number():
    """All its bits are set: rounding it as a number would give zero."""
    bias = torch.full((9,), 2**31 - 1, dtype=torch.int32).view(torch.float32)
    y, *_ = NORMALISE.run(
        last(torch.randn(2, 9, 5, 5).bfloat16()), torch.ones(9), bias, 1.0, "none"
    )
    assert y.isnan().all()


def test_threads_do_not_change_a_bit_of_a_normalisation(monkeypatch):
    x, weight, bias = normalisation.make((3, 9, 31, 13))

    def first(*args):
        y, pooled, *_ = NORMALISE.run(*args)
        return y + pooled

    check_equal_bits(first, [last(x), weight, bias], (1e-5, "silu"), monkeypatch)


@BOTH
def test_selection_equals_reference(dtype):
    for shape in [*MAPS, (0, 9, 4, 4)]:
        first, second, share = make_selection(shape, dtype)
        tensors = [last(first), last(second), share]
        assert SELECT.refusal(*tensors) is None
        expected = gradients(selection_reference, in_float64(tensors), ())
        with poisoned():
            ours = gradients(SELECT.run, tensors, ())
        close(ours, expected, dtype)
        assert ours[1].stride() == ours[2].stride() == tensors[0].stride()


def test_threads_do_not_change_a_bit_of_a_selection(monkeypatch):
    first, second, share = make_selection((3, 9, 31, 13))
    check_equal_bits(SELECT.run, [last(first), last(second), share], (), monkeypatch)


# --- operators -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_fake_results_lie_as_real_ones():
    (x, weight), numbers = make("k3, 8 groups", (4, 3))
    grad = last(AGGREGATE.run(x, weight, *numbers).detach().requires_grad_())
    wide, *rest = normalisation.make((2, 9, 4, 3))
    first, second, share = make_selection((2, 9, 4, 3))
    for name, arguments in {
        "local_aggregation_native": (x, weight, *numbers),
        "local_aggregation_native_backward": (grad, x, weight, *numbers, True, True),
        "batch_norm_activation_native": (last(wide), *rest, 1e-5, "silu"),
        "selection_native": (last(first), last(second), share),
    }.items():
        operator = getattr(torch.ops.visgraft, name).default
        torch.library.opcheck(operator, arguments, test_utils="test_faketensor")
