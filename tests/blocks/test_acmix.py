"""ACmix beside golden values and the contract."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.testing import assert_close

from visgraft.blocks import ACmix, block_info, create_block


def published(block, x, padded="reflect"):
    """The authors' way: three unfolds, a convolution of the joined heads, and the shifts."""
    heads, size, stride = block.num_heads, block.attention_size, block.stride
    query, key, value = block.query(x), block.key(x), block.value(x)
    b, c, h, w = query.shape
    d, reach = c // heads, block.dilation * (size // 2)
    column = torch.linspace(-1, 1, w, dtype=x.dtype).expand(h, w)
    row = torch.linspace(-1, 1, h, dtype=x.dtype)[:, None].expand(h, w)
    position = block.position(torch.stack([column, row])[None])
    out = (-(-h // stride), -(-w // stride))

    def windows(maps):
        maps = functional.pad(maps, [reach] * 4, mode=padded)
        maps = functional.unfold(maps, size, block.dilation, 0, stride)
        return maps.view(-1, d, size**2, *out)

    def each(maps):
        return maps.reshape(b * heads, d, h, w)

    centre = position[..., ::stride, ::stride].unsqueeze(2)
    logits = windows(each(key)) + centre - windows(position)
    logits = (each(query)[..., ::stride, ::stride].unsqueeze(2) * d**-0.5 * logits).sum(1)
    attended = (logits.softmax(1).unsqueeze(1) * windows(each(value))).sum(2).view(b, c, *out)
    joined = torch.cat([part.view(b, heads, d, h * w) for part in (query, key, value)], 1)
    mixed = block.mix(joined).permute(0, 2, 1, 3).reshape(b, -1, h, w)
    return block.attention_scale * attended + block.convolution_scale * block.shift(mixed)


def randomised(channels=6, **options):
    block = ACmix(channels, **options).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
    return block


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"num_heads": 2}, (7, 5)),
        ({"num_heads": 2}, (20, 18)),
        ({"num_heads": 3, "stride": 2}, (9, 7)),
        ({"num_heads": 2, "attention_size": 3, "stride": 3}, (8, 10)),
        ({"num_heads": 2, "attention_size": 3, "dilation": 3}, (5, 9)),
        ({"num_heads": 2, "kernel_size": 5, "attention_size": 1}, (3, 4)),
        ({"num_heads": 2, "kernel_size": 1, "attention_size": 5}, (6, 4)),
        ({"num_heads": 1, "kernel_size": 7, "attention_size": 5, "stride": 2}, (5, 4)),
        ({"num_heads": 6, "out_channels": 12}, (6, 5)),
    ],
)
def test_equals_the_unfolded_form(options, size):
    block = randomised(**options)
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    tensors = (x, *block.parameters())
    expected, y = published(block, x), block(x)
    assert_close(y, expected, rtol=1e-9, atol=1e-9)
    probe = torch.randn_like(y)
    theirs = torch.autograd.grad((expected * probe).sum(), tensors)
    ours = torch.autograd.grad((y * probe).sum(), tensors)
    for one, other in zip(ours, theirs, strict=True):
        assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (1, 3)], ids=str)
def test_small_maps_repeat_their_edge(size):
    block = randomised(num_heads=2)
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    assert_close(block(x), published(block, x, "replicate"), rtol=1e-9, atol=1e-9)


def test_defaults_are_the_papers():
    block = ACmix(512)
    assert sum(p.numel() for p in block.parameters()) == 829_934
    assert (block.num_heads, block.attention_size, block.shift.kernel_size) == (4, 7, (3, 3))
    assert (block.attention_scale.item(), block.convolution_scale.item()) == (0.5, 0.5)
    assert block.shift.bias is None
    assert block_info("ACmix").cls is ACmix


def test_shifts_start_as_shifts():
    """Tap p of a new block reads p // K - K // 2 rows and p % K - K // 2 columns away."""
    block = ACmix(4, num_heads=2, kernel_size=3)
    x = torch.zeros(1, 18, 3, 3)
    for tap in range(9):
        one = x.clone()
        one[0, tap, tap // 3, tap % 3] = 1  # seen by the centre alone
        y = block.shift(one)[0]
        assert y[:2, 1, 1].tolist() == [1, 1]
        assert y[:, 1, 1].sum() == 2
        assert y.sum() == 2


def test_what_the_window_reaches():
    """The attention reaches dilation * (attention_size // 2), the convolution kernel_size // 2."""
    x = torch.randn(1, 4, 21, 21, dtype=torch.float64)
    louder = x.clone()
    louder[..., 10, 10] += 1

    def reached(block):
        with torch.no_grad():
            rows = (block(x) - block(louder)).abs().amax((0, 1, 3)) > 1e-9
        return rows.nonzero().flatten().tolist()

    attention = randomised(4, num_heads=2, attention_size=5, dilation=3)
    attention.convolution_scale.data.zero_()
    assert reached(attention) == [4, 7, 10, 13, 16]
    convolution = randomised(4, num_heads=2, kernel_size=5)
    convolution.attention_scale.data.zero_()
    assert reached(convolution) == [8, 9, 10, 11, 12]


def test_bias_of_the_position_has_no_effect():
    block = randomised(num_heads=2)
    x = torch.randn(1, 6, 5, 4, dtype=torch.float64)
    before = block(x)
    block.position.bias.data += 3
    assert_close(block(x), before, rtol=1e-9, atol=1e-9)
    block.position.weight.data += 3
    assert not torch.allclose(block(x), before)


@pytest.mark.parametrize("size", [(5, 4), (9, 8)], ids=str)
def test_projections_can_be_watched_and_replaced(size):
    """On small maps the three are one product, but only where that is what calling them does."""
    block, seen = randomised(num_heads=2), []
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    plain = block(x)
    handles = [
        block.query.register_forward_pre_hook(lambda *_: seen.append("before")),
        block.key.register_forward_hook(lambda *_: seen.append("after")),
        block.value.register_full_backward_hook(lambda *_: seen.append("backward")),
    ]
    assert_close(block(x), plain, rtol=1e-9, atol=1e-9)
    block(x.requires_grad_()).sum().backward()
    assert seen == ["before", "after"] * 2 + ["backward"]
    for handle in handles:
        handle.remove()

    class Twice(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    value = Twice(6, 6, 1).double()
    value.load_state_dict(block.value.state_dict())
    doubled = randomised(num_heads=2)
    doubled.load_state_dict(block.state_dict())
    doubled.value.weight.data *= 2
    doubled.value.bias.data *= 2
    block.value = value
    assert_close(block(x), doubled(x), rtol=1e-9, atol=1e-9)


def test_convolution_is_one_or_two_as_is_cheaper():
    """Both ways are one function; the flop counter sees no more than the published way takes."""
    from torch.utils.flop_counter import FlopCounterMode

    for heads, per_channel in ((1, 9 * 3 * 1), (4, 9 * (3 + 9)), (8, 9 * (3 + 9))):
        block = ACmix(8, num_heads=heads)
        joined = torch.randn(1, 8 // heads, 3 * heads, 6, 6)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            block._convolve(joined)
        composing = 2 * 8 * 9 * 9 * 3 * heads if heads <= 4 else 0
        assert counter.get_total_flops() == 2 * 36 * 8 * per_channel + composing


SMALL = st.integers(-1, 5)


@settings(max_examples=30, deadline=None)
@given(
    channels=SMALL,
    options=st.fixed_dictionaries(
        {},
        optional={
            "out_channels": st.none() | st.integers(0, 8),
            "num_heads": SMALL,
            "attention_size": st.integers(0, 9),
            "kernel_size": st.integers(0, 5),
            "stride": SMALL,
            "dilation": SMALL,
        },
    ),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
def test_any_configuration_works_or_is_refused(channels, options, size):
    try:
        block = create_block("acmix", channels, **options)
    except ValueError as error:
        if not str(error).startswith("ACmix: "):
            raise
        return
    stride = options.get("stride", 1)
    out = options.get("out_channels") or channels
    y = block(torch.randn(2, channels, *size))
    assert y.shape == (2, out, *(-(-n // stride) for n in size))
    assert torch.isfinite(y).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, r"channels must be an integer >= 1, got 0"),
        ({"out_channels": -8}, r"out_channels must be an integer >= 1, got -8"),
        ({"num_heads": 3}, r"out_channels must be a multiple of 3 \(the heads\), got 8"),
        ({"num_heads": 2.0}, r"num_heads must be an integer >= 1, got 2\.0"),
        ({"attention_size": 6}, r"attention_size must be an odd integer >= 1, got 6"),
        ({"kernel_size": 2}, r"kernel_size must be an odd integer >= 1, got 2"),
        ({"stride": 0}, r"stride must be an integer >= 1, got 0"),
        ({"dilation": 1.5}, r"dilation must be an integer >= 1, got 1\.5"),
    ],
)
def test_rejects_arguments(options, message):
    with pytest.raises(ValueError, match=f"ACmix: {message}"):
        ACmix(**{"channels": 8, **options})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(1, 4, 3, 5), r"expected \(B, 8, H, W\), got \(1, 4, 3, 5\)"),
        (torch.zeros(8, 3, 5), r"expected \(B, 8, H, W\), got \(8, 3, 5\)"),
        (torch.zeros(1, 8, 3, 0), r"expected \(B, 8, H, W\), got \(1, 8, 3, 0\)"),
        (torch.zeros(1, 8, 3, 5, dtype=torch.uint8), r"expected a floating-point map, got torch"),
    ],
)
def test_rejects_inputs(x, message):
    with pytest.raises(ValueError, match=f"ACmix: {message}"):
        ACmix(8)(x)


def test_positions_of_long_maps_are_exact_before_they_are_rounded():
    """bfloat16 cannot count beyond 256; the last places would fall together."""
    block = ACmix(4, num_heads=2).bfloat16()
    block.position = nn.Identity()
    column = block._encode(torch.zeros(1, 4, 1, 700, dtype=torch.bfloat16))[0, 0, 0]
    assert_close(column.float(), torch.linspace(-1, 1, 700), rtol=0, atol=2**-9 + 1e-6)
