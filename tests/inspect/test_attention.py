import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

import visgraft as vg
import visgraft.models
from visgraft.inspect.attention import attention_maps, attention_places


def test_weights_of_grafted_blocks_by_path():
    model = timm.create_model("resnet18")
    vg.graft(model, "global_context", at="layer3.*.bn2")
    vg.graft(model, "coord_attention", at="layer4.1.bn2")
    images = torch.randn(2, 3, 64, 96)
    seen = []
    block = model.get_submodule("layer3.1.bn2.graft.block")
    handle = block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    maps = vg.attention_maps(model, images)
    handle.remove()
    shapes = {path: tuple(weights.shape) for path, weights in maps.items()}
    assert shapes == {
        "layer3.0.bn2.graft.block": (2, 1, 4, 6),
        "layer3.1.bn2.graft.block": (2, 1, 4, 6),
        "layer4.1.bn2.graft.block": (2, 512, 2, 3),
    }
    assert_close(maps["layer3.1.bn2.graft.block"], block.attention_weights(seen[0]))
    assert not any(weights.requires_grad for weights in maps.values())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "count", "shape"),
    [
        ("test_cotnet", 5, (1, 2, 16, 24, 3, 3)),
        ("test_botnet", 2, (1, 4, 4, 6, 4, 6)),
        ("test_sknet", 5, (1, 2, 16)),
        ("test_resnet_acmix", 4, (1, 4, 16, 24, 7, 7)),
        ("test_swin_acmix", 6, (1, 1, 16, 24, 4, 4)),
        ("test_gc_resnet", 4, (1, 1, 8, 12)),
        ("test_mobilenetv2_ca", 5, (1, 48, 16, 24)),
        ("test_dcn_resnet", 4, (1, 1, 8, 12, 3, 3)),
    ],
)
def test_networks_of_the_papers(name, count, shape):
    maps = attention_maps(timm.create_model(name), torch.randn(1, 3, 64, 96))
    assert len(maps) == count
    assert tuple(next(iter(maps.values())).shape) == shape


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = vg.create_block("coord_attention", 4)

    def forward(self, x, *, factor=1.0):
        return self.gate(x=self.gate(x) * factor)


def test_block_that_runs_twice():
    model, x = Twice().eval(), torch.randn(1, 4, 5, 6)
    maps = attention_maps(model, x)
    assert list(maps) == ["gate", "gate:2"]
    assert_close(maps["gate:2"], model.gate.attention_weights(model.gate(x)))
    assert not torch.equal(maps["gate"], maps["gate:2"])


class Own(nn.Module):
    """A block of a user with a method of its own."""

    def attention_weights(self, x):
        return x.mean(1, keepdim=True)

    def forward(self, x):
        return x * self.attention_weights(x)


def test_block_of_a_user():
    x = torch.randn(2, 3, 4, 4)
    maps = attention_maps(nn.Sequential(nn.Identity(), Own()), x)
    assert list(maps) == ["1"]
    assert_close(maps["1"], x.mean(1, keepdim=True))


@pytest.mark.parametrize(
    "model",
    [
        nn.Conv2d(3, 4, 3),
        vg.create_block("spd_conv", 3),
        vg.create_block("deform_conv", 3, modulated=False),
        vg.create_block("global_context", 3, reduction=1, pool="average"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_model_without_attention_is_refused(model):
    with pytest.raises(
        ValueError, match=r"^attention_maps: no block that ran in \w+ has attention"
    ):
        attention_maps(model, torch.randn(1, 3, 8, 8))


class Named(nn.Module):
    """Deformable transformers have a layer of this name, which is no method."""

    def __init__(self):
        super().__init__()
        self.attention_weights = nn.Linear(4, 4)

    def forward(self, x):
        return self.attention_weights(x)


def test_layer_of_that_name_is_not_called():
    x = torch.randn(2, 3, 4, 4)
    assert list(attention_maps(nn.Sequential(Named(), Own()), x)) == ["1"]


def test_failing_model_keeps_no_hook():
    model = Twice().train()
    with pytest.raises(ValueError, match="CoordAttention: expected"):
        attention_maps(model, torch.randn(1, 5, 4, 4))
    assert model.training
    assert not model.gate._forward_pre_hooks


def test_places_are_those_of_gates_shares_and_attention_to_all_positions():
    attention = vg.create_block("bottleneck_attention", 8)
    gate = vg.create_block("coord_attention", 8)
    window = vg.create_block("acmix", 8)  # on 7 x 7 its windows are as large as the map
    model, x = nn.Sequential(attention, gate, window).eval(), torch.randn(2, 8, 7, 7)
    places = attention_places(model, x)
    assert list(places) == ["0", "1"]
    received = attention.attention_weights(x).sum((2, 3)).mean(1) / 49
    assert_close(places["0"], received)
    assert_close(places["1"], gate.attention_weights(attention(x)).mean(1))
    assert attention_places(window, x) == {}
