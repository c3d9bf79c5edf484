"""torchvision's detectors on any timm network: ours, a grafted one, or timm's own.

Papers: Ren, He, Girshick and Sun, "Faster R-CNN", NeurIPS 2015, https://arxiv.org/abs/1506.01497;
    He, Gkioxari, Dollar and Girshick, "Mask R-CNN", ICCV 2017, https://arxiv.org/abs/1703.06870;
    Lin, Goyal, Girshick, He and Dollar, "Focal Loss for Dense Object Detection" (RetinaNet),
    ICCV 2017, https://arxiv.org/abs/1708.02002; Tian, Shen, Chen and He, "FCOS: Fully
    Convolutional One-Stage Object Detection", ICCV 2019, https://arxiv.org/abs/1904.01355.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import LevelMapper

from visgraft._shapes import like_of
from visgraft.tasks.detection.anchors import anchor_generator, level_strides
from visgraft.tasks.detection.features import plan_features
from visgraft.tasks.detection.freezing import check_freezing
from visgraft.tasks.detection.heads import (
    BOX_CHANNELS,
    MASK_CHANNELS,
    check_heads,
    set_heads,
)
from visgraft.tasks.detection.inputs import (
    DetectorTransform,
    ImageSize,
    channels_of,
    mean_and_std,
    min_and_max,
)
from visgraft.tasks.detection.options import check_options
from visgraft.tasks.detection.pyramid import PyramidBackbone
from visgraft.tasks.legal_names import nearest

__all__ = ["DETECTORS", "build_detector"]

DETECTORS: Mapping[str, type[nn.Module]] = {
    "faster_rcnn": FasterRCNN,
    "mask_rcnn": MaskRCNN,
    "retinanet": RetinaNet,
    "fcos": FCOS,
}
"""The detectors by name."""

_TWO_STAGE = ("faster_rcnn", "mask_rcnn")


def build_detector(
    detector: str,
    network: nn.Module,
    *,
    num_classes: int,
    image_size: ImageSize = (800, 1333),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    channels: int = 256,
    box_channels: int = BOX_CHANNELS,
    mask_channels: Sequence[int] = MASK_CHANNELS,
    out_indices: Sequence[int] | None = None,
    anchor_sizes: Sequence[float | Sequence[float]] | None = None,
    frozen_stages: int = 0,
    frozen_norm: bool = False,
    learning: Iterable[nn.Parameter] = (),
    **detector_args: Any,
) -> nn.Module:
    """Builds one of torchvision's detectors on a pyramid over a network, in training mode.

    Args:
        detector: ``"faster_rcnn"``, ``"mask_rcnn"``, ``"retinanet"`` or ``"fcos"``.
        network: A classification network of timm, ours or grafted. It becomes
            ``detector.backbone.network``, under its own names of layers, and loses its classifier
            and the stages behind the last map.
        num_classes: Without the background. Labels of targets and predictions count from 1.
        image_size: Pixels of the longer side, or ``(shorter, longest)``: the shorter side is scaled
            to ``shorter`` unless the longer one would get over ``longest``. Where ``shorter`` is
            several sizes, training draws one for each image and evaluation takes the last.
        mean: Per channel, of images with values from 0 to 1; None takes the network's own.
        std: Per channel; None takes the network's own.
        channels: Of the pyramid's maps.
        box_channels: Of the layers that look at a region, in the two-stage detectors.
        mask_channels: Of the convolutions before the masks, in ``"mask_rcnn"``.
        out_indices: Which of the network's maps, as in timm; None takes those with one position per
            4 pixels and more, for the one-stage detectors 8 and more.
        anchor_sizes: Pixels, or several sizes, for each level of the pyramid; None takes
            torchvision's (32 for the first level and twice as much for each further one).
        frozen_stages: The stem and so many stages keep their parameters and stay in evaluation
            mode; 0 freezes nothing. Stages are those of timm's ``feature_info``.
        frozen_norm: Every BatchNorm of the network keeps its parameters and statistics.
        learning: Parameters that are not frozen wherever they are, with the BatchNorms they are of:
            ``Graft.parameters()`` of blocks that took a layer's place.
        detector_args: What torchvision's class takes besides, such as ``box_score_thresh``.

    What a graft put beside a layer is never frozen, and neither is what is grafted into the
    detector. A block that took a layer's place before is a layer like any other: name its
    parameters in ``learning``.

    Returns:
        The detector. In training mode it takes a list of images ``(C, H, W)`` and a list of
        targets and returns a dict of losses; in evaluation mode it returns a list of predictions.

    Raises:
        ValueError: An argument is wrong or the network cannot serve; it is then as it was.

    Example:
        >>> import torch
        >>> from visgraft.models import create_model
        >>> detector = build_detector(
        ...     "faster_rcnn", create_model("resnet10_small"), num_classes=10, image_size=64
        ... ).eval()
        >>> sorted(detector([torch.rand(3, 60, 48)])[0])
        ['boxes', 'labels', 'scores']
    """
    _check(detector, num_classes, channels, detector_args)
    check_heads(detector, box_channels, mask_channels)
    shorter, longest = min_and_max(image_size)
    in_chans = channels_of(network)
    is_two_stage = detector in _TWO_STAGE
    plan = plan_features(network, in_chans, out_indices, 4 if is_two_stage else 8)
    check_freezing(network, frozen_stages, frozen_norm)
    image_mean, image_std = mean_and_std(network, mean, std)
    strides = level_strides(plan.reductions, 1 if is_two_stage else 2)
    anchors = anchor_generator(detector, strides, anchor_sizes)
    extra = LastLevelMaxPool() if is_two_stage else LastLevelP6P7(channels, channels)
    backbone = PyramidBackbone(
        network, plan, in_chans=in_chans, channels=channels, extra_blocks=extra
    )
    own: dict[str, Any] = {}
    if is_two_stage:
        own["rpn_anchor_generator"] = anchors
        own["box_roi_pool"] = _roi_pool(plan.reductions, 7)
        if detector == "mask_rcnn":
            own["mask_roi_pool"] = _roi_pool(plan.reductions, 14)
    else:
        own["anchor_generator"] = anchors
    model = DETECTORS[detector](backbone, num_classes=num_classes + 1, **(own | detector_args))
    if is_two_stage:
        set_heads(
            model,
            channels=channels,
            num_classes=num_classes + 1,
            box_channels=box_channels,
            mask_channels=mask_channels,
        )
    divisor = max(32, *plan.reductions)
    model.transform = DetectorTransform(shorter, longest, image_mean, image_std, divisor)
    model.to(like_of([network])[0])
    backbone.adopt(frozen_stages=frozen_stages, frozen_norm=frozen_norm, learning=set(learning))
    return model.train()


def _roi_pool(reductions: Sequence[int], output_size: int) -> MultiScaleRoIAlign:
    """Builds the pooling of regions, which knows the maps' scales.

    torchvision guesses them at the first batch, from the size of its images before they are padded,
    and is off by a factor of two for some small images.
    """
    names = [str(i) for i in range(len(reductions))]
    pool = MultiScaleRoIAlign(names, output_size, sampling_ratio=2)
    first = round(math.log2(reductions[0]))
    scales: Any = [1 / r for r in reductions]
    mapper: Any = LevelMapper(first, first + len(reductions) - 1)
    pool.scales, pool.map_levels = scales, mapper
    return pool


def _check(detector: str, num_classes: int, channels: int, options: Mapping[str, Any]) -> None:
    """Raises ValueError for what is wrong whatever the network is."""
    if detector not in DETECTORS:
        raise ValueError(
            f"build_detector: {detector!r} is no detector{nearest(str(detector), DETECTORS)} "
            f"(there are {', '.join(DETECTORS)})"
        )
    for name, value in (("num_classes", num_classes), ("channels", channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"build_detector: {name} must be 1 or more, got {value!r}")
    if detector == "fcos" and channels % 32:
        raise ValueError(
            f"build_detector: channels must be a multiple of 32 for fcos, whose heads normalise in "
            f"32 groups, got {channels}"
        )
    check_options(detector, DETECTORS[detector], options)
