import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from visgraft.blocks import GlobalContext, load_published
from visgraft.models import create_model

AUTHORS = {
    ".se.attend.": ".context_block.conv_mask.",
    ".se.add.reduce.": ".context_block.channel_add_conv.0.",
    ".se.add.norm.": ".context_block.channel_add_conv.1.",
    ".se.add.expand.": ".context_block.channel_add_conv.3.",
}


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


def detector(network):
    """Returns the checkpoint of a detector, by the authors' names and without a classifier."""
    state = {"rpn_head.weight": torch.zeros(1)}
    for key, tensor in network.state_dict().items():
        for ours, theirs in AUTHORS.items():
            key = key.replace(ours, theirs)
        if not key.startswith("fc."):
            state[f"backbone.{key}"] = tensor
    return {"meta": {"epoch": 12}, "state_dict": state}


@pytest.mark.parametrize(
    ("name", "options", "params"),
    [
        ("gc_resnet101_r4", {}, 63_510_854),
        ("gc_resnet50_r4", {"context_stages": (1, 2, 3, 4)}, 35_658_360),
        ("gc_resnet50_r16", {"context_stages": ()}, 25_557_032),
    ],
)
def test_parameter_count(name, options, params):
    network = create_model(name, device="meta", **options)
    assert sum(p.numel() for p in network.parameters()) == params


@pytest.mark.parametrize(
    ("options", "stages"),
    [({}, (2, 3, 4)), ({"context_stages": (1, 4)}, (1, 4)), ({"context_stages": [3]}, (3,))],
)
def test_which_stages_have_the_block(options, stages):
    network = create_model("test_gc_resnet", **options)
    for stage in range(1, 5):
        for block in network.get_submodule(f"layer{stage}"):
            assert isinstance(block.se, GlobalContext) == (stage in stages)


@pytest.mark.parametrize(("name", "reduction"), [("gc_resnet50_r16", 16), ("gc_resnet101_r4", 4)])
def test_width_of_the_blocks(name, reduction):
    network = create_model(name, device="meta")
    for stage, channels in ((2, 512), (3, 1024), (4, 2048)):
        for block in network.get_submodule(f"layer{stage}"):
            assert block.se.channels == channels
            assert block.se.add.reduce.out_channels == channels // reduction


def test_block_stands_between_the_last_normalisation_and_the_sum():
    block, x = randomised(create_model("test_gc_resnet")).layer2[1], torch.randn(2, 64, 5, 3)
    y = block.act1(block.bn1(block.conv1(x)))
    y = block.act2(block.bn2(block.conv2(y)))
    y = block.se(block.bn3(block.conv3(y)))
    assert_close(block(x), torch.relu(y + x))
    block.drop_path = nn.Threshold(torch.inf, 0.0)  # drops the whole branch, the context with it
    assert_close(block(x), torch.relu(x), rtol=0, atol=0)


@pytest.mark.parametrize("again", [False, True])
def test_new_blocks_add_nothing(again):
    """Drawing all weights anew, as timm does after construction, keeps that."""
    network = create_model("test_gc_resnet").eval()
    if again:
        network.init_weights(zero_init_last=False)
    plain = timm.create_model("test_gc_resnet", context_stages=()).eval()
    left_out = plain.load_state_dict(network.state_dict(), strict=False)
    assert not left_out.missing_keys
    assert all(".se." in key for key in left_out.unexpected_keys)
    x = torch.randn(2, 3, 40, 56)
    assert_close(network(x), plain(x), rtol=0, atol=0)
    assert network.layer4[0].se.attend.weight.std() > 0.05  # drawn, not zero


@pytest.mark.parametrize(
    "options", [{"num_classes": 0}, {"features_only": True}, {"num_classes": 1000}]
)
def test_takes_the_backbone_of_a_detector(options):
    trained = randomised(create_model("test_gc_resnet"))
    network = create_model("test_gc_resnet", **options)
    report = load_published(network, detector(trained), skip_head=options == {"num_classes": 1000})
    assert report.layout == "xvjiarui/GCNet"
    assert report.ignored == ("rpn_head.weight",)
    wanted = trained.state_dict()
    for key, tensor in network.state_dict().items():
        if not key.startswith("fc."):
            assert_close(tensor, wanted[key], rtol=0, atol=0)


def test_weights_without_context_blocks_are_refused():
    plain = create_model("test_gc_resnet", context_stages=())
    with pytest.raises(ValueError, match=r"GCResNet: .* missing, .* layer2\.0\.se\.attend\.weight"):
        load_published(create_model("test_gc_resnet"), plain.state_dict())


@pytest.mark.parametrize("stages", [(0,), (2, 2), (2, 5), "all"])
def test_rejects_stages(stages):
    with pytest.raises(ValueError, match=r"GCResNet: context_stages must be different .* 1 to 4"):
        create_model("test_gc_resnet", context_stages=stages)


def test_rejects_a_reduction_that_leaves_too_little():
    with pytest.raises(ValueError, match=r"GlobalContext: .* at least 2 .* got 64 // 64 = 1"):
        create_model("test_gc_resnet", context_reduction=64)


def test_rejects_another_attention_in_its_place():
    with pytest.raises(ValueError, match=r"GCBottleneck: attn_layer must be left out, .* SEModule"):
        create_model("test_gc_resnet", block_args={"attn_layer": "se"})
