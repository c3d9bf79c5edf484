"""Grafts in vision models of Hugging Face transformers, whose outputs are data classes."""

import copy

import pytest
import torch

from tests.surgery.models import alive
from visgraft.surgery import apply_plan, find_sites, graft

tr = pytest.importorskip("transformers")

SHAPE = (1, 3, 64, 64)
X = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
SMALL = {"embedding_size": 32, "hidden_sizes": [32, 64, 64, 64], "depths": [1, 1, 2, 1]}


def resnet():
    return tr.ResNetForImageClassification(tr.ResNetConfig(layer_type="basic", **SMALL))


def convnext():
    config = tr.ConvNextConfig(hidden_sizes=[32, 64, 64, 64], depths=[1, 1, 2, 1])
    return tr.ConvNextForImageClassification(config)


def mobilenet():
    config = tr.MobileNetV2Config(depth_multiplier=0.35, image_size=64)
    return tr.MobileNetV2ForImageClassification(config)


def vit():
    config = tr.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
    )
    return tr.ViTForImageClassification(config)


def swin():
    config = tr.SwinConfig(
        embed_dim=16, depths=[1, 1], num_heads=[2, 2], image_size=64, window_size=4
    )
    return tr.SwinForImageClassification(config)


def built(make):
    torch.manual_seed(0)
    return alive(make())


def trained(done):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in done.parameters():
            parameter.add_(0.1 * torch.rand(parameter.shape, generator=generator))
    return done


@pytest.mark.parametrize(
    "example", [SHAPE, {"pixel_values": X}, X], ids=["shape", "dict", "tensor"]
)
@pytest.mark.parametrize(("make", "ends"), [(resnet, 5), (convnext, 5), (mobilenet, 10)])
def test_gates(make, ends, example):
    model = built(make)
    before = model(pixel_values=X).logits
    done = graft(model, "coord_attention", "block_end", example=example)
    assert len(done.sites) == ends
    assert done.max_difference == 0
    assert torch.equal(model(pixel_values=X).logits, before)
    trained(done)
    moved = (model(pixel_values=X).logits - before).abs().max().item()
    assert moved > 0
    if not isinstance(example, tuple):
        assert done.max_difference >= moved * 0.999
    done.undo()
    assert torch.equal(model(pixel_values=X).logits, before)


@pytest.mark.parametrize("block", ["cot", "deform_conv"])
def test_convolutions_of_a_resnet(block):
    model = built(resnet)
    keys, before = list(model.state_dict()), model(X).logits
    done = graft(model, block, "conv3x3", example=SHAPE, strict=False)
    assert len(done.sites) >= 8
    torch.testing.assert_close(model(X).logits, before, rtol=1e-4, atol=1e-5)
    loss = model.train()(torch.cat([X, -X]), labels=torch.tensor([0, 1])).loss
    loss.backward()
    assert all(p.grad is not None for p in done.parameters())
    trained(done).undo()
    assert list(model.state_dict()) == keys


def test_a_model_that_pads_by_what_its_convolutions_say():
    model = built(mobilenet)
    before = model(X).logits
    done = graft(model, "deform_conv", "conv3x3", example=SHAPE)
    assert len(done.sites) == 18
    torch.testing.assert_close(model(X).logits, before, rtol=1e-4, atol=1e-4)


def test_the_saved_weights_and_the_plan_are_enough(tmp_path):
    model = built(resnet)
    done = trained(graft(model, "coord_attention", "stage3/block_end", example=SHAPE))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    twin = resnet().eval()
    apply_plan(twin, done.plan)
    twin.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert torch.equal(twin(X).logits, model(X).logits)
    assert torch.equal(copy.deepcopy(model)(X).logits, model(X).logits)


@pytest.mark.parametrize("make", [vit, swin])
def test_transformers_have_no_3x3_convolution(make):
    model = built(make)
    assert {s.kind for s in find_sites(model)} <= {"downsample"}
    with pytest.raises(
        ValueError, match=r"^graft: at='conv3x3' matches nothing; sites of this mod"
    ):
        graft(model, "cot", "conv3x3")
