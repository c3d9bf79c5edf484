"""A detection run that takes a second: four scenes, a network of some hundred weights."""

from typing import Any

from visgraft.tasks.recipe import Recipe

__all__ = ["HEADS", "TINY", "tiny_recipe"]

HEADS = {
    "channels": 16,
    "box_channels": 32,
    "mask_channels": [16],
    "box_batch_size_per_image": 16,
    "box_detections_per_img": 10,
    "rpn_post_nms_top_n_train": 50,
    "rpn_post_nms_top_n_test": 50,
}
TINY: dict[str, Any] = {
    "task": "instance_segmentation",
    "data": "fashion_scenes",
    "train_limit": 4,
    "val_limit": 2,
    "model": "resnet10_small",
    "model_args": {"channels": [4, 8, 8, 8]},
    "detector_args": HEADS,
    "min_size": [48, 64],
    "max_size": 96,
    "epochs": 2,
    "batch_size": 2,
    "lr": 1e-3,
    "loggers": [],
    "device": "cpu",
}
BOXES_ALONE = {
    "faster_rcnn": {k: v for k, v in HEADS.items() if k != "mask_channels"},
    "retinanet": {"channels": 32},
    "fcos": {"channels": 32},
}


def tiny_recipe(**changes: Any) -> Recipe:
    """Returns the recipe with some fields changed; of another detector with its own small heads."""
    if changes.get("task") == "detection":
        detector = changes.setdefault("detector", "faster_rcnn")
        changes.setdefault("detector_args", BOXES_ALONE[detector])
    return Recipe(**TINY | changes)
