"""Images on their way into a detector, and wrong arguments."""

import copy
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from tests.tasks.detection.detector_cases import pictures, small_detector
from visgraft.models import create_model
from visgraft.tasks.detection import build_detector


def _sizes(model: Any, *, is_training: bool = False, repeats: int = 1) -> set[tuple[int, int]]:
    """Returns height and width that an image of 60 x 90 pixels gets."""
    transform = model.transform.train(is_training)
    return {transform(pictures(((60, 90),)))[0].image_sizes[0] for _ in range(repeats)}


def test_image_sizes():
    assert _sizes(small_detector(image_size=180)) == {(120, 180)}
    assert _sizes(small_detector(image_size=(30, 90))) == {(30, 45)}
    assert _sizes(small_detector(image_size=(80, 90))) == {(60, 90)}
    several = small_detector(image_size=[[30, 40, 60], 200])
    assert _sizes(several) == {(60, 90)}
    assert _sizes(several, is_training=True, repeats=30) == {(30, 45), (40, 60), (60, 90)}
    model: Any = build_detector("faster_rcnn", create_model("resnet10_small"), num_classes=1)
    assert (model.transform.min_size, model.transform.max_size) == ((800,), 1333)


def test_batches_are_padded_to_what_the_network_divides_by():
    model: Any = small_detector(image_size=96)
    assert model.transform(pictures(((90, 90),)))[0].tensors.shape == (1, 3, 96, 96)
    model = small_detector(name="selecsls42", image_size=96)
    assert model.transform(pictures(((90, 90),)))[0].tensors.shape == (1, 3, 128, 128)


def test_mean_and_deviation_are_those_the_network_was_trained_with():
    network = create_model("resnet10_small")
    network.pretrained_cfg = network.pretrained_cfg | {"mean": (0.1, 0.2, 0.3), "std": (1, 2, 4)}
    model: Any = build_detector("fcos", copy.deepcopy(network), num_classes=1, channels=32)
    image = torch.full((3, 4, 4), 0.5)
    expected = torch.tensor([0.4, 0.15, 0.05])
    torch.testing.assert_close(model.transform.normalize(image)[:, 0, 0], expected)
    model = build_detector(
        "fcos", network, num_classes=1, channels=32, mean=[0.5, 0, 0], std=[1, 0.5, 1]
    )
    expected = torch.tensor([0.0, 1.0, 0.5])
    torch.testing.assert_close(model.transform.normalize(image)[:, 0, 0], expected)


def test_grey_images():
    network = create_model("resnet10_small", in_chans=1)
    model: Any = build_detector("retinanet", network, num_classes=1, channels=32, image_size=64)
    mean = sum((0.485, 0.456, 0.406)) / 3
    assert model.transform.image_mean == pytest.approx([mean])
    model.eval()(pictures(channels=1))
    with pytest.raises(ValueError, match=r"takes images with 1 channel, got one of shape \(3, 70"):
        model(pictures())
    with pytest.raises(ValueError, match=r"takes images with 3 channels, got .*in_chans=1"):
        small_detector().eval()(pictures(channels=1))


def test_the_detector_is_where_its_network_is():
    network = create_model("resnet10_small").to("meta")
    model = build_detector("mask_rcnn", network, num_classes=1)
    assert {p.device.type for p in model.parameters()} == {"meta"}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"detector": "maskrcnn"}, "'maskrcnn' is no detector; did you mean mask_rcnn .*fcos"),
    (
        {"detector": None},
        r"None is no detector \(there are faster_rcnn, mask_rcnn, retinanet, fcos",
    ),
    ({"num_classes": 0}, "num_classes must be 1 or more, got 0"),
    ({"num_classes": True}, "num_classes must be 1 or more, got True"),
    ({"channels": 2.5}, "channels must be 1 or more, got 2.5"),
    ({"detector": "fcos", "channels": 48}, "channels must be a multiple of 32 for fcos.*got 48"),
    ({"image_size": "big"}, "image_size must be pixels of the longer side.*got 'big'"),
    ({"image_size": -3}, "image_size must be .*got -3"),
    ({"image_size": (800, 600)}, r"image_size must be .*got \(800, 600\)"),
    ({"image_size": ((), 600)}, r"image_size must be .*got \(\(\), 600\)"),
    ({"image_size": ((64, 700), 600)}, "image_size must be "),
    ({"image_size": (1, 2, 3)}, "image_size must be "),
    ({"mean": (0.5,)}, r"mean must be numbers, one for each of the 3 channels.*got \(0.5,\)"),
    ({"std": (0.5, 0.5, 0)}, r"std must be positive numbers.*got \(0.5, 0.5, 0\)"),
    ({"out_indices": (4, 3)}, r"out_indices must be rising indices of the 5 maps.*got \[4, 3\]"),
    ({"out_indices": (5,)}, r"out_indices must be .*1, 1, 2, 4, 8\), got \[5\]"),
    ({"out_indices": ()}, "out_indices must be "),
    ({"anchor_sizes": (32, 64)}, "anchor_sizes has 2 entries for 3 levels.*per 4, 8, 16 pixels"),
    ({"anchor_sizes": ((8, 9), (10,), (3,))}, "anchor_sizes must be pixels for each level"),
    ({"anchor_sizes": (8, 0, 4)}, r"anchor_sizes must be .*got \(8, 0, 4\)"),
    ({"anchor_sizes": "small"}, "anchor_sizes must be .*got 'small'"),
    ({"detector": "fcos", "anchor_sizes": (8, 16, 32)}, "fcos has no anchors"),
    ({"frozen_stages": 5}, r"frozen_stages must be 0 \(nothing is frozen\) to 4, .*got 5"),
    ({"frozen_stages": -1}, "frozen_stages must be .*got -1"),
    ({"frozen_stages": True}, "frozen_stages must be .*got True"),
    (
        {"box_score_tresh": 0.1},
        "faster_rcnn takes no argument 'box_score_tresh'; did you mean box_score_thresh.*"
        "takes bbox_reg_weights, .*rpn_score_thresh",
    ),
    ({"detector": "retinanet", "box_score_thresh": 1}, "retinanet takes no argument.*score_thresh"),
    ({"min_size": 600}, "faster_rcnn takes no argument 'min_size'"),
    ({"out_indices": 3}, r"out_indices must be rising indices.*got 3$"),
    ({"box_detections_per_img": "many"}, "_per_img must be a whole number, 1 or more, got 'many'"),
    ({"box_detections_per_img": 2.0}, "box_detections_per_img must be .*got 2.0"),
    ({"rpn_post_nms_top_n_test": -3}, "rpn_post_nms_top_n_test must be .*1 or more, got -3"),
    ({"box_score_thresh": 7}, "box_score_thresh must be a number from 0 to 1, got 7"),
    ({"box_score_thresh": "1e-3"}, "box_score_thresh must be a number.*got '1e-3'"),
    ({"box_bg_iou_thresh": 0.6}, r"box_bg_iou_thresh must be at most box_fg_iou_thresh \(0.5\)"),
    ({"detector": "retinanet", "fg_iou_thresh": 0.1}, r"bg_iou_thresh must be at most .*got 0.4"),
    ({"detector": "fcos", "center_sampling_radius": -1}, "radius must be a number, 0 or more"),
    ({"bbox_reg_weights": [1, 2]}, r"bbox_reg_weights must be four numbers.*got \[1, 2\]"),
    ({"box_head": "big"}, "box_head must be a part of a detector of torchvision, got 'big'"),
]


@pytest.mark.parametrize(("change", "sentence"), WRONG, ids=range(len(WRONG)))
def test_wrong_arguments_are_named_and_the_network_stays_whole(
    change: dict[str, Any], sentence: str
):
    network = create_model("resnet10_small")
    before = list(network.state_dict())
    arguments = {"detector": "faster_rcnn", "num_classes": 2, "channels": 32} | change
    with pytest.raises(ValueError, match=f"^build_detector: .*{sentence}"):
        build_detector(network=network, **arguments)
    assert list(network.state_dict()) == before
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: torchvision.models.resnet18(), "ResNet has no forward_intermediates"),
        (lambda: create_model("resnet18", features_only=True), "has no forward_intermediates"),
        (lambda: create_model("test_vit"), "all 6 maps .*one position per 16 pixels"),
        (
            lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1)),
            r"SwinTransformer does not run on .*128 x 192 pixels.*create it with strict_img_size",
        ),
        (lambda: create_model("legacy_xception"), "gives a map of shape .*no whole part of them"),
    ],
)
def test_networks_that_cannot_serve_are_told_which_can(make: Any, sentence: str):
    network: nn.Module = make()
    with pytest.raises(ValueError, match=f"{sentence}.*such as resnet50, cotnet50"):
        build_detector("retinanet", network, num_classes=2)


def test_networks_without_maps_for_the_detector_are_named():
    network = create_model("resnet10_small")
    network.forward_intermediates = lambda x, **_: [x[..., ::2, ::2], x[..., ::4, ::4]]
    with pytest.raises(ValueError, match=r"no map of .*per 8 pixels or more \(they have 2, 4\)"):
        build_detector("fcos", network, num_classes=2)


def test_frozen_norms_need_norms():
    with pytest.raises(ValueError, match="frozen_norm=True needs a network with BatchNorm"):
        build_detector("fcos", create_model("test_convnext"), num_classes=2, frozen_norm=True)


def test_swin_transformers_of_timm_for_any_image_size():
    network = create_model(
        "swin_tiny_patch4_window7_224",
        strict_img_size=False,
        depths=(2, 2, 1, 1),
        embed_dim=24,
        num_heads=(1, 2, 2, 2),
    )
    model: Any = build_detector("fcos", network, num_classes=2, channels=32, image_size=96)
    assert model.backbone.reductions == (8, 16, 32)
    model.eval()(pictures())
