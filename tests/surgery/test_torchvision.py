"""Grafts in torchvision's classifiers, and in the backbones of its detectors."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, mobilenet_v3_small, resnet18
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d

from tests.surgery.models import alive
from visgraft.surgery import find_sites, graft

SHAPE = (1, 3, 64, 64)
X = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
IMAGES = [torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(n)) for n in range(2)]
TARGETS = [
    {
        "boxes": torch.tensor([[8.0, 8.0, 40.0, 48.0], [20.0, 4.0, 60.0, 60.0]]),
        "labels": torch.tensor([1, 2]),
        "masks": (torch.arange(2 * 64 * 80).view(2, 64, 80) % 3 == 0).to(torch.uint8),
    }
    for _ in IMAGES
]


def trained(done):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in done.parameters():
            parameter.add_(0.1 * torch.rand(parameter.shape, generator=generator))
    return done


def kinds(model, example=SHAPE):
    found = {}
    for site in find_sites(model, example):
        found[site.kind] = found.get(site.kind, 0) + 1
    return found


@pytest.mark.parametrize(
    ("build", "expected", "first_end"),
    [
        (
            resnet18,
            {"conv3x3": 16, "downsample": 4, "block_end": 8, "stage_end": 4},
            "layer1.0.bn2",
        ),
        (
            mobilenet_v2,
            {"conv3x3": 18, "downsample": 5, "block_end": 10, "stage_end": 5},
            "features.3.conv.3",
        ),
        (
            mobilenet_v3_small,
            {"conv3x3": 4, "downsample": 5, "block_end": 6, "stage_end": 4},
            "features.3.block.2.1",
        ),
    ],
)
def test_classifiers(build, expected, first_end):
    model = alive(build(num_classes=5))
    assert kinds(model) == expected
    keys, before = list(model.state_dict()), model(X)
    done = graft(model, "coord_attention", "block_end", example=SHAPE)
    assert done.sites[0].path == first_end
    assert torch.equal(model(X), before)
    trained(done)
    assert not torch.allclose(model(X), before)
    model.train()(torch.cat([X, -X])).sum().backward()
    assert all(p.grad is not None for p in done.parameters())
    model = alive(build(num_classes=5))
    before = model(X)
    graft(model, "deform_conv", "conv3x3", example=SHAPE).undo()
    assert torch.equal(model(X), before)
    assert list(model.state_dict()) == keys


def detector(kind, norm):
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=norm, trainable_layers=3
    )
    return kind(backbone, num_classes=3, min_size=64, max_size=96, box_detections_per_img=5)


def same(made, expected):
    return all(
        torch.equal(a[name], b[name]) for a, b in zip(made, expected, strict=True) for name in b
    )


@pytest.mark.parametrize(
    ("kind", "norm"), [(FasterRCNN, nn.BatchNorm2d), (MaskRCNN, FrozenBatchNorm2d)]
)
def test_detectors(kind, norm):
    model = detector(kind, norm).eval()
    assert kinds(model.backbone)["conv3x3"] == 20
    with torch.no_grad():
        before = model(IMAGES)
    assert sum(len(result["boxes"]) for result in before) > 0
    done = graft(model.backbone, "coord_attention", "body.*.bn2", example=SHAPE)
    assert [s.kind for s in done.sites] == ["block_end"] * 8
    assert all(r.kept == r.tensors for r in done.rows)
    with torch.no_grad():
        assert same(model(IMAGES), before)
        trained(done)
        assert not same(model(IMAGES), before)

    losses = model.train()(IMAGES, copy.deepcopy(TARGETS))
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in done.parameters())
    frozen = [n for n, p in model.backbone.named_parameters() if not p.requires_grad]
    assert frozen
    assert not any(".graft." in n for n in frozen)

    plain = detector(kind, norm).eval()
    graft(plain.backbone, "deform_conv", "body.layer4.*.conv2", example=SHAPE).undo()
    with torch.no_grad():
        assert same(plain(IMAGES), before)


def test_a_whole_detector_is_refused_with_the_part_to_pass():
    model = detector(FasterRCNN, nn.BatchNorm2d)
    with pytest.raises(ValueError, match=r"FasterRCNN depend on values .*such as model.backbone"):
        find_sites(model, ([IMAGES[0]],))


def test_the_pyramid_is_no_residual_block():
    backbone = detector(FasterRCNN, nn.BatchNorm2d).backbone
    sites = [s for s in find_sites(backbone, SHAPE) if s.path.startswith("fpn.")]
    assert {s.kind for s in sites} == {"conv3x3"}
    assert len(sites) == 4
