"""Detectors on timm's networks: equal to torchvision's, for maps and images of all sizes."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops.poolers import _setup_scales

from tests.tasks.detection.detector_cases import (
    DETECTORS,
    objects,
    pictures,
    quick,
    shaken,
    small_detector,
    torchvision_detector,
)
from visgraft.models import create_model
from visgraft.tasks.detection import build_detector


def _assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], **near: float):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], **near, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return shaken(create_model("resnet50"))


@pytest.mark.slow
@pytest.mark.parametrize("detector", DETECTORS)
def test_losses_gradients_and_detections_equal_those_of_torchvision(
    detector: str, network: nn.Module
):
    options = quick(detector, score_thresh=0.001)
    torch.manual_seed(3)
    theirs = torchvision_detector(detector, min_size=48, max_size=64, **options).double()
    ours = build_detector(
        detector,
        network,
        num_classes=3,
        image_size=(48, 64),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        frozen_stages=1,
        frozen_norm=True,
        **options,
    ).double()
    for lateral in ours.backbone.fpn.inner_blocks:
        lateral[0].weight.data.mul_(0.002)  # what random heads say of calm maps are sensible boxes
    numbers = {k: v for k, v in ours.state_dict().items() if not k.endswith("num_batches_tracked")}
    theirs.load_state_dict({k.replace(".network.", ".body."): v for k, v in numbers.items()})

    images = [image.double() for image in pictures()]
    targets = [t | {"boxes": t["boxes"].double()} for t in objects(images)]
    losses = []
    for model in (ours, theirs):
        model.zero_grad()
        torch.manual_seed(4)
        losses.append(model.train()(images, targets))
        sum(losses[-1].values()).backward()
    _assert_equal(losses[0], losses[1])
    of = {k.replace(".body.", ".network."): p for k, p in theirs.named_parameters()}
    learning = {k: p for k, p in ours.named_parameters() if p.requires_grad}
    assert learning.keys() == {k for k, p in of.items() if p.requires_grad}
    for name in learning:
        torch.testing.assert_close(learning[name].grad, of[name].grad)

    with torch.no_grad():
        found, expected = ours.eval()(images), theirs.eval()(images)
    assert [len(e["boxes"]) for e in expected] == [20, 20]
    for one, other in zip(found, expected, strict=True):
        _assert_equal(one, other)


FAMILIES = {
    "resnet10_small": ((3, 4), (4, 8)),
    "test_cotnet": ((1, 2, 3, 4), (4, 8, 16, 32)),
    "test_botnet": ((1, 2, 3, 4), (4, 8, 16, 32)),
    "test_gc_resnet": ((1, 2, 3, 4), (4, 8, 16, 32)),
    "test_dcn_resnet": ((1, 2, 3, 4), (4, 8, 16, 32)),
    "test_resnet_acmix": ((1, 2, 3, 4), (4, 8, 16, 32)),
    "test_swin_acmix": ((0, 1, 2, 3), (4, 8, 16, 32)),
    "test_spd_resnet": ((2, 3, 4), (4, 8, 16)),
    "test_efficientnet": ((1, 2, 3, 4), (4, 8, 16, 32)),
    "test_convnext": ((0, 1, 2, 3), (4, 8, 16, 32)),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_are_those_of_features_only_and_every_parameter_learns(name: str):
    indices, reductions = FAMILIES[name]
    torch.manual_seed(0)
    whole = shaken(create_model(name)).eval()
    reference = create_model(name, features_only=True, out_indices=indices).eval()
    tensors = {k.replace(".", "_"): v for k, v in whole.state_dict().items()}
    reference.load_state_dict({k: tensors[k.replace(".", "_")] for k in reference.state_dict()})

    names = set(dict(whole.named_parameters()))
    detector: Any = build_detector("faster_rcnn", whole, num_classes=1, channels=32)
    backbone = detector.backbone.eval()
    assert (tuple(backbone.indices), backbone.reductions) == (indices, reductions)
    assert backbone.network is whole
    assert set(dict(whole.named_parameters())) < names
    images = torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    backbone.fpn.register_forward_pre_hook(lambda _, args: seen.extend(args[0].values()))
    levels = backbone(images)
    for one, other in zip(seen, reference(images), strict=True):
        is_channels_last = name == "test_swin_acmix"
        torch.testing.assert_close(one, other.permute(0, 3, 1, 2) if is_channels_last else other)
    assert [tuple(m.shape[1:]) for m in levels.values()][:-1] == [
        (32, 64 // r, 128 // r) for r in reductions
    ]
    sum(m.square().sum() for m in levels.values()).backward()
    assert [k for k, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("detector", DETECTORS)
def test_every_parameter_learns_from_images_of_many_sizes_with_and_without_objects(detector: str):
    model = small_detector(detector, "test_gc_resnet")
    images = pictures(((70, 50), (64, 100), (33, 200)))
    targets = objects(images)
    targets[1] = {k: v[:0] for k, v in targets[1].items()}
    losses = model(images, targets)
    assert all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    for image, found in zip(images, model(images), strict=True):
        height, width = image.shape[1:]
        assert len(found["boxes"]) > 0
        assert found["boxes"].amin() >= 0
        assert (found["boxes"].amax(0) <= torch.tensor([width, height, width, height])).all()
        assert ("masks" in found) == (detector == "mask_rcnn")
        if detector == "mask_rcnn":
            assert found["masks"].shape[1:] == (1, height, width)


def test_the_scale_of_the_regions_does_not_depend_on_the_first_batch():
    odd, usual = pictures(((66, 66),)), pictures(((64, 64),))
    first, second = (small_detector(image_size=66).eval() for _ in range(2))
    second(odd)
    for one, other in zip(first(usual), second(usual), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    model: Any = small_detector(name="test_gc_resnet")
    pool = model.roi_heads.box_roi_pool
    assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    maps = [torch.rand(1, 1, 96 // r, 96 // r) for r in (4, 8, 16, 32)]
    guessed, mapper = _setup_scales(maps, [(66, 66)], 224, 4)
    assert guessed != pool.scales  # torchvision's guess, from the size before padding
    guessed, mapper = _setup_scales(maps, [(96, 96)], 224, 4)
    assert (guessed, vars(mapper)) == (pool.scales, vars(pool.map_levels))


def test_a_network_with_dilated_stages_gives_each_map_its_level():
    network = create_model("test_gc_resnet", output_stride=16)
    model: Any = build_detector("mask_rcnn", network, num_classes=3, channels=32, image_size=64)
    assert model.backbone.reductions == (4, 8, 16, 16)
    pool = model.roi_heads.mask_roi_pool
    assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 16]
    levels = pool.map_levels([torch.tensor([[0.0, 0, side, side]]) for side in (60, 120, 230, 450)])
    assert levels.tolist() == [0, 1, 2, 3]
    assert [a[0] for a in model.rpn.anchor_generator.sizes] == [32, 64, 128, 256, 512]
    images = pictures()
    sum(model(images, objects(images)).values()).backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []


def test_stages_behind_the_last_map_are_taken_off():
    model: Any = small_detector(name="test_cotnet", out_indices=(1, 2))
    kept = {name.split(".")[0] for name, _ in model.backbone.network.named_parameters()}
    assert kept == {"conv1", "bn1", "layer1", "layer2"}
    assert list(model.backbone.eval()(torch.rand(1, 3, 64, 64))) == ["0", "1", "pool"]
    last: Any = small_detector(name="test_cotnet", out_indices=(-2, -1))
    assert last.backbone.reductions == (16, 32)


@pytest.mark.parametrize(
    ("detector", "expected"),
    [
        ("faster_rcnn", [(32,), (64,), (128,), (256,), (512,)]),
        (
            "retinanet",
            [(32, 40, 50), (64, 80, 101), (128, 161, 203), (256, 322, 406), (512, 645, 812)],
        ),
        ("fcos", [(8,), (16,), (32,), (64,), (128,)]),
    ],
)
def test_anchors_are_torchvisions(detector: str, expected: list[tuple[int, ...]]):
    model: Any = small_detector(detector, "test_gc_resnet")
    generator = model.rpn.anchor_generator if "rcnn" in detector else model.anchor_generator
    assert list(generator.sizes) == expected


def test_anchors_of_other_sizes_and_maps():
    assert _anchors(small_detector()) == [(32,), (64,), (128,)]
    assert _anchors(small_detector(anchor_sizes=[12, 24, 48])) == [(12,), (24,), (48,)]
    pairs = ((8, 12), (16, 24), (32, 48))
    assert _anchors(small_detector(anchor_sizes=pairs)) == list(pairs)
    far = small_detector(name="test_gc_resnet", out_indices=(1, 3))
    assert _anchors(far) == [(32,), (128,), (256,)]


def _anchors(model: Any) -> list[tuple[float, ...]]:
    return list(model.rpn.anchor_generator.sizes)


def test_retinanet_and_fcos_have_two_more_levels():
    for detector in ("retinanet", "fcos"):
        model: Any = small_detector(detector)
        assert list(model.backbone.eval()(torch.rand(1, 3, 64, 64))) == ["0", "p6", "p7"]
