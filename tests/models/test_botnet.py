from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers.squeeze_excite import SEModule
from timm.models.resnet import Bottleneck
from torch import nn
from torch.testing import assert_close

from visgraft.blocks import BottleneckAttention, load_published
from visgraft.inspect import cost
from visgraft.models import create_model, network_info


def tiny(**options):
    """A tiny network of which every tensor counts."""
    torch.manual_seed(0)
    network = create_model("test_botnet", num_classes=5, **options).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith(("bn3.weight", "running_mean")):
            nn.init.normal_(tensor)
    return network


def blocks(network, stage):
    return list(network.get_submodule(f"layer{stage}"))


@pytest.mark.parametrize(
    ("name", "layers", "params"),
    [
        ("botnet50", [3, 4, 6, 3], 20_852_008),
        ("botnet_s1_50", [3, 4, 6, 3], 20_859_176),
        ("botnet_s1_59", [3, 4, 6, 6], 33_636_904),
        ("botnet_s1_77", [3, 4, 6, 12], 54_162_472),
        ("botnet_s1_110", [3, 4, 23, 6], 54_857_256),
        ("botnet_s1_128", [3, 4, 23, 12], 75_382_824),
    ],
)
def test_parameters_for_224(name, layers, params):
    network = create_model(name, img_size=224, device="meta")
    assert [len(blocks(network, stage)) for stage in (1, 2, 3, 4)] == layers
    assert sum(p.numel() for p in network.parameters()) == params
    published = network_info(name).published.params
    assert params / 1e6 == pytest.approx(published, rel=0.006)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("botnet_s1_59", 30_491_176),
        ("botnet_s1_77", 47_871_016),
        ("botnet_s1_110", 51_711_528),
        ("botnet_s1_128", 69_091_368),
    ],
)
def test_parameters_without_squeeze_and_excitation_next_to_attention(name, params):
    """They are too few for the paper's figures, which decides where it stands."""
    network = create_model(name, img_size=224, device="meta", attention_se=False)
    assert sum(p.numel() for p in network.parameters()) == params
    assert params / 1e6 < 0.95 * network_info(name).published.params


@pytest.mark.parametrize(
    ("name", "gmacs"), [("botnet50", 4.025), ("botnet_s1_50", 5.418), ("botnet_s1_59", 7.25)]
)
def test_cost_at_224(name, gmacs):
    """The figures count positions outside the map, which attention here does not compute."""
    network = create_model(name, device="meta")
    assert cost(network, (1, 3, 224, 224)).macs / 1e9 == pytest.approx(gmacs, rel=0.003)


@pytest.mark.parametrize(
    ("name", "stride", "scaled"),
    [
        ("botnet50", 2, False),
        ("botnet_s1_50", 1, False),
        ("botnet_s1_59", 1, True),
        ("botnet_s1_77", 1, True),
        ("botnet_s1_110", 1, True),
        ("botnet_s1_128", 1, True),
    ],
)
def test_structure(name, stride, scaled):
    network = create_model(name, device="meta")
    size = 224
    assert network.default_cfg["input_size"] == (3, size, size)
    act = nn.SiLU if scaled else nn.ReLU
    assert isinstance(network.act1, act)
    for stage in (1, 2, 3):
        assert all(isinstance(block.conv2, nn.Conv2d) for block in blocks(network, stage))
    for index, block in enumerate(blocks(network, 4)):
        attention = block.conv2
        assert isinstance(attention, BottleneckAttention)
        assert (attention.channels, attention.num_heads, attention.head_dim) == (512, 4, 128)
        pool = attention.pool
        pooled = index == 0 and stride == 2
        assert (pool.kernel_size if isinstance(pool, nn.AvgPool2d) else 1) == 1 + pooled
        side = size // 16 if index == 0 or stride == 1 else size // 32
        assert attention.offset_rows.shape == attention.offset_columns.shape == (2 * side - 1, 128)
        assert isinstance(block.bn2, nn.BatchNorm2d)
        assert isinstance(block.act2, act)
    for module in network.modules():
        if isinstance(module, Bottleneck) and scaled:
            width = module.bn3.num_features
            assert module.se.fc1.weight.shape == (width // 16, width, 1, 1)
            assert module.se.fc1.bias is module.se.fc2.bias is None
            assert isinstance(module.se.act, nn.ReLU)
        elif isinstance(module, Bottleneck):
            assert module.se is None


@pytest.mark.parametrize(
    ("options", "reductions"),
    [
        ({}, [2, 4, 8, 16, 32]),
        ({"attention_stride": 1}, [2, 4, 8, 16, 16]),
        ({"output_stride": 16}, [2, 4, 8, 16, 16]),
        ({"output_stride": 8}, [2, 4, 8, 8, 8]),
        ({"attention_stride": 1, "output_stride": 8}, [2, 4, 8, 8, 8]),
    ],
)
def test_maps_of_the_stages(options, reductions):
    network = tiny(features_only=True, img_size=(65, 97), **options)
    assert network.feature_info.reduction() == reductions
    maps = network(torch.zeros(1, 3, 65, 97))
    expected = [(-(-65 // r), -(-97 // r)) for r in reductions]
    assert [tuple(each.shape[2:]) for each in maps] == expected
    last = network.layer4[1].conv2
    tables = (len(last.offset_rows), len(last.offset_columns))
    assert tables == (2 * expected[-1][0] - 1, 2 * expected[-1][1] - 1)


def test_first_attention_sees_the_map_before_the_stride():
    first = tiny(img_size=(64, 96)).layer4[0].conv2
    assert (len(first.offset_rows), len(first.offset_columns)) == (7, 11)


def test_dilated_network_is_the_one_without_the_last_stride():
    dilated, s1 = tiny(output_stride=16), tiny(attention_stride=1)
    s1.load_state_dict(dilated.state_dict())
    x = torch.randn(2, 3, 64, 80)
    assert_close(dilated(x), s1(x))


@pytest.mark.parametrize(
    ("made_for", "shown"),
    [(64, 96), (96, 64), ((64, 96), (96, 48)), ((97, 40), (64, 64))],
)
def test_weights_for_another_image_size(made_for, shown):
    """Tables resized on loading give what the network gives that resizes them as it runs."""
    network, other = tiny(img_size=made_for), tiny(img_size=shown)
    size = (shown, shown) if isinstance(shown, int) else shown
    x = torch.randn(2, 3, *size)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert load_published(other, before).layout == "visgraft, another feature_size"
    assert_close(other(x), network(x))
    without = tiny(img_size=made_for)
    nn.init.zeros_(without.layer4[0].conv2.offset_rows)
    assert (without(x) - network(x)).abs().max() > 1e-4


def test_timm_loads_weights_for_another_image_size(tmp_path):
    network = tiny(img_size=(64, 96))
    file = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), file)
    other = timm.create_model(
        "test_botnet",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(file), "num_classes": 5},
        num_classes=5,
        img_size=128,
    ).eval()
    x = torch.randn(1, 3, 128, 128)
    assert len(other.layer4[0].conv2.offset_rows) == 15
    assert_close(other(x), network(x))


def test_jdai_layout():
    """Normalisation inside ``conv2`` and three projections, as JDAI-CV/CoTNet names them."""
    options = {
        "attention_se": False,
        "block_args": {"attn_layer": partial(SEModule, rd_ratio=1 / 16)},
    }
    network, other = tiny(**options), create_model("test_botnet", num_classes=5, **options).eval()
    published = {}
    for name, tensor in network.state_dict().items():
        name = name.replace(".conv2.", ".conv2.0.").replace(".bn2.", ".conv2.1.")
        name = name.replace("offset_rows", "self_attention.rel_emb_h")
        name = name.replace("offset_columns", "self_attention.rel_emb_w")
        if name.endswith("qkv.weight"):
            for part, weight in zip("qkv", tensor.flatten(1).chunk(3), strict=True):
                projection = weight.T.unflatten(1, (4, -1))  # (C, M, D)
                published[name.replace("qkv.weight", f"{part}_proj.w")] = projection
        else:
            published[name] = tensor
    report = load_published(other, {"state_dict": published})
    assert report.layout == "JDAI-CV/CoTNet"
    x = torch.randn(2, 3, 64, 64)
    assert_close(other(x), network(x))


def test_initialisation_is_the_attentions_own():
    network = create_model("test_botnet")
    attention = network.layer4[1].conv2
    before = {name: tensor.clone() for name, tensor in attention.state_dict().items()}
    convolution = network.layer3[0].conv2.weight.clone()
    network.init_weights()
    assert_close(dict(attention.state_dict()), before, rtol=0, atol=0)
    assert not torch.equal(network.layer3[0].conv2.weight, convolution)
    assert not network.layer4[1].bn3.weight.any()


@pytest.mark.parametrize("value", [0, -1, True, 22.5, "224", (224,), (224, 0), (3, 224, 224)])
def test_image_size_is_refused(value):
    with pytest.raises(ValueError, match=r"BoTNet: img_size must be a positive number .*, got "):
        create_model("test_botnet", img_size=value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("botnet_s1_59", {"output_stride": 32}, r"keeps the resolution must be 16 or 8, got 32"),
        ("botnet50", {"output_stride": 4}, r"of a network must be 32 or 16 or 8, got 4"),
        ("botnet50", {"attention_stride": 4}, r"attention_stride must be 1 or 2, got 4"),
        ("test_botnet", {"num_heads": 5}, r"multiple of 5 \(the heads\), got 32"),
    ],
)
def test_arguments_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, device="meta", **options)
