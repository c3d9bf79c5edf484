import math

import pytest
import torch

from tests.ops.native_checks import (
    check_equal_bits,
    close,
    gradients,
    in_float64,
    needs,
    poisoned,
)
from visgraft.ops import deformable_convolution
from visgraft.ops.deformable_convolution import DEFORMABLE_CONVOLUTION, _Call

CALLS = {
    "plain": {"kernel": (3, 3), "padding": (1, 1)},
    "uneven": {"kernel": (1, 3), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    "dilated": {"kernel": (3, 3), "stride": (2, 2), "dilation": (2, 2), "groups": 3, "parts": 2},
    "even": {"kernel": (2, 2), "padding": (1, 1), "parts": 6, "size": (1, 4)},
    "unmasked": {"kernel": (3, 3), "padding": (1, 1), "mask": False, "groups": 2, "batch": 5},
}


def make(kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, parts=1, **how):
    size, batch = how.get("size", (9, 6)), how.get("batch", 2)
    channels, dtype = how.get("channels", 48), how.get("dtype", torch.float32)
    axes = zip(size, kernel, stride, padding, dilation, strict=True)
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]
    taps = math.prod(kernel) * parts
    tensors = [
        torch.randn(batch, channels, *size),
        2 * torch.randn(batch, 2 * taps, *out),
        torch.randn(24, channels // groups, *kernel) / math.prod(kernel),
    ]
    if how.get("mask", True):
        tensors.append(torch.rand(batch, taps, *out))
    tensors = [t.to(dtype).requires_grad_() for t in tensors]
    return tensors, _Call(stride, padding, dilation)


def run(*args):
    """Tensors, of which the mask may be missing, and the three pairs of numbers."""
    *tensors, stride, padding, dilation = args
    return deformable_convolution(*tensors, stride=stride, padding=padding, dilation=dilation)


@pytest.fixture(autouse=True)
def _available():
    (x, offset, weight, mask), call = make(kernel=(3, 3))
    native = DEFORMABLE_CONVOLUTION.implementations[0]
    needs(native, x, offset, weight, mask, call)


@pytest.mark.parametrize("name", CALLS)
def test_equals_the_form_in_pytorch(name):
    tensors, call = make(**CALLS[name])
    expected = gradients(run, in_float64(tensors), call)
    with poisoned():
        close(gradients(run, tensors, call), expected, torch.float32)


def test_equals_the_form_in_pytorch_in_bfloat16(monkeypatch):
    """Offsets are large enough for the gradient of the places to be worth comparing."""
    tensors, call = make(**CALLS["plain"], dtype=torch.bfloat16)
    expected = gradients(run, in_float64(tensors), call)
    for mine, wanted in zip(gradients(run, tensors, call), expected, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_the_two_forms_are_the_two_answers(monkeypatch):
    tensors, call = make(**CALLS["plain"])
    native = run(*tensors, *call)
    monkeypatch.setenv("VISGRAFT_NATIVE", "0")
    answers = DEFORMABLE_CONVOLUTION.explain(*tensors, call)
    assert answers == {
        "native": "VISGRAFT_NATIVE=0 switches native forms off",
        "reference": "ok",
    }
    eager = run(*tensors, *call)
    assert not torch.equal(native, eager)
    torch.testing.assert_close(native, eager, rtol=1e-5, atol=1e-5)


def test_whole_offsets_read_whole_pixels_to_the_last_bit():
    x, weight = torch.randn(1, 8, 50, 23), torch.eye(8).view(8, 8, 1, 1)
    for rows, columns in [(0, 0), (0, 1), (-2, 3), (50, 0), (-1, -23)]:
        offset = torch.tensor([rows, columns]).view(1, 2, 1, 1).expand(1, 2, 50, 23).float()
        padded = torch.nn.functional.pad(x, (60, 60, 60, 60))
        expected = padded[..., 60 + rows : 110 + rows, 60 + columns : 83 + columns]
        assert torch.equal(run(x, offset, weight, (1, 1), (0, 0), (1, 1)), expected)


@pytest.mark.parametrize("place", [torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 3e9])
def test_a_place_that_is_none_reads_zeros(place):
    tensors, call = make(**CALLS["plain"])
    with torch.no_grad():
        tensors[1][:, :2] = place
    results = gradients(run, tensors, call)
    assert all(t.isfinite().all() for t in results)
    with torch.no_grad():
        tensors[1][:, :2] = 1000
    for ours, theirs in zip(results, gradients(run, tensors, call), strict=True):
        assert torch.equal(ours, theirs)


def test_nan_beside_a_map_edge_stays_where_it_is():
    """The pixel that an overhanging sample would be given instead of nothing is not read."""
    x = torch.zeros(1, 8, 3, 3)
    x[..., 0, 2] = torch.nan
    offset = torch.full((1, 2, 3, 3), -0.5)
    out = run(x, offset, torch.eye(8).view(8, 8, 1, 1), (1, 1), (0, 0), (1, 1))
    assert torch.equal(out[0, 0].isnan().nonzero(), torch.tensor([[0, 2], [1, 2]]))


def test_threads_do_not_change_a_bit(monkeypatch):
    tensors, call = make(**CALLS["dilated"])
    check_equal_bits(run, tensors, call, monkeypatch)


def test_any_memory_layout_and_no_gradient_of_the_map():
    tensors, call = make(**CALLS["plain"])
    expected = gradients(run, tensors, call)
    last = [t.detach().to(memory_format=torch.channels_last).requires_grad_() for t in tensors]
    for ours, theirs in zip(gradients(run, last, call), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    tensors[0].requires_grad_(False)
    without = gradients(run, tensors, call)
    assert all(
        torch.equal(a, b) for a, b in zip(without, [expected[0], *expected[2:]], strict=True)
    )


def test_empty_batch():
    tensors, call = make(**CALLS["plain"], batch=0)
    results = gradients(run, tensors, call)
    assert [t.shape for t in results[1:]] == [t.shape for t in tensors]
    assert not results[3].any()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"groups": 4}, "needs a multiple of 8 channels in each group, got 12"),
        ({"parts": 12}, "needs a multiple of 8 channels in each offset group, got 4"),
        ({"dtype": torch.float64}, "needs float32 or bfloat16, got float64"),
    ],
)
def test_refuses_in_a_sentence(change, reason):
    tensors, call = make(**{**CALLS["plain"], **change})
    assert DEFORMABLE_CONVOLUTION.explain(*tensors, call)["native"] == reason
