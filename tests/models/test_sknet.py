import logging

import pytest
import timm
import torch
from timm.models.resnet import ResNet
from timm.models.sknet import SelectiveKernelBottleneck
from torch import nn
from torch.testing import assert_close

from tests.models.golden_networks import GoldenNetwork
from visgraft.blocks import SelectiveKernel, load_published
from visgraft.models import create_model


def randomise(network):
    """Makes every tensor of a network count."""
    torch.manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            nn.init.uniform_(tensor, 0.8, 1.2)
        elif name.endswith(("running_mean", "bias")):
            nn.init.normal_(tensor, std=0.1)
    return network.eval()


def tiny_of_timm(**options):
    """timm's network of the same structure as test_sknet, whose gates have 32 channels."""
    return ResNet(
        block=SelectiveKernelBottleneck,
        layers=(1, 1, 1, 2),
        channels=(8, 16, 16, 32),
        cardinality=4,
        base_width=32,
        num_classes=5,
        block_args={"sk_kwargs": {"rd_ratio": 1 / 16, "rd_divisor": 32, "split_input": False}},
        zero_init_last=False,
        **options,
    )


@pytest.mark.parametrize(
    ("name", "layers", "params", "gates"),
    [
        ("sknet26", [2, 2, 2, 2], 16_746_408, [32, 32, 32, 64]),
        ("sknet50", [3, 4, 6, 3], 27_479_784, [32, 32, 32, 64]),
        ("sknet101", [3, 4, 23, 3], 48_686_760, [32, 16, 32, 64]),
    ],
)
def test_structure(name, layers, params, gates):
    network = create_model(name, device="meta")
    assert sum(p.numel() for p in network.parameters()) == params
    for stage, (depth, gate) in enumerate(zip(layers, gates, strict=True)):
        blocks = list(network.get_submodule(f"layer{stage + 1}"))
        assert len(blocks) == depth
        for index, block in enumerate(blocks):
            unit = block.conv2
            assert isinstance(unit, SelectiveKernel)
            convs = [branch.conv for branch in unit.branches]
            width = 128 * 2**stage
            stride = 2 if stage > 0 and index == 0 else 1
            assert [conv.dilation for conv in convs] == [(1, 1), (2, 2)]
            for conv in convs:
                assert (conv.in_channels, conv.out_channels, conv.groups) == (width, width, 32)
                assert conv.stride == (stride, stride)
            assert unit.reduce.out_channels == gate
            assert isinstance(block.bn2, nn.Identity)
            assert isinstance(block.act2, nn.Identity)


@pytest.mark.parametrize(("size", "caffe"), [(8, 4), (7, 3)])
def test_stem_pool(size, caffe):
    """Caffe's windows start at the first value and are cut at the end; torch's start before it."""
    x = torch.arange(float(size * size)).reshape(1, 1, size, size)
    pooled = create_model("test_sknet").maxpool(x)
    assert pooled.shape[2:] == (caffe, caffe)
    last = [min(2 * i + 2, size - 1) for i in range(caffe)]
    assert_close(pooled, x[..., last, :][..., last])
    padded = create_model("test_sknet", stem_pool="torch").maxpool(x)
    assert_close(padded, nn.functional.max_pool2d(x, 3, 2, 1))
    assert padded.shape[2:] == (4, 4)


def test_recorded_network_of_timm():
    case = GoldenNetwork("timm_skresnext50_32x4d")
    network = create_model("sknet50", stem_pool="torch").eval()
    published = case.weights()
    report = load_published(network, published)
    assert (report.layout, report.kept, report.ignored) == ("timm", (), ())
    assert report.tensors == len(published) == len(network.state_dict())
    with torch.no_grad():
        case.check("logits", network(case.input()))


def test_timms_skresnext50():
    theirs = randomise(timm.create_model("skresnext50_32x4d"))
    network = create_model("sknet50", stem_pool="torch").eval()
    load_published(network, theirs.state_dict())
    x = torch.randn(2, 3, 57, 64)
    with torch.no_grad():
        assert_close(network(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_equals_timms_network_of_the_same_structure(output_stride):
    theirs = randomise(tiny_of_timm(output_stride=output_stride))
    network = create_model(
        "test_sknet",
        num_classes=5,
        min_hidden=32,
        stem_pool="torch",
        output_stride=output_stride,
    ).eval()
    load_published(network, theirs.state_dict())
    x = torch.randn(2, 3, 65, 96)
    assert_close(network(x), theirs(x), rtol=1e-4, atol=1e-5)
    features, expected = network.forward_features(x), theirs.forward_features(x)
    assert (
        features.shape == expected.shape == (2, 128, -(-65 // output_stride), 96 // output_stride)
    )
    network.maxpool = create_model("test_sknet").maxpool
    assert (network(x) - theirs(x)).abs().max() > 1e-3


@pytest.mark.parametrize(("pool", "warns"), [("caffe", True), ("torch", False)])
def test_weights_for_the_other_pool_are_reported(pool, warns, caplog):
    network = create_model("test_sknet", num_classes=5, min_hidden=32, stem_pool=pool)
    with caplog.at_level(logging.WARNING):
        load_published(network, tiny_of_timm().state_dict())
    assert ("made for stem_pool='torch'" in caplog.text) == warns


def test_own_weights_are_not_reported(caplog):
    network = create_model("test_sknet", stem_pool="torch")
    assert load_published(network, create_model("test_sknet").state_dict()).layout == "visgraft"
    assert not caplog.records


CAFFE_OUTSIDE = {"conv1": "conv1/7x7_s2", "bn1": "conv1/7x7_s2/bn", "fc": "classifier"}
CAFFE_IN_BLOCKS = {
    "conv1": "1x1_reduce",
    "bn1": "1x1_reduce/bn",
    "conv2.branches.0.conv": "3x3g32",
    "conv2.branches.0.norm": "3x3g32/bn",
    "conv2.branches.1.conv": "3x3g32d2",
    "conv2.branches.1.norm": "3x3g32d2/bn",
    "conv2.reduce": "B_fc1",
    "conv2.norm": "B_fc1/bn",
    "conv2.expand": "B_fc2",
    "conv3": "1x1_increase",
    "bn3": "1x1_increase/bn",
    "downsample.0": "1x1_proj",
    "downsample.1": "1x1_proj/bn",
}


def caffes_name(layer):
    """Blocks are counted from one, stages from two."""
    if layer in CAFFE_OUTSIDE:
        return CAFFE_OUTSIDE[layer]
    stage, block, inside = layer.removeprefix("layer").split(".", 2)
    return f"conv{int(stage) + 1}_{int(block) + 1}/{CAFFE_IN_BLOCKS[inside]}"


def test_caffes_names(caplog):
    network, other = randomise(create_model("test_sknet")), create_model("test_sknet").eval()
    published = {}
    for key, tensor in network.state_dict().items():
        layer, _, kind = key.rpartition(".")
        if kind != "num_batches_tracked":
            published[f"{caffes_name(layer)}.{kind}"] = tensor
    report = load_published(other, published)
    assert report.layout == "implus/SKNet"
    x = torch.randn(2, 3, 64, 64)
    assert_close(other(x), network(x), rtol=0, atol=0)
    assert not caplog.records
    load_published(create_model("test_sknet", stem_pool="torch"), published)
    assert "made for stem_pool='caffe'" in caplog.text


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_pytorch_insight_are_refused(prefix):
    network = create_model("test_sknet")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    keys = ["conv1", "layer1.0.conv2", "layer1.0.conv2g", "layer1.0.conv_fc1", "layer1.0.conv_fc2"]
    weights = {f"{prefix}{key}.weight": torch.zeros(1) for key in keys}
    with pytest.raises(ValueError, match=r"PytorchInsight's sk_resnet, another network .*; take"):
        load_published(network, {"state_dict": weights})
    assert_close(dict(network.state_dict()), before, rtol=0, atol=0)


def test_initialisation():
    torch.manual_seed(0)
    network = create_model("test_sknet", num_classes=500)
    unit = network.layer4[1].conv2
    for layer in (unit.reduce, unit.expand, network.fc):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.15)
    conv = unit.branches[1].conv.weight  # 16 inputs of 3 x 3 each
    assert conv.std().item() == pytest.approx((2 / (16 * 9)) ** 0.5, rel=0.15)
    assert network.layer4[1].conv3.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.15)
    assert (network.layer4[1].bn3.weight == 1).all()
    network.init_weights()
    assert unit.reduce.weight.std().item() == pytest.approx(0.01, rel=0.15)
    zeroed = create_model("test_sknet", zero_init_last=True)
    assert not zeroed.layer4[1].bn3.weight.any()


@pytest.mark.parametrize("size", [(33, 50), (64, 96)])
def test_features(size):
    network = create_model("test_sknet", features_only=True).eval()
    assert network.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert network.feature_info.channels() == [64, 32, 64, 64, 128]
    maps = network(torch.zeros(1, 3, *size))
    sides = [[-(-side // 2)] for side in size]
    for side in sides:
        side.append(side[0] // 2)  # Caffe's pool
        for _ in range(3):
            side.append(-(-side[-1] // 2))
    assert [list(each.shape[2:]) for each in maps] == [list(s) for s in zip(*sides, strict=True)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem_pool": "tf"}, r"SKNet: stem_pool must be 'caffe' or 'torch', got 'tf'"),
        ({"min_hidden": 0}, r"min_hidden must be a positive integer, or one for each .*, got 0"),
        ({"min_hidden": (32, 16)}, r"for each of the four stages, got \(32, 16\)"),
    ],
)
def test_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("test_sknet", device="meta", **options)
