import copy
import pickle
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from torchvision.ops import DeformConv2d, deform_conv2d

from visgraft.blocks import DeformConv, block_info, create_block, load_published

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # in float64: another order of adding up
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def randomised(channels=8, **options):
    """A block whose offsets and scales are not those of a fresh one."""
    block = DeformConv(channels, **options)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape) / parameter[0].numel() ** 0.5)
    return block


def by_torchvision(block, x):
    out, (_, stride, padding, dilation) = block.offset(x), block.geometry
    moves = out.shape[1] * 2 // 3 if block.modulated else out.shape[1]
    mask = block.mask_scale * out[:, moves:].sigmoid() if block.modulated else None
    return deform_conv2d(
        x, out[:, :moves], block.weight, block.bias, stride, padding, dilation, mask
    )


@pytest.mark.parametrize(
    ("options", "filters"), [({}, 27), ({"modulated": False}, 18), ({"offset_groups": 4}, 108)]
)
def test_defaults_and_options(options, filters):
    block = DeformConv(16, **options)
    assert block.weight.shape == (16, 16, 3, 3)
    assert block.bias is None
    assert block.mask_scale == 1
    assert block.offset.weight.shape == (filters, 16, 3, 3)
    assert block.offset.bias.shape == (filters,)
    assert block.offset.padding == (1, 1)
    assert not block.offset.weight.any()
    assert not block.offset.bias.any()
    assert 0.9 < block.weight.abs().max() * 12 <= 1  # uniform, as of nn.Conv2d
    assert not DeformConv(16, bias=True).bias.any()


def test_is_in_the_catalogue():
    assert block_info("deform_conv").role == "mixer"
    assert create_block("DCNv2", 8).modulated
    assert not create_block("DCN", 8).modulated
    assert not DeformConv.starts_as_identity


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"modulated": False, "bias": True},
        {"groups": 2, "offset_groups": 4, "dilation": 2, "mask_scale": 2.0},
        {"kernel_size": (1, 5), "stride": (2, 1), "padding": (0, 3), "dilation": (1, 2)},
        {"kernel_size": 4, "padding": 2, "out_channels": 4, "bias": True},
    ],
    ids=str,
)
def test_equals_torchvisions_operator(options):
    block = randomised(**options).double()
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64, requires_grad=True)
    ours, theirs = block(x), by_torchvision(block, x)
    assert_close(ours, theirs, **EXACT)
    wanted = [x, *block.parameters()]
    gradients = [torch.autograd.grad(y.square().sum(), wanted) for y in (ours, theirs)]
    for mine, other in zip(*gradients, strict=True):
        assert_close(mine, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("modulated", "scale"), [(False, 1.0), (True, 0.5)])
def test_fresh_block_is_a_convolution_scaled_by_half_of_the_mask(modulated, scale):
    block, x = DeformConv(8, modulated=modulated, stride=2, bias=True), torch.randn(2, 8, 7, 9)
    expected = nn.functional.conv2d(x, scale * block.weight, stride=2, padding=1)
    assert_close(block(x), expected, rtol=1e-5, atol=1e-6)


def test_offset_of_one_column_shifts_the_map():
    block, x = DeformConv(8, modulated=False).double(), torch.randn(2, 8, 7, 9).double()
    with torch.no_grad():
        block.offset.bias[1::2] = 1.0
    wider = nn.functional.pad(x, (1, 2, 1, 1))  # taps leave the map on the right, not before
    expected = nn.functional.conv2d(wider, block.weight)[..., 1:]
    assert_close(block(x), expected, **EXACT)


def test_taps_beyond_the_map_read_zeros():
    block = DeformConv(8, modulated=False)
    with torch.no_grad():
        block.offset.bias.fill_(1e4)
    assert not block(torch.randn(1, 8, 5, 6)).any()


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
        {"kernel_size": 1},
        {"kernel_size": 5, "padding": 4, "dilation": 2, "groups": 4},
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 4, "stride": 3, "padding": 1, "groups": 2},
        {"kernel_size": (1, 7), "padding": (0, 3), "stride": (1, 2)},
        {"kernel_size": 3, "padding": "same", "dilation": 3},
        {"kernel_size": 3, "padding": "valid"},
    ],
    ids=str,
)
@pytest.mark.parametrize("modulated", [True, False])
def test_holds_any_convolution(options, modulated):
    conv = nn.Conv2d(8, 12, **options).double()
    block = DeformConv.from_conv(conv, modulated=modulated, offset_groups=2)
    assert torch.equal(block.weight, conv.weight)
    for size in [(9, 9), (10, 13), (7, 8)]:
        x = torch.randn(2, 8, *size, dtype=torch.float64, requires_grad=True)
        ours, theirs = block(x), conv(x)
        assert_close(ours, theirs, **EXACT)
        gradients = (torch.autograd.grad(y.square().sum(), x) for y in (ours, theirs))
        assert_close(*gradients, rtol=1e-11, atol=1e-11)


def test_follows_the_convolution():
    conv = nn.Conv2d(8, 8, 3, padding=1).eval().requires_grad_(False)
    conv.bias.requires_grad_()
    block = DeformConv.from_conv(conv)
    assert block.mask_scale == 2
    assert not block.training
    assert not block.weight.requires_grad
    assert block.bias.requires_grad
    assert block.offset.weight.requires_grad
    assert block.weight.data_ptr() != conv.weight.data_ptr()
    assert set(conv.state_dict()) < set(block.state_dict())
    assert DeformConv.from_conv(conv.to("meta")).weight.is_meta
    assert (
        DeformConv.from_conv(conv.to_empty(device="cpu").bfloat16()).weight.dtype == torch.bfloat16
    )


def test_offsets_and_scales_learn_from_the_first_step():
    block = DeformConv.from_conv(nn.Conv2d(8, 8, 3, padding=1))
    block(torch.randn(2, 8, 9, 7)).square().sum().backward()
    assert (block.offset.weight.grad.flatten(1).abs().max(1)[0] > 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("modulated", [True, False])
def test_lower_precision_on_the_cpu(dtype, modulated):
    """torchvision's operator has no bfloat16 here."""
    block, x = randomised(modulated=modulated, bias=True), torch.randn(2, 8, 9, 7)
    half = copy.deepcopy(block).to(dtype)
    exact, y = block(x), half(x.to(dtype))
    assert y.dtype == dtype
    assert (y.float() - exact).abs().max() < 0.03 * exact.abs().max()
    y.float().square().sum().backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in half.parameters())


@pytest.mark.parametrize("modulated", [True, False])
def test_autocast_on_the_cpu(modulated):
    """torchvision's layer mixes the dtypes of offsets and map here, and raises."""
    block, x = randomised(modulated=modulated, bias=True), torch.randn(2, 8, 9, 7)
    exact = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
        assert y.dtype == nn.Conv2d(8, 8, 3)(x).dtype
    assert (y.float() - exact).abs().max() < 0.03 * exact.abs().max()
    y.float().square().sum().backward()
    assert all(p.grad.dtype == p.dtype for p in block.parameters())


def test_empty_batch_keeps_every_gradient():
    block = randomised(bias=True)
    y = block(torch.zeros(0, 8, 9, 7))
    assert y.shape == (0, 8, 9, 7)
    y.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in block.parameters())


def test_exported_graph_has_torchvisions_operator():
    block, x = randomised(bias=True).eval(), torch.randn(2, 8, 7, 5)
    dynamic = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
    program = torch.export.export(block, (x,), dynamic_shapes=dynamic)
    targets = {str(node.target) for node in program.graph.nodes}
    assert "torchvision.deform_conv2d.default" in targets
    for size in [(7, 5), (12, 9)]:
        x = torch.randn(3, 8, *size)
        assert_close(program.module()(x), block(x), **CLOSE)
    half = torch.export.export(block.bfloat16(), (torch.randn(2, 8, 7, 5).bfloat16(),))
    x = torch.randn(2, 8, 7, 5).bfloat16()
    assert_close(half.module()(x), block(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("names", "modulated"),
    [
        (("conv2.weight", "conv2.bias", "conv2_offset.weight", "conv2_offset.bias"), True),
        (("weight", "bias", "conv_offset.weight", "conv_offset.bias"), True),
        (("weight", "bias", "conv_offset_mask.weight", "conv_offset_mask.bias"), True),
        (
            ("torchvision_dcn2d.weight", "torchvision_dcn2d.bias", "offset.weight", "offset.bias"),
            False,
        ),
    ],
)
def test_loads_the_layouts_that_are_published(names, modulated):
    block, other = (randomised(modulated=modulated, bias=True) for _ in range(2))
    values = [block.weight, block.bias, block.offset.weight, block.offset.bias]
    weights = {name: value.detach() for name, value in zip(names, values, strict=True)}
    assert load_published(other, weights).layout != "visgraft"
    for key, value in block.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)


def test_takes_the_weights_of_torchvisions_layer():
    theirs, block = DeformConv2d(8, 8, 3, padding=1), DeformConv(8, modulated=False, bias=True)
    missing = block.load_state_dict(theirs.state_dict(), strict=False)
    assert missing.missing_keys == ["offset.weight", "offset.bias"]
    assert not missing.unexpected_keys


def test_pickles_and_shows_its_options():
    block, x = randomised(offset_groups=2, stride=2), torch.randn(1, 8, 6, 5)
    assert torch.equal(pickle.loads(pickle.dumps(block))(x), block(x))
    assert "offset_groups=2" in repr(block)


def test_torchvision_is_needed_only_where_it_is_used(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    block, x = DeformConv(4), torch.randn(1, 4, 5, 6)
    assert block(x).shape == x.shape
    with pytest.raises(
        ImportError, match=r"^DeformConv: .* need torchvision, which is not installed"
    ):
        torch.export.export(block, (x,))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_either_works_or_says_what_is_wrong(data):
    draw = data.draw
    channels = draw(st.sampled_from([1, 4, 6]))
    options = {
        "out_channels": draw(st.sampled_from([4, 6, 0])),
        "kernel_size": draw(st.integers(0, 5)),
        "stride": draw(st.integers(0, 3)),
        "padding": draw(st.none() | st.integers(-1, 3)),
        "dilation": draw(st.integers(1, 2)),
        "groups": draw(st.integers(0, 3)),
        "offset_groups": draw(st.integers(1, 3)),
        "modulated": draw(st.booleans()),
    }
    size = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    kernel_size, padding = options["kernel_size"], options["padding"]
    reach = options["dilation"] * (kernel_size - 1) + 1
    if padding is None:
        padding = reach // 2 if kernel_size % 2 else -1  # none that keeps the size
    legal = min(options["out_channels"], kernel_size, options["stride"], options["groups"]) > 0
    if (
        not legal
        or padding < 0
        or channels % options["groups"]
        or options["out_channels"] % options["groups"]
        or channels % options["offset_groups"]
    ):
        with pytest.raises(ValueError, match=r"^DeformConv: "):
            DeformConv(channels, **options)
        return
    block, x = DeformConv(channels, **options), torch.randn(2, channels, *size)
    if min(size) + 2 * padding < reach:
        with pytest.raises(ValueError, match=r"^DeformConv: the kernel spans"):
            block(x)
        return
    y = block(x)
    out = [(n + 2 * padding - reach) // options["stride"] + 1 for n in size]
    assert y.shape == (2, options["out_channels"], *out)
    assert torch.isfinite(y).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 0}, r"kernel_size must be an integer >= 1, or two of them, got 0"),
        ({"kernel_size": 3.0}, r"kernel_size must be an integer >= 1, or two of them, got 3\.0"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size must be .* two of them, got \(3, 3, 3\)"),
        (
            {"kernel_size": 4},
            r"kernel_size must be odd where padding is None, got 4; give the padding",
        ),
        ({"kernel_size": (3, 2)}, r"kernel_size must be odd where padding is None, got \(3, 2\)"),
        ({"stride": True}, r"stride must be an integer >= 1, or two of them, got True"),
        ({"stride": (1, 0)}, r"stride must be an integer >= 1, or two of them, got \(1, 0\)"),
        ({"padding": -1}, r"padding must be an integer >= 0, or two of them, got -1"),
        ({"dilation": "2"}, r"dilation must be an integer >= 1, or two of them, got '2'"),
        ({"out_channels": 0}, r"out_channels must be an integer >= 1, got 0"),
        (
            {"groups": 3},
            r"channels must be a multiple of 3 \(the groups of the convolution\), got 8",
        ),
        ({"groups": 4, "out_channels": 6}, r"out_channels must be a multiple of 4 .*, got 6"),
        ({"groups": 1.0}, r"groups must be an integer >= 1, got 1\.0"),
        ({"offset_groups": 3}, r"channels must be a multiple of 3 \(the offset groups\), got 8"),
        ({"offset_groups": False}, r"offset_groups must be an integer >= 1, got False"),
        ({"mask_scale": 0.0}, r"mask_scale must be a number > 0, got 0\.0"),
        ({"mask_scale": True}, r"mask_scale must be a number > 0, got True"),
        ({"mask_scale": float("nan")}, r"mask_scale must be a number > 0, got nan"),
    ],
)
def test_rejects_arguments(options, message):
    with pytest.raises(ValueError, match=rf"^DeformConv: {message}"):
        DeformConv(8, **options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 4, 8, 8), r"expected \(B, 8, H, W\), got \(1, 4, 8, 8\)"),
        (torch.zeros(8, 8, 8), r"expected \(B, 8, H, W\), got \(8, 8, 8\)"),
        (
            torch.zeros(1, 8, 4, 4, dtype=torch.int64),
            r"expected a floating-point map, got torch\.in",
        ),
    ],
)
def test_rejects_input(x, message):
    with pytest.raises(ValueError, match=f"^DeformConv: {message}"):
        DeformConv(8)(x)


def test_rejects_a_map_smaller_than_the_kernel():
    message = (
        r"^DeformConv: the kernel spans 5 positions, but the map of \(9, 4\) has 4 and padding 0"
    )
    with pytest.raises(ValueError, match=message):
        DeformConv(8, padding=0, dilation=2)(torch.zeros(1, 8, 9, 4))


class Odd(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (nn.Linear(4, 4), r"computes as nn\.Conv2d, got Linear"),
        (Odd(4, 4, 3), r"computes as nn\.Conv2d, got Odd"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), r"has padding_mode='reflect'"),
        (nn.Conv2d(4, 4, 2, padding="same"), r"pads a kernel of 2 x 2 unevenly"),
    ],
)
def test_from_conv_rejects(conv, message):
    with pytest.raises(ValueError, match=rf"^DeformConv\.from_conv: .*{message}"):
        DeformConv.from_conv(conv)


@pytest.mark.parametrize("kernel_size", [(3, 5), (5, 1)], ids=str)
def test_default_padding_follows_each_axis(kernel_size):
    x = torch.randn(1, 4, 7, 9)
    assert DeformConv(4, kernel_size=kernel_size, dilation=(2, 1))(x).shape == x.shape
