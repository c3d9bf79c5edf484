from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from tests.models.golden_parts import check_part, golden_part
from visgraft.blocks import load_published
from visgraft.models import network_info
from visgraft.models._acmix_window import ACmixWindowAttention
from visgraft.models.acmix_swin import ACmixSwinBlock

EXACT = {"rtol": 0.0, "atol": 0.0}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
OURS = {
    "fc": "mix",
    "dep_conv": "shift",
    "rate1": "attention_scale",
    "rate2": "convolution_scale",
}


def randomised(module):
    """Returns the module with nothing in it zero or one, so that each term counts."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 4
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan_in**0.5)
    return module


def published(model):
    """Returns the state dict as the authors' code would name it, with its constant buffers."""
    theirs = {ours: name for name, ours in OURS.items()}
    state = {}
    for key, value in model.state_dict().items():
        parts = [theirs.get(part, part) for part in key.split(".")]
        if "downsample" in parts:
            parts[1] = str(int(parts[1]) - 1)
        state[".".join(parts).replace("head.fc", "head")] = value
    for path, module in model.named_modules():
        if isinstance(module, ACmixWindowAttention):
            state[f"{path}.relative_position_index"] = module.relative_position_index
        if isinstance(module, ACmixSwinBlock) and any(module.shift_size):
            state[f"{path}.attn_mask"] = torch.zeros(16, 16, 16)
    return {"model": state, "epoch": 299}


@pytest.mark.parametrize("name", ["winacmix-official-w4_8x8", "winacmix-official-w7_7x14"])
def test_golden_attention(name):
    case = golden_part(name)
    options = case.record["kwargs"]
    attention = ACmixWindowAttention(
        options["dim"], num_heads=options["num_heads"], window_size=tuple(options["window_size"])
    )
    index = case.tensors["state.attn.relative_position_index"]
    assert_close(attention.relative_position_index, index, **EXACT)
    keys = case.record["state_keys"]
    case.record["state_keys"] = [key for key in keys if not key[0].endswith("position_index")]
    check_part(case, nn.Sequential(OrderedDict(attn=attention)))


def test_structure():
    """The parameters, which the recorded networks pin, are 5 % below the published figure."""
    model = timm.create_model("swin_acmix_tiny", device="meta")
    assert [len(stage.blocks) for stage in model.layers] == [2, 2, 6, 2]
    for i, stage in enumerate(model.layers):
        assert all(isinstance(block.attn, ACmixWindowAttention) for block in stage.blocks)
        assert {(b.attn.num_heads, b.attn.window_size, b.dim) for b in stage.blocks} == {
            (3 * 2**i, (7, 7), 96 * 2**i)
        }
        shifts = [block.shift_size for block in stage.blocks]
        assert shifts == [(0, 0), (3, 3)] * (len(shifts) // 2)
    params = sum(p.numel() for p in model.parameters())
    assert network_info("swin_acmix_tiny").published.params == pytest.approx(params / 1e6, rel=0.05)


def test_paths_and_their_weights():
    """With one path's weight at zero, only the other's parameters count."""
    attention = randomised(ACmixWindowAttention(12, num_heads=3, window_size=4))
    x = torch.randn(2, 8, 4, 12)
    whole = attention(x)
    apart = []
    for off in ("attention_scale", "convolution_scale"):
        scale = getattr(attention, off)
        kept = scale.detach().clone()
        nn.init.zeros_(scale)
        apart.append(attention(x))
        with torch.no_grad():
            scale.copy_(kept)
    assert_close(apart[0] + apart[1], whole, **CLOSE)


def test_windows_do_not_see_each_other_but_the_convolution_does():
    attention = randomised(ACmixWindowAttention(8, num_heads=2, window_size=4)).eval()
    x = torch.randn(1, 8, 8, 8)
    changed = x.clone()
    changed[0, 1, 1] += 1  # in the first window
    nn.init.zeros_(attention.convolution_scale)
    seen = (attention(changed) != attention(x)).any(-1)[0]
    assert seen.nonzero().max() == 3
    nn.init.ones_(attention.convolution_scale)
    nn.init.zeros_(attention.attention_scale)
    changed = x.clone()
    changed[0, 3, 3] += 1
    seen = (attention(changed) != attention(x)).any(-1)[0]
    assert seen.nonzero().tolist() == [[i, j] for i in (2, 3, 4) for j in (2, 3, 4)]


def test_seam_separates_attention():
    """Behind a cyclic shift, no position attends to one from the other end of the image."""
    block = randomised(ACmixSwinBlock(8, (8, 8), num_heads=2, window_size=4, shift_size=2)).eval()
    nn.init.zeros_(block.attn.convolution_scale)
    x = torch.randn(1, 8, 8, 8)
    changed = x.clone()
    changed[0, 0, 0, 0] += 1
    moved = (block(changed) - block(x)).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().tolist() == [[i, j] for i in (0, 1) for j in (0, 1)]
    inside = x.clone()
    inside[0, 2, 2, 0] += 1
    moved = (block(inside) - block(x)).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().tolist() == [[i, j] for i in (2, 3, 4, 5) for j in (2, 3, 4, 5)]


def test_convolution_sees_the_shifted_map():
    """As in the authors' code, the first and the last row are neighbours behind a shift."""
    block = randomised(ACmixSwinBlock(8, (8, 8), num_heads=2, window_size=4, shift_size=2)).eval()
    nn.init.zeros_(block.attn.attention_scale)
    x = torch.randn(1, 8, 8, 8)
    changed = x.clone()
    changed[0, 0, 4, 0] += 1
    moved = (block(changed) - block(x)).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero().tolist() == [[i, j] for i in (0, 1, 7) for j in (3, 4, 5)]


@pytest.mark.parametrize("size", [(3, 2), (4, 3)])
def test_window_larger_than_the_map_is_a_smaller_window(size):
    """The part of the table that such a map needs is what a window of its size would have."""
    large = randomised(ACmixWindowAttention(8, num_heads=2, window_size=4))
    small = ACmixWindowAttention(8, num_heads=2, window_size=size)
    state = large.state_dict()
    table = state["relative_position_bias_table"].view(7, 7, 2)
    h, w = size
    middle = table[4 - h : 3 + h, 4 - w : 3 + w].reshape(-1, 2)
    small.load_state_dict(state | {"relative_position_bias_table": middle})
    x = torch.randn(2, h, w, 8)
    assert_close(large(x), small(x), **CLOSE)


def test_map_that_windows_do_not_divide():
    """Each window of the shifted map, cut at the map's edge and at the seam, is on its own."""
    block = randomised(ACmixSwinBlock(8, (7, 6), num_heads=2, window_size=4, shift_size=2)).eval()
    nn.init.zeros_(block.attn.convolution_scale)
    x = torch.randn(1, 7, 6, 8)
    normed = block.norm1(x)
    expected = torch.empty_like(x)
    for rows in (slice(2, 6), slice(6, 7), slice(0, 2)):  # of the map as it is before the shift
        for columns in (slice(2, 6), slice(0, 2)):
            expected[:, rows, columns] = block.attn(normed[:, rows, columns])
    expected = x + expected
    expected = expected + block.mlp(block.norm2(expected))
    assert_close(block(x), expected, **CLOSE)


@pytest.mark.parametrize(("size", "shifted"), [((4, 4), False), ((4, 8), True), ((5, 3), True)])
def test_axis_within_one_window_is_not_shifted(size, shifted):
    options = {"num_heads": 2, "window_size": 4}
    shifting = randomised(ACmixSwinBlock(8, (4, 4), shift_size=2, **options)).eval()
    fixed = ACmixSwinBlock(8, (4, 4), **options).eval()
    fixed.load_state_dict(shifting.state_dict())
    x = torch.randn(1, *size, 8)
    assert torch.equal(shifting(x), fixed(x)) != shifted
    half = ACmixSwinBlock(
        8,
        (4, 4),
        shift_size=tuple(2 if n > 4 else 0 for n in size),
        always_partition=True,
        **options,
    ).eval()
    half.load_state_dict(shifting.state_dict())
    assert_close(shifting(x), half(x), **EXACT)


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (70, 33), (9, 130)])
def test_any_image(size):
    model = randomised(timm.create_model("test_swin_acmix", num_classes=5)).eval()
    x = torch.randn(2, 3, *size)
    features = model.forward_features(x)
    assert features.shape == (2, -(-size[0] // 32), -(-size[1] // 32), 128)
    y = model(x)
    assert y.isfinite().all()
    assert_close(torch.cat([model(image[None]) for image in x]), y, rtol=1e-4, atol=1e-4)


def test_img_size_changes_nothing():
    model = randomised(timm.create_model("test_swin_acmix")).eval()
    other = timm.create_model("test_swin_acmix", img_size=(40, 96)).eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 40, 96)
    assert_close(other(x), model(x), **EXACT)


def test_set_input_size_resizes_windows():
    """timm's method keeps the number of windows of a stage."""
    model = randomised(timm.create_model("test_swin_acmix"))
    model.set_input_size(img_size=128)
    block = model.layers[0].blocks[1]
    assert (block.window_size, block.shift_size) == ((8, 8), (4, 4))
    assert block.attn.relative_position_bias_table.shape == (15 * 15, 1)
    assert model(torch.randn(1, 3, 128, 128)).isfinite().all()


def test_features():
    model = timm.create_model("test_swin_acmix", features_only=True, out_indices=(1, 3))
    assert model.feature_info.channels() == [32, 128]
    assert model.feature_info.reduction() == [8, 32]
    shapes = [tuple(f.shape) for f in model(torch.zeros(2, 3, 40, 64))]
    assert shapes == [(2, 5, 8, 32), (2, 2, 2, 128)]


def test_drop_rates_reach_their_layers():
    rates = {"drop_path_rate": 0.3, "attn_drop_rate": 0.2, "proj_drop_rate": 0.1}
    model = timm.create_model("test_swin_acmix", **rates)
    blocks = [block for stage in model.layers for block in stage.blocks]
    assert isinstance(blocks[0].drop_path1, nn.Identity)
    assert blocks[-1].drop_path1.drop_prob == blocks[-1].drop_path2.drop_prob
    assert blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)
    assert {b.attn.attn_drop.p for b in blocks} == {0.2}
    assert {b.attn.proj_drop.p for b in blocks} == {b.mlp.drop1.p for b in blocks} == {0.1}


def test_output_is_dropped_whole():
    """The drop rate of the output holds for both paths, as in the authors' code."""
    attention = randomised(ACmixWindowAttention(8, num_heads=2, window_size=4, proj_drop=0.5))
    y = attention.train()(torch.randn(1, 8, 8, 8))
    assert 0.3 < (y == 0).float().mean() < 0.7
    assert not (attention.eval()(torch.randn(1, 8, 8, 8)) == 0).any()


@pytest.mark.parametrize("weight_init", ["", "skip", "jax", "moco"])
def test_start(weight_init):
    """The taps are shifts, both paths count by one half, whatever draws the rest."""
    model = timm.create_model("test_swin_acmix", weight_init=weight_init)
    for block in (block for stage in model.layers for block in stage.blocks):
        attention = block.attn
        shifts = torch.eye(9).view(9, 3, 3).expand(block.dim, 9, 3, 3)
        assert_close(attention.shift.weight, shifts, **EXACT)
        assert attention.attention_scale == attention.convolution_scale == 0.5
        assert 0 < attention.relative_position_bias_table.std() < 0.04
    if not weight_init:
        assert model.layers[3].blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_start_after_meta():
    """timm's way of filling a network that was built without memory."""
    model = timm.create_model("test_swin_acmix", device="meta").to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        nn.init.constant_(tensor, 7)
    model.init_weights()
    attention = model.layers[2].blocks[1].attn
    shifts = torch.eye(9).view(9, 3, 3).expand(64, 9, 3, 3)
    assert_close(attention.shift.weight, shifts, **EXACT)
    assert attention.attention_scale == attention.convolution_scale == 0.5
    whole = timm.create_model("test_swin_acmix").layers[2].blocks[1].attn
    assert_close(attention.relative_position_index, whole.relative_position_index, **EXACT)
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_layout_of_the_authors_is_recognised():
    source = randomised(timm.create_model("test_swin_acmix"))
    target = timm.create_model("test_swin_acmix")
    report = load_published(target, published(source))
    assert report.layout == "LeapLabTHU/ACmix"
    assert report.unwrapped == ("model",)
    for key, value in source.state_dict().items():
        assert_close(target.state_dict()[key], value, **EXACT)


def test_table_is_resized_when_loaded():
    source = randomised(timm.create_model("test_swin_acmix"))
    target = timm.create_model("test_swin_acmix", window_size=5)
    load_published(target, published(source))
    theirs = source.layers[2].blocks[1].attn.relative_position_bias_table.view(7, 7, 4)
    ours = target.layers[2].blocks[1].attn.relative_position_bias_table.view(9, 9, 4)
    assert_close(ours[4, 4], theirs[3, 3], **CLOSE)
    assert_close(ours[::8, ::8], theirs[::6, ::6], **CLOSE)


def test_trains_every_parameter():
    """All but the biases of the keys, which a softmax does not see but the convolution does."""
    model = randomised(timm.create_model("test_swin_acmix", num_classes=3)).double().train()
    model.set_grad_checkpointing()
    model(torch.randn(2, 3, 64, 64).double()).square().sum().backward()
    sizes = {name: p.grad.abs().max().item() for name, p in model.named_parameters()}
    assert [n for n, size in sizes.items() if size <= 1e-12 * max(sizes.values())] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """At a size with masks of both kinds: behind the seam, and beyond the map."""
    model = randomised(timm.create_model("test_swin_acmix", num_classes=5)).eval()
    x = torch.randn(2, 3, 72, 52)
    y = model(x)
    rounded = model.to(dtype)(x.to(dtype)).float()
    assert (rounded - y).abs().max() < 0.1 * y.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.float()(x).float()
    assert (mixed - y).abs().max() < 0.1 * y.abs().max()


@pytest.mark.slow  # one export, of which the four sizes share the program
@pytest.mark.parametrize("size", [(2, 9, 11), (3, 8, 8), (1, 4, 12), (2, 3, 2)])
def test_exported_block_serves_every_map(exported, size):
    """At sizes with and without shifts, windows beyond the map, and a window larger than it."""
    block, program = exported
    x = torch.randn(*size, 8)
    assert_close(program(x), block(x), **CLOSE)


@pytest.fixture(scope="module")
def exported():
    block = randomised(ACmixSwinBlock(8, (8, 8), num_heads=2, window_size=4, shift_size=2)).eval()
    auto = torch.export.Dim.AUTO
    dims = {"x": {0: auto, 1: auto, 2: auto}}
    program = torch.export.export(block, (torch.randn(2, 9, 11, 8),), dynamic_shapes=dims)
    return block, program.module()


def test_head_width_cannot_be_chosen():
    with pytest.raises(ValueError, match=r"head_dim cannot be chosen.*leave it out"):
        timm.create_model("test_swin_acmix", head_dim=8)


def test_output_stride_is_refused():
    with pytest.raises(ValueError, match=r"output_stride must be 32, because .*got 16"):
        timm.create_model("test_swin_acmix", output_stride=16)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"channels must be a multiple of num_heads, got 16 and 3"):
        timm.create_model("test_swin_acmix", num_heads=(3, 2, 4, 8))


@pytest.mark.parametrize("name", ["swin_acmix_tiny", "swin_acmix_small"])
def test_images_are_prepared_as_by_the_authors(name):
    cfg = timm.get_pretrained_cfg(name)
    assert (cfg.interpolation, cfg.crop_pct, cfg.input_size) == ("bicubic", 0.875, (3, 224, 224))
    assert (cfg.mean, cfg.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@torch.no_grad()
@pytest.mark.parametrize("shift", [(0, 0), (1, 2)])
@pytest.mark.parametrize("size", [(8, 8), (9, 5)])
def test_attention_weights_give_the_output(size, shift):
    attention = randomised(ACmixWindowAttention(12, num_heads=3, window_size=4)).double().eval()
    attention.convolution_scale.zero_()
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    weights = attention.attention_weights(x, shift)
    assert weights.shape == (2, 3, *size, 4, 4)
    assert_close(weights.sum((4, 5)), torch.ones(2, 3, *size, dtype=x.dtype))
    weights = weights.roll((-shift[0], -shift[1]), (2, 3))  # as the map came in
    value = torch.zeros(2, 12, 12, 3, 4, dtype=x.dtype)
    value[:, : size[0], : size[1]] = attention.qkv(x)[..., 24:].unflatten(-1, (3, 4))
    rows, columns = (torch.arange(n) // 4 * 4 for n in size)
    inside = torch.arange(4)
    windows = value[
        :,
        (rows[:, None] + inside)[:, None, :, None],
        (columns[:, None] + inside)[None, :, None, :],
    ]  # (B, H, W, 4, 4, M, D)
    mixed = torch.einsum("bmyxuv,byxuvmd->byxmd", weights, windows).flatten(3)
    assert_close(attention.proj(mixed) * attention.attention_scale, attention(x, shift))
