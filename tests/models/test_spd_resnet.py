import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tests.models.golden_parts import check_part, golden_part
from visgraft.blocks import SpaceToDepth, load_published
from visgraft.models import create_model
from visgraft.models.spd_resnet import SPDBasicBlock, SPDBottleneck


def unit(kind, channels, planes, stride):
    """Returns a residual unit with the shortcut that timm's trunk would give it."""
    shortcut, width = None, planes * kind.expansion
    if stride != 1 or channels != width:
        conv = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
        shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))
    return kind(channels, planes, stride, shortcut)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("spdbasic-official-o8s1_5x7", SPDBasicBlock),
        ("spdbasic-official-o8s2_6x8", SPDBasicBlock),
        ("spdbottleneck-official-o8s1_5x7", SPDBottleneck),
        ("spdbottleneck-official-o8s2_6x8", SPDBottleneck),
    ],
)
def test_unit_equals_the_authors_code(name, kind):
    case = golden_part(name)
    kwargs = case.record["kwargs"]
    check_part(case, unit(kind, kwargs["in_channels"], kwargs["out_channels"], kwargs["stride"]))


@pytest.mark.parametrize(
    ("name", "classes", "size", "mean"),
    [
        ("spd_resnet18", 200, 64, (122.4786 / 255, 114.2755 / 255, 101.3963 / 255)),
        ("spd_resnet50", 100, 32, (0.50707516, 0.48654887, 0.44091784)),
    ],
)
def test_defaults_are_the_authors(name, classes, size, mean):
    network = create_model(name, device="meta")
    assert network.num_classes == classes
    assert network.pretrained_cfg["input_size"] == (3, size, size)
    assert network.pretrained_cfg["mean"] == pytest.approx(mean, abs=5e-5)


@pytest.mark.parametrize("name", ["spd_resnet18", "spd_resnet50"])
def test_nothing_is_dropped_but_in_the_shortcuts(name):
    network = create_model(name, device="meta")
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.stride != (1, 1):
            assert "downsample" in path
        assert not isinstance(module, nn.MaxPool2d | nn.AvgPool2d)
    assert sum(isinstance(module, SpaceToDepth) for module in network.modules()) == 3


def test_every_pixel_counts():
    network = create_model("test_spd_resnet").eval()
    x = torch.randn(1, 3, 11, 9, requires_grad=True)
    network(x).square().sum().backward()
    assert (x.grad != 0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 18), (15, 17), (33, 7), (48, 64)])
def test_any_size_is_rounded_up(size):
    network = create_model("test_spd_resnet", features_only=True).eval()
    assert network.feature_info.reduction() == [2, 2, 4, 8, 16]
    for feature, reduction in zip(
        network(torch.randn(2, 3, *size)), network.feature_info.reduction(), strict=True
    ):
        assert feature.shape[2:] == tuple(-(-n // reduction) for n in size)


def test_padding_of_an_odd_size_is_below_and_to_the_right():
    network = create_model("test_spd_resnet", features_only=True, out_indices=(0, 1)).eval()
    x = torch.randn(1, 3, 9, 13)
    padded = nn.functional.pad(x, (0, 1, 0, 1))
    for feature, wanted in zip(network(x), network(padded), strict=True):
        assert_close(feature, wanted)


@pytest.mark.parametrize("zero", [False, True])
def test_initialisation_is_pytorchs(zero):
    network = create_model("test_spd_resnet", zero_init_last=zero)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound
    gamma = network.layer2[0].bn3.weight
    assert_close(gamma, torch.zeros(64) if zero else torch.ones(64))


def test_stem_folds_convolves_and_ends_in_silu():
    network = create_model("test_spd_resnet").eval()
    assert network.conv1.conv.weight.shape == (64, 12, 1, 1)
    x = torch.randn(1, 3, 8, 8)
    stem = network.forward_intermediates(x, indices=[0], intermediates_only=True)[0]
    folded = network.bn1(network.conv1(x))
    assert_close(stem, folded * folded.sigmoid())


def test_takes_the_authors_keys():
    network, other = create_model("test_spd_resnet"), create_model("test_spd_resnet")
    names = {"conv1.conv.": "conv1.conv.conv.", "bn1.": "conv1.conv.bn."}
    published = {}
    for key, tensor in network.state_dict().items():
        if key.startswith(tuple(names)):
            key = next(new + key.removeprefix(old) for old, new in names.items() if old in key)
        published[_authors_unit(key)] = tensor
    assert "conv3_x.0.residual_function.3.weight" in published
    assert "conv3_x.0.residual_function.8.running_mean" in published
    assert "conv3_x.1.residual_function.7.running_mean" in published
    report = load_published(other, published)
    assert report.tensors == len(published)
    for key, tensor in other.state_dict().items():
        assert_close(tensor, network.state_dict()[key], rtol=0, atol=0)


def _authors_unit(key):
    """Returns the authors' name of a tensor in a bottleneck of the test network."""
    stage, _, inner = key.partition(".")
    if not stage.startswith("layer"):
        return key
    position, layer, leaf = inner.split(".")[0], inner.split(".")[1], inner.split(".", 2)[2]
    strided = stage != "layer1" and position == "0"
    plain = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6, "bn3": 7}
    folding = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 5, "conv3": 7, "bn3": 8}
    prefix = f"conv{int(stage[-1]) + 1}_x.{position}"
    if layer == "downsample":
        return f"{prefix}.shortcut.{leaf}"
    number = (folding if strided else plain)[layer]
    return f"{prefix}.residual_function.{number}.{leaf.removeprefix('0.')}"


@pytest.mark.parametrize("output_stride", [8, 32])
def test_rejects_output_stride(output_stride):
    with pytest.raises(
        ValueError, match=rf"SPDResNet: output_stride .* 16, .* got {output_stride}"
    ):
        create_model("test_spd_resnet", output_stride=output_stride)


@pytest.mark.parametrize(
    "option", [{"stem_type": "deep"}, {"replace_stem_pool": True}, {"aa_layer": nn.AvgPool2d}]
)
def test_rejects_timms_stem_and_smoothing(option):
    with pytest.raises(ValueError, match=rf"SPDResNet: {next(iter(option))} must be left out"):
        create_model("test_spd_resnet", **option)
