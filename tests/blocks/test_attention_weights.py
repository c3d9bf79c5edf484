"""The weights that a block tells are those that it computes with: its output follows from them."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, pad, unfold
from torch.testing import assert_close

from visgraft.blocks import (
    MHSA,
    ACmix,
    BottleneckAttention,
    ContextualTransformer,
    CoordAttention,
    CoTAttention,
    DeformConv,
    GlobalContext,
    SelectiveKernel,
    SKAttention,
)


def drawn(block):
    """Gives every parameter and running statistic a value, so that nothing is zero by its start."""
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
        for name, buffer in block.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
            elif name.endswith("running_mean"):
                buffer.normal_()
    return block.eval().double()


def image(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def attended(weights, value):
    """Mixes values (B, C, H, W) by weights (B, M, H, W, H, W)."""
    heads = value.unflatten(1, (weights.shape[1], -1))
    return torch.einsum("bmyxpq,bmdpq->bmdyx", weights, heads).flatten(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("position", ["relative", "absolute", None])
@pytest.mark.parametrize("size", [(4, 5), (3, 7)])
def test_bottleneck_attention(position, size):
    block = drawn(BottleneckAttention(12, feature_size=(4, 5), head_dim=2, position=position))
    x = image(2, 12, *size)
    weights = block.attention_weights(x)
    assert weights.shape == (2, 4, *size, *size)
    assert_close(weights.sum((4, 5)), torch.ones(2, 4, *size, dtype=x.dtype))
    assert_close(attended(weights, block.qkv(x)[:, 16:]), block(x))


def test_bottleneck_attention_tells_weights_before_its_pooling():
    block = drawn(BottleneckAttention(8, stride=2))
    assert block.attention_weights(image(1, 8, 5, 4)).shape == (1, 4, 5, 4, 5, 4)


@torch.no_grad()
@pytest.mark.parametrize("use_position", [True, False])
def test_mhsa(use_position):
    block = drawn(MHSA(8, num_heads=2, feature_size=(4, 6), use_position=use_position))
    x = image(2, 8, 4, 6) * 0.2
    weights = block.attention_weights(x)
    assert weights.shape == (2, 2, 4, 6, 4, 6)
    assert_close(attended(weights, block.value(x)), block(x))


@torch.no_grad()
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("size", [(7, 9), (20, 16)])
def test_acmix(stride, dilation, size):
    block = drawn(ACmix(8, num_heads=2, attention_size=3, stride=stride, dilation=dilation))
    block.convolution_scale.zero_()
    x = image(2, 8, *size)
    weights = block.attention_weights(x)
    b, heads, height, width = weights.shape[:4]
    assert weights.shape == (2, 2, -(-size[0] // stride), -(-size[1] // stride), 3, 3)
    value = pad(block.value(x), (dilation,) * 4, mode="reflect")
    windows = unfold(value, 3, dilation, 0, stride).view(b, heads, -1, 3, 3, height, width)
    mixed = torch.einsum("bmyxuv,bmduvyx->bmdyx", weights, windows).flatten(1, 2)
    assert_close(mixed * block.attention_scale, block(x))


@torch.no_grad()
@pytest.mark.parametrize(("groups", "stride", "kernel_size"), [(1, 1, 3), (2, 1, 5), (1, 2, 3)])
def test_contextual_transformer(groups, stride, kernel_size):
    block = drawn(ContextualTransformer(32, groups=groups, stride=stride, kernel_size=kernel_size))
    x, seen = image(2, 32, 6, 9), []
    block.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    block(x)
    weights = block.attention_weights(x)
    x = block.pool(x)
    b, _, h, w = x.shape
    assert weights.shape == (2, 4, h, w, kernel_size, kernel_size)
    value = block.value_norm(block.value(x))
    windows = unfold(value, kernel_size, padding=kernel_size // 2)
    windows = windows.view(b, groups, 8, 4 // groups, kernel_size, kernel_size, h, w)
    kernels = weights.view(b, groups, 4 // groups, h, w, kernel_size, kernel_size)
    mixed = torch.einsum("bgsyxuv,bgcsuvyx->bgcsyx", kernels, windows)
    assert_close(mixed.reshape(b, 32, h, w), seen[0])


@torch.no_grad()
def test_circulating_cot_attention():
    block = drawn(CoTAttention(8))
    x = image(2, 8, 5, 3)
    weights = block.attention_weights(x)
    assert_close(weights.sum((2, 3)), torch.ones(2, 8, dtype=x.dtype))
    static = block.key_norm(block.key(x)).relu()
    assert_close(static + weights * block.value_norm(block.value(x)), block(x))


@torch.no_grad()
@pytest.mark.parametrize("fuse", [("add",), ("mul",), ("add", "mul")])
def test_global_context(fuse):
    block = drawn(GlobalContext(8, reduction=2, fuse=fuse))
    x = image(2, 8, 5, 3)
    weights = block.attention_weights(x)
    assert weights.shape == (2, 1, 5, 3)
    context = (weights * x).sum((2, 3), keepdim=True)
    expected = x if block.mul is None else x * block.mul(context).sigmoid()
    assert_close(expected if block.add is None else expected + block.add(context), block(x))


def test_plain_mean_has_no_weights():
    assert (
        GlobalContext(8, reduction=2, pool="average").attention_weights(image(1, 8, 3, 3)) is None
    )


@torch.no_grad()
def test_coord_attention():
    block = drawn(CoordAttention(8))
    x = image(2, 8, 5, 3)
    assert_close(x * block.attention_weights(x), block(x))


@torch.no_grad()
@pytest.mark.parametrize(
    "block",
    [
        SelectiveKernel(8, groups=2, out_channels=12),
        SelectiveKernel(8, groups=2, kernels=((3, 1), (3, 2), (5, 1)), stride=2),
        SKAttention(8),
        SKAttention(8, kernels=(1, 3)),
    ],
)
def test_selection_of_branches(block):
    block, x = drawn(block), image(2, 8, 5, 3)
    weights = block.attention_weights(x)
    maps = torch.stack([branch(x) for branch in block.branches], 1)
    assert weights.shape == maps.shape[:3]
    assert_close((maps * weights[..., None, None]).sum(1), block(x))


@torch.no_grad()
def test_scales_of_deformable_taps():
    block = drawn(DeformConv(8, out_channels=6, kernel_size=(3, 5), offset_groups=2, mask_scale=2))
    block.offset.weight[:60].zero_()
    block.offset.bias[:60].zero_()  # 2 groups of 15 taps stay where they are
    x = image(2, 8, 7, 6)
    weights = block.attention_weights(x)
    assert weights.shape == (2, 2, 7, 6, 3, 5)
    assert 1 < weights.max() < 2
    taps = unfold(x, (3, 5), padding=(1, 2)).view(2, 2, 4, 3, 5, 7, 6)
    scaled = torch.einsum("bgyxuv,bgcuvyx->bgcuvyx", weights, taps).reshape(2, -1, 7, 6)
    assert_close(conv2d(scaled, block.weight.flatten(1)[..., None, None]), block(x))


def test_taps_without_a_scale_have_no_weights():
    assert DeformConv(8, modulated=False).attention_weights(torch.zeros(1, 8, 3, 3)) is None


@pytest.mark.parametrize(
    "block",
    [
        ACmix(8),
        BottleneckAttention(8),
        CoTAttention(8),
        ContextualTransformer(8),
        CoordAttention(8),
        DeformConv(8),
        GlobalContext(8, reduction=2),
        MHSA(8),
        SKAttention(8),
        SelectiveKernel(8, groups=2),
    ],
)
def test_wrong_maps_are_refused_as_by_the_block(block: nn.Module):
    with pytest.raises(ValueError, match=rf"^{type(block).__name__}: expected \(B, 8, H, W\)"):
        block.attention_weights(torch.zeros(1, 9, 4, 4))
