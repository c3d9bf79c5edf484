"""Libraries that take timm networks by name take ours: values, gradients, images of any size."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch.testing import assert_close
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FeaturePyramidNetwork
from transformers import (
    TimmBackbone,
    TimmBackboneConfig,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperModel,
)

import visgraft.models  # noqa: F401
from tests.models.test_timm_contract import NAMES

# segmentation_models_pytorch takes encoders that halve the map down to 1/32.
SEGMENTED = [name for name in NAMES if name != "test_spd_resnet"]


@pytest.mark.parametrize("name", SEGMENTED)
def test_segmentation_models(name):
    torch.manual_seed(0)
    unet = smp.Unet(
        f"tu-{name}", encoder_weights=None, decoder_channels=(32, 16, 16, 8, 8), classes=2
    )
    x = torch.randn(2, 3, 64, 96)
    out = unet(x)
    assert out.shape == (2, 2, 64, 96)
    out.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in unet.parameters() if p.grad is not None)
    first = next(unet.encoder.parameters())
    assert first.grad.abs().sum() > 0
    features = unet.encoder(x)
    assert [f.shape[1] for f in features] == unet.encoder.out_channels


def test_segmentation_models_refuses_other_strides():
    with pytest.raises(ValueError, match="Unsupported model downsampling pattern"):
        smp.Unet("tu-test_spd_resnet", encoder_weights=None)


def test_segmentation_models_with_a_network_of_full_size():
    torch.manual_seed(0)
    unet = smp.Unet("tu-cotnet50", encoder_weights=None)
    assert unet.encoder.out_channels == [3, 64, 256, 512, 1024, 2048]
    out = unet(torch.randn(2, 3, 64, 64))
    assert out.shape == (2, 1, 64, 64)
    out.square().mean().backward()
    assert next(unet.encoder.parameters()).grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["test_cotnet", "test_spd_resnet", "test_dcn_resnet"])
def test_feature_pyramid_of_torchvision(name):
    torch.manual_seed(0)
    body = timm.create_model(name, features_only=True, out_indices=(-3, -2, -1)).eval()
    pyramid = FeaturePyramidNetwork(body.feature_info.channels(), 16)
    x = torch.randn(1, 3, 72, 104)
    maps = pyramid({str(i): feature for i, feature in enumerate(body(x))})
    for level, reduction in zip(maps.values(), body.feature_info.reduction(), strict=True):
        assert level.shape == (1, 16, -(-72 // reduction), -(-104 // reduction))


def test_backbone_of_torchvisions_detectors():
    network = timm.create_model("test_cotnet").eval()
    channels = [info["num_chs"] for info in network.feature_info[1:]]
    layers = {f"layer{stage}": str(stage) for stage in (1, 2, 3, 4)}
    backbone = BackboneWithFPN(network, layers, channels, 16).eval()
    x = torch.randn(1, 3, 64, 96)
    maps = backbone(x)
    assert [tuple(m.shape[2:]) for m in maps.values()] == [
        (16, 24), (8, 12), (4, 6), (2, 3), (1, 2),
    ]  # fmt: skip
    body = backbone.body(x)
    expected = network.forward_intermediates(x, indices=4, intermediates_only=True)
    assert_close([*body.values()], expected)


@pytest.mark.parametrize("name", ["test_cotnet", "test_botnet", "test_mobilenetv2_ca"])
def test_wrapper_of_hugging_face(name):
    config = TimmWrapperConfig(architecture=name, num_labels=5)
    torch.manual_seed(0)
    model = TimmWrapperForImageClassification(config).eval()
    x = torch.randn(2, 3, 64, 96)
    out = model(x, labels=torch.tensor([1, 2]))
    assert_close(out.logits, model.timm_model(x))
    assert out.logits.shape == (2, 5)
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    bare = TimmWrapperModel(TimmWrapperConfig(architecture=name)).eval()
    features = bare.timm_model.forward_features(x)
    assert_close(bare(x).last_hidden_state, features)


def test_wrapper_of_hugging_face_is_saved_and_loaded(tmp_path):
    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="test_cotnet")).eval()
    model.save_pretrained(tmp_path)
    again = TimmWrapperForImageClassification.from_pretrained(tmp_path).eval()
    x = torch.randn(1, 3, 64, 64)
    assert_close(again(x).logits, model(x).logits, rtol=0, atol=0)


def test_backbone_of_hugging_face():
    config = TimmBackboneConfig(backbone="test_cotnet", out_indices=(2, 3))
    backbone = TimmBackbone(config).eval()
    maps = backbone(torch.randn(1, 3, 64, 96)).feature_maps
    assert [tuple(m.shape) for m in maps] == [(1, 96, 8, 12), (1, 128, 4, 6)]
    assert backbone.channels == [96, 128]
