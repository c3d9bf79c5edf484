"""Small networks, images and targets to try detectors on, and torchvision's own detectors."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from visgraft.models import create_model
from visgraft.tasks.detection import build_detector

DETECTORS = ("faster_rcnn", "mask_rcnn", "retinanet", "fcos")
SIZES = ((70, 50), (64, 100))  # pixels, no multiples of 32


def shaken(network: nn.Module) -> nn.Module:
    """Gives norms random numbers, so that no branch of the network is multiplied by zero."""
    stream = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            for tensor, low in (
                (module.weight, 0.5),
                (module.bias, -0.5),
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
            ):
                tensor.data.copy_(torch.rand(tensor.shape, generator=stream) + low)
    return network


def small_detector(
    detector: str = "faster_rcnn", name: str = "resnet10_small", **options: Any
) -> nn.Module:
    """Builds a detector with three classes on a network, the same numbers each time."""
    torch.manual_seed(0)
    network = shaken(create_model(name))
    usual: dict[str, Any] = {"num_classes": 3, "image_size": (64, 128), "channels": 32}
    usual |= quick(detector)
    return build_detector(detector, network, **(usual | options))


def quick(detector: str, score_thresh: float = 0.0) -> dict[str, Any]:
    """Returns options with which a detector keeps a few of its uncertain detections."""
    few: dict[str, Any] = {"score_thresh": score_thresh, "detections_per_img": 20}
    if "rcnn" not in detector:
        return few
    few = {f"box_{key}": value for key, value in few.items()}
    return few | {"box_batch_size_per_image": 16, "rpn_post_nms_top_n_test": 60}


def pictures(sizes: tuple[tuple[int, int], ...] = SIZES, channels: int = 3) -> list[Tensor]:
    """Returns an image of noise of each size."""
    stream = torch.Generator().manual_seed(2)
    return [torch.rand(channels, *size, generator=stream) for size in sizes]


def objects(images: list[Tensor]) -> list[dict[str, Tensor]]:
    """Returns two objects with masks for each image."""
    targets = []
    for image in images:
        masks = torch.zeros(2, *image.shape[1:], dtype=torch.uint8)
        masks[0, 5:40, 5:30] = masks[1, 20:60, 10:48] = 1
        boxes = torch.tensor([[5.0, 5, 30, 40], [10, 20, 48, 60]])
        targets.append({"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks})
    return targets


def torchvision_detector(detector: str, **options: Any) -> nn.Module:
    """Builds what torchvision's ``*_resnet50_fpn`` build to be trained on published weights.

    BatchNorm and the first two stages of five are frozen.
    """
    trunk = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    if detector in ("faster_rcnn", "mask_rcnn"):
        backbone = _resnet_fpn_extractor(trunk, 3)
        return (FasterRCNN if detector == "faster_rcnn" else MaskRCNN)(backbone, 4, **options)
    backbone = _resnet_fpn_extractor(
        trunk, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    if detector == "fcos":
        return FCOS(backbone, 4, **options)
    sizes = tuple(
        (x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512)
    )
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    return RetinaNet(backbone, 4, anchor_generator=anchors, **options)
