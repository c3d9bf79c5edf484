"""Heads of two-stage detectors in other widths than torchvision's, for small networks.

Papers: Ren, He, Girshick and Sun, "Faster R-CNN", NeurIPS 2015, https://arxiv.org/abs/1506.01497;
    He, Gkioxari, Dollar and Girshick, "Mask R-CNN", ICCV 2017, https://arxiv.org/abs/1703.06870.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

__all__ = ["BOX_CHANNELS", "MASK_CHANNELS", "check_heads", "set_heads"]

BOX_CHANNELS = 1024
MASK_CHANNELS = (256, 256, 256, 256)
_POSITIONS = 7 * 7  # of a region, as the box head sees it


def check_heads(detector: str, box_channels: Any, mask_channels: Any) -> None:
    """Raises ValueError unless a detector has such heads."""
    if box_channels != BOX_CHANNELS and detector not in ("faster_rcnn", "mask_rcnn"):
        raise ValueError(
            f"build_detector: box_channels is for faster_rcnn and mask_rcnn; leave it out for "
            f"{detector}"
        )
    if not _is_width(box_channels):
        raise ValueError(f"build_detector: box_channels must be 1 or more, got {box_channels!r}")
    is_list = isinstance(mask_channels, (tuple, list))
    if not is_list or not mask_channels or not all(map(_is_width, mask_channels)):
        raise ValueError(
            "build_detector: mask_channels must be the width of each convolution, such as "
            f"(64, 64), got {mask_channels!r}"
        )
    if tuple(mask_channels) != MASK_CHANNELS and detector != "mask_rcnn":
        raise ValueError(
            f"build_detector: mask_channels is for mask_rcnn; {detector} finds no masks, leave it "
            "out"
        )


def set_heads(
    model: nn.Module,
    *,
    channels: int,
    num_classes: int,
    box_channels: int = BOX_CHANNELS,
    mask_channels: Sequence[int] = MASK_CHANNELS,
) -> None:
    """Replaces the heads of a two-stage detector whose widths are not torchvision's.

    Args:
        model: Built by torchvision's class.
        channels: Of the pyramid.
        num_classes: With the background.
        box_channels: Of both layers that look at a region.
        mask_channels: Of each convolution before the masks; the last one's is that of the layer
            that enlarges the map, too.
    """
    heads: Any = model.roi_heads
    if box_channels != BOX_CHANNELS:
        heads.box_head = TwoMLPHead(channels * _POSITIONS, box_channels)
        heads.box_predictor = FastRCNNPredictor(box_channels, num_classes)
    if tuple(mask_channels) != MASK_CHANNELS:
        last = mask_channels[-1]
        heads.mask_head = MaskRCNNHeads(channels, list(mask_channels), dilation=1)
        heads.mask_predictor = MaskRCNNPredictor(last, last, num_classes)


def _is_width(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
