"""Heads in other widths than torchvision's."""

import pytest
import torch

from tests.tasks.detection.detector_cases import small_detector


def shapes(detector):
    return {name: tuple(p.shape) for name, p in detector.roi_heads.named_parameters()}


def test_widths_are_those_that_were_asked_for():
    found = shapes(
        small_detector("mask_rcnn", channels=16, box_channels=24, mask_channels=(12, 20))
    )
    assert found["box_head.fc6.weight"] == (24, 16 * 7 * 7)
    assert found["box_head.fc7.weight"] == (24, 24)
    assert found["box_predictor.cls_score.weight"] == (4, 24)
    assert found["box_predictor.bbox_pred.weight"] == (16, 24)
    convolutions = [s for n, s in found.items() if n.startswith("mask_head") and len(s) == 4]
    assert convolutions == [(12, 16, 3, 3), (20, 12, 3, 3)]
    assert found["mask_predictor.conv5_mask.weight"] == (20, 20, 2, 2)
    assert found["mask_predictor.mask_fcn_logits.weight"] == (4, 20, 1, 1)


def test_usual_widths_are_torchvisions():
    usual, same = (
        shapes(small_detector("mask_rcnn")),
        shapes(small_detector("mask_rcnn", box_channels=1024, mask_channels=[256] * 4)),
    )
    assert usual == same
    assert usual["box_head.fc7.weight"] == (1024, 1024)


def test_small_heads_find_boxes_and_masks():
    detector = small_detector("mask_rcnn", box_channels=8, mask_channels=[8], box_score_thresh=0.0)
    with torch.inference_mode():
        (found,) = detector.eval()([torch.rand(3, 40, 56)])
    assert found["masks"].shape[1:] == (1, 40, 56)
    assert len(found["boxes"]) == len(found["masks"]) > 0


@pytest.mark.parametrize(
    ("detector", "options", "text"),
    [
        (
            "fcos",
            {"box_channels": 8},
            "box_channels is for faster_rcnn and mask_rcnn; leave it out",
        ),
        ("faster_rcnn", {"box_channels": 0}, "box_channels must be 1 or more, got 0"),
        (
            "faster_rcnn",
            {"mask_channels": [8]},
            "mask_channels is for mask_rcnn; faster_rcnn finds",
        ),
        ("mask_rcnn", {"mask_channels": []}, r"width of each convolution, .*got \[\]"),
        ("mask_rcnn", {"mask_channels": 64}, "width of each convolution, .*got 64"),
    ],
)
def test_refusals(detector, options, text):
    with pytest.raises(ValueError, match=text):
        small_detector(detector, **options)
