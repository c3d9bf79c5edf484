import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from visgraft.blocks import SpaceToDepth, SPDConv, block_info, create_block, load_published
from visgraft.ops import space_to_depth

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # in float64: another order of adding up
SIZES = [(8, 8), (9, 7), (12, 11), (7, 10)]


def strided(kernel_size=3, stride=2, **options):
    return nn.Conv2d(4, 6, kernel_size, stride, **options).double()


def maps(*sizes):
    return [torch.randn(2, 4, *size, dtype=torch.float64) for size in sizes or SIZES]


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (16, 64, 3, 3)),
        ({"out_channels": 32, "kernel_size": 1}, (32, 64, 1, 1)),
        ({"scale": 3, "groups": 4}, (16, 36, 3, 3)),
    ],
)
def test_defaults_and_options(options, shape):
    block = SPDConv(16, **options)
    assert block.conv.weight.shape == shape
    assert block.conv.bias is None
    assert SPDConv(16, bias=True).conv.bias is not None


def test_is_in_the_catalogue_as_a_downsampler():
    assert block_info("spd_conv").role == "downsample"
    assert isinstance(create_block("space_to_depth", 8), SPDConv)
    assert not SPDConv.starts_as_identity


@pytest.mark.parametrize("size", [(1, 1), (8, 6), (7, 5), (1, 12)])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_is_space_to_depth_and_then_a_convolution(scale, size):
    block, x = SPDConv(4, out_channels=5, scale=scale), torch.randn(2, 4, *size)
    expected = functional.conv2d(space_to_depth(x, scale), block.conv.weight, padding=1)
    assert_close(block(x), expected)


def test_each_group_sees_all_pixels_of_its_own_channels():
    block, x = SPDConv(6, groups=3).double(), torch.randn(1, 6, 7, 9).double().requires_grad_()
    for group in range(3):
        (seen,) = torch.autograd.grad(block(x)[:, 2 * group : 2 * group + 2].sum(), x)
        channels = torch.arange(6).div(2, rounding_mode="floor") == group
        assert (seen[:, channels] != 0).all()
        assert not seen[:, ~channels].any()
    by_hand = [
        functional.conv2d(space_to_depth(x[:, 2 * g : 2 * g + 2]), w, padding=1)
        for g, w in enumerate(block.conv.weight.chunk(3))
    ]
    assert_close(block(x), torch.cat(by_hand, 1), **EXACT)


def test_module_is_the_operation():
    x = torch.randn(2, 3, 5, 4)
    assert torch.equal(SpaceToDepth(3)(x), space_to_depth(x, 3))
    assert repr(SpaceToDepth(3)) == "SpaceToDepth(scale=3)"


@pytest.mark.parametrize("padding", [0, 1, 2, 3])
@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5, 7])
def test_holds_any_strided_convolution(kernel_size, stride, padding):
    conv = strided(kernel_size, stride, padding=padding)
    block = SPDConv.from_conv(conv)
    assert block.conv.kernel_size == (-(-kernel_size // stride),) * 2
    for x in maps():
        assert_close(block(x), conv(x), **EXACT)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1, "groups": 2},
        {"padding": 1, "bias": False},
        {"padding": 2, "dilation": 2},
        {"kernel_size": (1, 3), "padding": (0, 1)},
        {"kernel_size": (5, 2), "padding": (2, 0), "stride": 3, "dilation": (1, 2), "groups": 2},
        {"padding": "valid"},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": (2, 1), "padding_mode": "replicate", "kernel_size": 4},
        {"padding": 3, "padding_mode": "circular", "kernel_size": 7, "stride": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel_size", [None, 7])
def test_holds_every_kind_of_strided_convolution(options, kernel_size):
    conv = strided(**options)
    block = SPDConv.from_conv(conv, kernel_size=kernel_size)
    for x in maps():
        x.requires_grad_()
        ours, theirs = block(x), conv(x)
        assert_close(ours, theirs, **EXACT)
        gradients = (torch.autograd.grad(y.square().sum(), x) for y in (ours, theirs))
        assert_close(*gradients, **EXACT)


def test_larger_kernel_lies_as_in_a_new_block():
    conv = strided(3, padding=1)
    held, new = SPDConv.from_conv(conv, kernel_size=3), SPDConv(4, out_channels=6).double()
    new.conv.weight.data = held.conv.weight.data
    for x in maps():
        assert_close(held(x), new(x) + conv.bias[:, None, None], **EXACT)
    assert held.conv.weight.count_nonzero() == conv.weight.count_nonzero()


def test_small_maps_and_empty_batches_like_the_convolution():
    conv = strided(7, padding=3)
    for shape in [(0, 4, 9, 9), (1, 4, 1, 1), (1, 4, 2, 1)]:
        x = torch.randn(shape, dtype=torch.float64)
        assert_close(SPDConv.from_conv(conv)(x), conv(x), **EXACT)


def test_follows_the_convolution():
    conv = strided(3, padding=1).float().eval().requires_grad_(False)
    conv.bias.requires_grad_()
    torch.manual_seed(3)
    block, drawn = SPDConv.from_conv(conv), torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))  # no random numbers are used up
    assert not block.training
    assert block.conv.weight.dtype == torch.float32
    assert not block.conv.weight.requires_grad
    assert block.conv.bias.requires_grad
    assert block.conv.bias is not conv.bias
    assert SPDConv.from_conv(conv.to("meta")).conv.weight.is_meta


def test_takes_state_dicts_of_the_convolution_wherever_it_stands():
    conv, other = strided(3, padding=1), strided(3, padding=1)
    block = pickle.loads(pickle.dumps(SPDConv.from_conv(conv)))
    network = nn.Sequential(nn.ReLU(), block)
    (x,) = maps((9, 7))
    network.load_state_dict(nn.Sequential(nn.ReLU(), other).state_dict())
    assert_close(network(x), other(x.relu()), **EXACT)
    assert load_published(block, conv.state_dict()).layout == "the strided convolution"
    assert_close(block(x), conv(x), **EXACT)
    network.load_state_dict(network.state_dict())
    assert_close(network(x), conv(x.relu()), **EXACT)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        SPDConv(4, out_channels=6, bias=True).load_state_dict(conv.state_dict())


def test_spare_taps_learn():
    block = SPDConv.from_conv(strided(3, padding=1))
    block(maps((8, 8))[0]).square().sum().backward()
    assert (block.conv.weight.grad != 0).all()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_either_works_or_says_what_is_wrong(data):
    numbers = st.integers(0, 4)
    channels = data.draw(st.sampled_from([1, 3, 4, 6]))
    options = {
        name: data.draw(numbers) for name in ("out_channels", "kernel_size", "scale", "groups")
    }
    size = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    legal = min(options.values()) > 0 and options["kernel_size"] % 2 == 1
    if not legal or channels % options["groups"] or options["out_channels"] % options["groups"]:
        with pytest.raises(ValueError, match=r"^SPDConv: "):
            SPDConv(channels, **options)
        return
    block = SPDConv(channels, **options)
    y = block(torch.randn(2, channels, *size))
    assert y.shape == (2, options["out_channels"], *(-(-n // options["scale"]) for n in size))
    assert torch.isfinite(y).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, r"kernel_size must be an odd integer >= 1, got 4"),
        ({"kernel_size": 3.0}, r"kernel_size must be an odd integer >= 1, got 3\.0"),
        ({"scale": 0}, r"scale must be an integer >= 1, got 0"),
        ({"scale": True}, r"scale must be an integer >= 1, got True"),
        ({"out_channels": 0}, r"out_channels must be an integer >= 1, got 0"),
        ({"out_channels": 2.0}, r"out_channels must be an integer >= 1, got 2\.0"),
        ({"groups": 0}, r"groups must be an integer >= 1, got 0"),
        (
            {"groups": 3},
            r"channels must be a multiple of 3 \(the groups of the convolution\), got 8",
        ),
        ({"groups": 4, "out_channels": 6}, r"out_channels must be a multiple of 4 .*, got 6"),
    ],
)
def test_rejects_arguments(options, message):
    with pytest.raises(ValueError, match=rf"^SPDConv: {message}"):
        SPDConv(8, **options)


def test_rejects_channels_and_scale():
    with pytest.raises(ValueError, match=r"SPDConv: channels must be an integer >= 1, got -1"):
        SPDConv(-1)
    with pytest.raises(ValueError, match=r"SpaceToDepth: scale must be an integer >= 1, got 0"):
        SpaceToDepth(0)


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
    with pytest.raises(ValueError, match=f"^SPDConv: {message}"):
        SPDConv(8)(x)


class Odd(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("conv", "options", "message"),
    [
        (strided(stride=1), {}, r"expected one stride >= 2 for both axes, got \(1, 1\)"),
        (strided(stride=(2, 1)), {}, r"expected one stride >= 2 for both axes, got \(2, 1\)"),
        (nn.ConvTranspose2d(4, 4, 2, 2), {}, r"computes as nn\.Conv2d, got ConvTranspose2d"),
        (Odd(4, 4, 2, 2), {}, r"computes as nn\.Conv2d, got Odd"),
        (nn.LazyConv2d(4, 2, 2), {}, r"LazyConv2d has no weights yet; run the model once first"),
        (strided(7, padding=3), {"kernel_size": 3}, r"kernel_size 3 does not hold a kernel of 7"),
        (strided(2, padding=3), {"kernel_size": 3}, r"kernel_size 3 does not hold a kernel of 2"),
    ],
)
def test_from_conv_rejects(conv, options, message):
    with pytest.raises(ValueError, match=rf"^SPDConv\.from_conv: .*{message}"):
        SPDConv.from_conv(conv, **options)


def test_from_conv_rejects_an_even_kernel_and_later_a_map_smaller_than_the_kernel():
    with pytest.raises(ValueError, match=r"^SPDConv: kernel_size must be an odd integer"):
        SPDConv.from_conv(strided(), kernel_size=2)
    with pytest.raises(ValueError, match=r"the kernel spans 3 positions, .*\(5, 2\) has 2 and pad"):
        SPDConv.from_conv(strided())(maps((5, 2))[0])
