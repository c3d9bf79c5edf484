import pytest
import torch
from timm.models._efficientnet_blocks import InvertedResidual
from torch import nn
from torch.testing import assert_close

from tests.models.golden_parts import check_part, golden_part
from visgraft.blocks import CoordAttention, Layout, load_published, register_layouts
from visgraft.models import create_model
from visgraft.models.mobilenetv2_ca import _UNIT, _gate

WIDTHS = {
    "mobilenetv2_ca_100": (32, 16, 24, 32, 64, 96, 160, 320),
    "mobilenetv2_ca_075": (24, 16, 24, 24, 48, 72, 120, 240),
    "mobilenetv2_ca_050": (16, 8, 16, 16, 32, 48, 80, 160),
}


class Unit(InvertedResidual):
    """The block that timm's builder makes, with the layout of the authors' block."""

    def __init__(self, channels, out_channels, stride, expansion):
        super().__init__(
            channels,
            out_channels,
            stride=stride,
            exp_ratio=expansion,
            act_layer=nn.ReLU6,
            se_layer=_gate,
        )


register_layouts(Unit, Layout("houqb/CoordAttention mbv2_ca.py", _UNIT))


@pytest.mark.parametrize("name", ["cainvres-official-i16s1_5x6", "cainvres-official-i8s2_7x8"])
def test_unit_equals_the_authors_code(name):
    case = golden_part(name)
    kwargs = case.record["kwargs"]
    part = Unit(kwargs["inp"], kwargs["oup"], kwargs["stride"], kwargs["expand_ratio"])
    check_part(case, part)


@pytest.mark.parametrize("name", WIDTHS)
def test_widths(name):
    network = create_model(name, device="meta")
    stem, *stages = WIDTHS[name]
    assert network.conv_stem.out_channels == stem
    assert [
        getattr(stage[-1], "conv_pwl", stage[-1].conv_pw).out_channels for stage in network.blocks
    ] == stages
    assert [len(stage) for stage in network.blocks] == [1, 2, 3, 4, 3, 3, 1]
    assert network.conv_head.out_channels == network.num_features == 1280


def test_attention_stands_where_channels_are_expanded():
    network = create_model("mobilenetv2_ca_100", device="meta")
    (first,), *others = network.blocks
    assert isinstance(first.se, nn.Identity)
    units = [unit for stage in others for unit in stage]
    assert len(units) == 16
    for unit in units:
        hidden = unit.conv_pw.out_channels
        assert isinstance(unit.se, CoordAttention)
        assert unit.se.channels == hidden == 6 * unit.conv_pw.in_channels
        assert unit.se.reduce.out_channels == max(8, hidden // 32)


def test_features():
    network = create_model("mobilenetv2_ca_050", features_only=True, device="meta")
    assert network.feature_info.channels() == [8, 16, 16, 48, 160]
    assert network.feature_info.reduction() == [2, 4, 8, 16, 32]
    shapes = [tuple(f.shape[2:]) for f in network(torch.empty(1, 3, 70, 33, device="meta"))]
    assert shapes == [(35, 17), (18, 9), (9, 5), (5, 3), (3, 2)]


@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride(output_stride):
    network = create_model("test_mobilenetv2_ca", output_stride=output_stride)
    features = network.forward_features(torch.randn(1, 3, 64, 96))
    assert features.shape[2:] == (64 // output_stride, 96 // output_stride)
    assert network.feature_info[-1]["reduction"] == output_stride


def test_initialisation_is_the_authors():
    torch.manual_seed(0)
    network = create_model("mobilenetv2_ca_050")
    depthwise, gate = network.blocks[5][1].conv_dw, network.blocks[5][1].se
    assert depthwise.groups == 480
    spreads = {
        network.conv_head: (2 / 1280) ** 0.5,
        depthwise: (2 / (9 * 480)) ** 0.5,  # not divided by the groups, as timm does
        gate.expand_h: (2 / 480) ** 0.5,
        gate.reduce: (2 / 15) ** 0.5,
        network.classifier: 0.01,
    }
    for layer, spread in spreads.items():
        assert_close(layer.weight.std().item(), spread, rtol=0.05, atol=0)
        assert_close(layer.weight.mean().item() / spread, 0.0, rtol=0, atol=0.05)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and module.bias is not None:
            assert not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()


def test_dropout_is_the_papers_unless_chosen():
    assert create_model("test_mobilenetv2_ca").drop_rate == 0.1
    assert create_model("test_mobilenetv2_ca", drop_rate=0.0).drop_rate == 0.0


def test_activations_are_clipped_at_six():
    network = create_model("test_mobilenetv2_ca").eval()
    unit = network.blocks[1][0]
    loud = 1e3 * torch.randn(1, 8, 9, 9)
    for first, second in ((unit.conv_pw, unit.bn1), (unit.conv_dw, unit.bn2)):
        loud = 1e3 * second(first(loud))
        assert loud.min() == 0
        assert loud.max() == 6e3


def test_attention_acts():
    """A gate that is shut, by a large negative bias, leaves the shortcut alone."""
    network = create_model("test_mobilenetv2_ca").eval()
    unit = network.blocks[1][1]
    assert unit.has_skip
    x = torch.randn(1, 8, 6, 5)
    before = unit(x)
    nn.init.constant_(unit.se.expand_w.bias, -1e4)
    assert_close(unit(x), x + unit.bn3(torch.zeros_like(x)))
    assert not torch.allclose(unit(x), before)


def test_published_keys_are_taken_with_the_prefix_of_a_parallel_wrapper():
    """The attention's names in the network's file differ from those in coordatt.py."""
    network = create_model("mobilenetv2_ca_050", num_classes=10)
    published = {}
    for key, tensor in network.state_dict().items():
        published[f"module.{_authors(key)}"] = tensor + 1 if key.endswith("bias") else tensor
    other = create_model("mobilenetv2_ca_050", num_classes=10)
    report = load_published(other, published)
    assert report.layout == "houqb/CoordAttention mbv2_ca.py"
    assert report.unwrapped == ("module.",)
    assert_close(other.blocks[6][0].se.expand_w.bias, network.blocks[6][0].se.expand_w.bias + 1)
    assert_close(other.blocks[2][2].conv_dw.weight, network.blocks[2][2].conv_dw.weight)


def _authors(key):
    """Returns the authors' name of a tensor, whose units are counted through all stages."""
    outer = {"conv_stem": "features.0.0", "bn1": "features.0.1", "conv_head": "conv.0"}
    outer |= {"bn2": "conv.1", "classifier": "classifier.1"}
    head, _, rest = key.partition(".")
    if head in outer:
        return f"{outer[head]}.{rest}"
    stage, unit, layer, leaf = rest.split(".", 3)
    position = 1 + sum([1, 2, 3, 4, 3, 3, 1][: int(stage)]) + int(unit)
    if stage == "0":
        number = {"conv_dw": "0", "bn1": "1", "conv_pw": "3", "bn2": "4"}[layer]
    else:
        order = {"conv_pw": "0", "bn1": "1", "conv_dw": "3", "bn2": "4", "se": "6"}
        number = (order | {"conv_pwl": "7", "bn3": "8"})[layer]
    if layer == "se":
        part, _, last = leaf.partition(".")
        inner = {"reduce": "conv1", "norm": "bn1", "expand_h": "conv2", "expand_w": "conv3"}
        leaf = f"{inner[part]}.{last}"
    return f"features.{position}.conv.{number}.{leaf}"
