import math
import sys

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import deform_conv2d

from visgraft.ops import deformable_convolution

CALLS = {
    "plain": {"kernel": (3, 3), "padding": (1, 1)},
    "uneven": {"kernel": (1, 3), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    "dilated": {"kernel": (3, 3), "stride": (2, 2), "dilation": (2, 2), "groups": 4, "parts": 2},
    "even": {"kernel": (2, 2), "padding": (1, 1), "parts": 8, "size": (1, 4)},
    "depthwise": {"kernel": (3, 3), "padding": (1, 1), "groups": 8, "batch": 5},
    "unmasked": {"kernel": (3, 3), "padding": (1, 1), "mask": False, "groups": 2},
}


def make(kernel, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, parts=1, **how):
    size, batch = how.get("size", (9, 6)), how.get("batch", 2)
    axes = zip(size, kernel, stride, padding, dilation, strict=True)
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]
    taps = math.prod(kernel) * parts
    tensors = {
        "x": torch.randn(batch, 8, *size),
        "offset": 2 * torch.randn(batch, 2 * taps, *out),
        "weight": torch.randn(16, 8 // groups, *kernel),
    }
    if how.get("mask", True):
        tensors["mask"] = torch.rand(batch, taps, *out)
    numbers = {"stride": stride, "padding": padding, "dilation": dilation}
    return {name: t.double().requires_grad_() for name, t in tensors.items()}, numbers


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_equals_torchvision(call):
    tensors, numbers = make(**call)
    ours, theirs = (
        deformable_convolution(**tensors, **numbers),
        deform_conv2d(**{"input" if k == "x" else k: v for k, v in tensors.items()}, **numbers),
    )
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(ours)
    gradients = (torch.autograd.grad(y, tensors.values(), upstream) for y in (ours, theirs))
    for name, mine, other in zip(tensors, *gradients, strict=True):
        assert_close(mine, other, rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.parametrize("name", ["dilated", "unmasked"])
def test_is_a_well_behaved_operator(name):
    tensors, numbers = make(**CALLS[name])
    arguments = [tensors["x"], tensors["offset"], tensors["weight"], tensors.get("mask")]
    torch.library.opcheck(
        torch.ops.visgraft.deformable_convolution.default,
        (*arguments, *map(list, numbers.values())),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_whole_offsets_read_whole_pixels_to_the_last_bit():
    x, weight = torch.randn(1, 3, 50, 23), torch.ones(3, 1, 1, 1)
    for rows, columns in [(0, 0), (0, 1), (-2, 3), (50, 0), (-1, -23)]:
        offset = torch.tensor([rows, columns]).view(1, 2, 1, 1).expand(1, 2, 50, 23).float()
        expected = torch.zeros_like(x)
        for i in range(50):
            for j in range(23):
                if 0 <= i + rows < 50 and 0 <= j + columns < 23:
                    expected[..., i, j] = x[..., i + rows, j + columns]
        assert torch.equal(deformable_convolution(x, offset, weight), expected)


def test_images_are_cut_into_blocks_without_a_trace(monkeypatch):
    tensors, numbers = make(kernel=(3, 3), padding=(1, 1), batch=5)
    results = []
    for block in (1, 1 << 30):
        monkeypatch.setattr(sys.modules[deformable_convolution.__module__], "_BLOCK", block)
        y = deformable_convolution(**tensors, **numbers)
        results.append((y, *torch.autograd.grad(y.sum(), tensors.values())))
    for one, all_at_once in zip(*results, strict=True):
        assert_close(one, all_at_once, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_places_taps_exactly_in_lower_precision(dtype):
    """At column 200 bfloat16 itself cannot tell half a pixel from a whole one."""
    x = torch.arange(256.0).expand(1, 1, 1, 256).to(dtype)
    offset = torch.zeros(1, 2, 1, 256, dtype=dtype)
    offset[:, 1] = 0.5
    y = deformable_convolution(x, offset, torch.ones(1, 1, 1, 1, dtype=dtype))
    expected = (torch.arange(255) + 0.5).to(dtype)
    assert torch.equal(y[0, 0, 0, :255], expected)


def test_backward_gives_only_what_is_asked_for():
    tensors, numbers = make(kernel=(3, 3), padding=(1, 1))
    x = tensors["x"].detach()
    y = deformable_convolution(**{**tensors, "x": x}, **numbers)
    y.sum().backward()
    assert x.grad is None
    assert tensors["weight"].grad is not None


def test_flops_are_those_of_the_convolution():
    tensors, numbers = make(kernel=(3, 3), padding=(1, 1), groups=2)
    with FlopCounterMode(display=False) as counter:
        y = deformable_convolution(**tensors, **numbers)
        forward = counter.get_total_flops()
        y.sum().backward()
    assert forward == 2 * 2 * 16 * 4 * 9 * 9 * 6
    assert counter.get_total_flops() == 3 * forward


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (2, 8, 9), r"x and weight must have 4 dimensions, got \(2, 8, 9\)"),
        ("weight", (16, 3, 3, 3), r"weight \(16, 3, 3, 3\) does not divide 8 channels"),
        ("weight", (15, 4, 3, 3), r"weight \(15, 4, 3, 3\) does not divide 8 channels"),
        ("offset", (2, 18, 9, 5), r"offset must be \(2, G \* 18, 9, 6\), got \(2, 18, 9, 5\)"),
        ("offset", (2, 17, 9, 6), r"G \* 18 channels with G a divisor of 8, got 17"),
        ("offset", (2, 54, 9, 6), r"G \* 18 channels with G a divisor of 8, got 54"),
        ("mask", (2, 18, 9, 6), r"mask must be \(2, 9, 9, 6\), got \(2, 18, 9, 6\)"),
    ],
)
def test_rejects_shapes_that_do_not_belong_together(name, shape, message):
    tensors, numbers = make(kernel=(3, 3), padding=(1, 1))
    with pytest.raises(ValueError, match=message):
        deformable_convolution(**{**tensors, name: torch.zeros(shape)}, **numbers)


# torch scripts its formulas of tangents when the first one is asked for.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_tangents_are_not_lost():
    tensors = torch.ones(1, 8, 3, 3), torch.zeros(1, 2, 3, 3), torch.ones(2, 8, 1, 1)
    with pytest.raises(NotImplementedError, match=r"^deformable_convolution: forward-mode"):
        torch.func.jvp(deformable_convolution, tensors, tensors)
