import pytest
import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import nn
from torch.testing import assert_close

from visgraft.blocks import DeformConv, load_published
from visgraft.models import create_model

STAGES = ("layer2", "layer3", "layer4")
OLD = (".conv2.offset.", ".conv2_offset.")  # ours, the authors'
NEW = (".conv2.offset.", ".conv2.conv_offset.")  # ours, later mmcv's


def randomised(network):
    """Nothing in it is zero or one, so that each term counts."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
                noise = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
                tensor.copy_(noise.abs() + 0.5 if key.endswith("var") else noise)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "modulated", "moves"), [("dcn_resnet50", False, 18), ("dcnv2_resnet50", True, 27)]
)
def test_structure(name, modulated, moves):
    network = create_model(name, device="meta")
    assert all(type(block.conv2) is nn.Conv2d for block in network.layer1)
    layers = [block.conv2 for stage in STAGES for block in network.get_submodule(stage)]
    assert len(layers) == 13
    for layer in layers:
        assert isinstance(layer, DeformConv)
        assert layer.modulated == modulated
        assert layer.offset.out_channels == moves
        assert layer.bias is None
        assert layer.offset_groups == 1


@pytest.mark.parametrize(("modulated", "scale"), [(False, 1.0), (True, 0.5)])
@pytest.mark.parametrize("options", [{}, {"cardinality": 4, "base_width": 8, "output_stride": 8}])
def test_new_network_looks_where_a_plain_one_does(modulated, scale, options):
    """No tap is moved; in version 2 each is halved."""
    network = create_model("test_dcn_resnet", modulated=modulated, **options).eval()
    plain = ResNet(Bottleneck, (1, 2, 1, 1), channels=(8, 16, 24, 32), **options).eval()
    state = dict(network.state_dict())
    for key in [key for key in state if ".conv2.offset." in key]:
        assert not state.pop(key).any()
    for key in state:
        if key.startswith(STAGES) and key.endswith("conv2.weight"):
            state[key] = scale * state[key]
    plain.load_state_dict(state)
    x = torch.randn(2, 3, 40, 56)
    assert_close(network(x), plain(x), rtol=1e-4, atol=1e-5)


def test_drawing_all_weights_anew_keeps_the_blocks_initialisation():
    network = create_model("test_dcn_resnet")
    before = network.layer3[0].conv2.weight.clone()
    network.init_weights()
    for stage in STAGES:
        for block in network.get_submodule(stage):
            assert not block.conv2.offset.weight.any()
            assert block.conv2.weight.abs().max() <= (9 * block.conv2.channels) ** -0.5
    assert_close(network.layer3[0].conv2.weight, before, rtol=0, atol=0)
    assert network.layer1[0].conv2.weight.abs().max() > 72**-0.5  # He's distribution is wider


@pytest.mark.parametrize(
    ("output_stride", "strides", "dilations"),
    [
        (32, (2, 1, 2, 2), (1, 1, 1, 1)),
        (16, (2, 1, 2, 1), (1, 1, 1, 1)),
        (8, (2, 1, 1, 1), (1, 1, 1, 2)),
    ],
)
def test_output_stride(output_stride, strides, dilations):
    """As in timm, a stage's first convolution has the dilation of the stage before."""
    network = create_model("test_dcn_resnet", output_stride=output_stride)
    blocks = [block for stage in STAGES for block in network.get_submodule(stage)]
    found = [block.conv2.geometry for block in blocks]
    assert tuple(each.stride[0] for each in found) == strides
    assert tuple(each.dilation[0] for each in found) == dilations
    features = network.forward_features(torch.randn(1, 3, 64, 96))
    assert features.shape[2:] == (64 // output_stride, 96 // output_stride)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize(("ours", "theirs"), [OLD, NEW])
def test_takes_the_backbone_of_a_detector(modulated, ours, theirs):
    trained = randomised(create_model("test_dcn_resnet", modulated=modulated, num_classes=0))
    keys = {key: f"backbone.{key.replace(ours, theirs)}" for key in trained.state_dict()}
    weights = {keys[key]: tensor for key, tensor in trained.state_dict().items()}
    assert sum(theirs in key for key in weights) == 8
    checkpoint = {"meta": {}, "state_dict": weights | {"neck.conv.weight": torch.zeros(1)}}
    x = torch.randn(2, 3, 48, 40)
    wanted = trained(x)
    network = create_model("test_dcn_resnet", modulated=modulated, num_classes=0).eval()
    assert load_published(network, checkpoint).ignored == ("neck.conv.weight",)
    assert_close(network(x), wanted, rtol=0, atol=0)
    features = create_model("test_dcn_resnet", modulated=modulated, features_only=True).eval()
    load_published(features, checkpoint)
    assert_close(features(x)[-1].mean((2, 3)), wanted)


def test_version_one_weights_do_not_fit_version_two():
    weights = create_model("test_dcn_resnet", modulated=False).state_dict()
    message = r"DCNResNet: .*layer2\.0\.conv2\.offset\.weight is \(18, .* should be \(27, "
    with pytest.raises(ValueError, match=message):
        load_published(create_model("test_dcn_resnet"), weights)
