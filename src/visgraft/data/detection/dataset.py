"""Samples for torchvision's transforms: the picture, and boxes and masks that move with it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor

from visgraft.data._errors import DataError
from visgraft.data.detection.annotations import AnnotatedImage, DetectionData
from visgraft.data.detection.masks import decode_mask

__all__ = ["DetectionDataset", "per_object", "stack_samples"]

Target = dict[str, Any]
Sample = tuple[Any, Target]


class DetectionDataset(Dataset[Sample]):
    """Gives ``(image, target)`` by index.

    The image is a ``tv_tensors.Image`` of uint8, ``(3, H, W)``. The target has, for N objects:

    * ``boxes``: ``tv_tensors.BoundingBoxes``, float32, ``(N, 4)``, x1 y1 x2 y2 in pixels;
    * ``labels``: int64, ``(N,)``, from 0 up (torchvision's detectors count from 1);
    * ``masks``: ``tv_tensors.Mask``, uint8, ``(N, H, W)``, if there are masks;
    * ``area``: float32, ``(N,)``, as in the file: a transform does not change it;
    * ``iscrowd``: int64, ``(N,)``;
    * ``object_ids``: int64, ``(N,)``; ``image_id``: int.

    An image without objects has N = 0.

    Args:
        data: What `load_coco`, `load_yolo`, `load_voc` or `fashion_scenes` gave.
        transform: Called with image and target; ``torchvision.transforms.v2`` moves boxes and
            masks with the image.
        masks: Whether targets have masks; by default if every object of the data has one.

    Raises:
        DataError: If masks are asked for and an object has none.

    Example:
        >>> from visgraft.data.detection import fashion_scenes
        >>> dataset = DetectionDataset(fashion_scenes(train_images=2, val_images=1)[0])
        >>> image, target = dataset[0]
        >>> image.shape[0], target["boxes"].shape[1], target["masks"].shape[1:] == image.shape[1:]
        (3, 4, True)
    """

    def __init__(
        self,
        data: DetectionData,
        *,
        transform: Callable[..., Sample] | None = None,
        masks: bool | None = None,
    ) -> None:
        if masks and (lacking := _first_without_mask(data)) is not None:
            raise DataError(
                f"DetectionDataset: masks=True needs a mask for each object, and {lacking} has "
                "none; use masks=False"
            )
        self.data = data
        self.transform = transform
        self.masks = data.has_masks if masks is None else masks

    def __len__(self) -> int:
        return len(self.data.images)

    def __getitem__(self, index: int) -> Sample:
        image = self.data.images[index]
        pixels = tv_tensors.Image(pil_to_tensor(self.data.read(image)))
        target = build_target(image, with_masks=self.masks)
        return (pixels, target) if self.transform is None else self.transform(pixels, target)


def build_target(image: AnnotatedImage, *, with_masks: bool) -> Target:
    """Returns what `DetectionDataset` says about one image."""
    items, size = image.objects, (image.height, image.width)
    target: Target = {
        "boxes": tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue]
            torch.tensor([item.box for item in items], dtype=torch.float32).reshape(-1, 4),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=size,
        ),
        "labels": torch.tensor([item.label for item in items], dtype=torch.int64),
        "area": torch.tensor([item.area for item in items], dtype=torch.float32),
        "iscrowd": torch.tensor([item.is_crowd for item in items], dtype=torch.int64),
        "object_ids": torch.tensor([item.id for item in items], dtype=torch.int64),
        "image_id": image.id,
    }
    if with_masks:
        bitmaps = np.zeros((len(items), *size), np.uint8)
        for place, item in enumerate(items):
            if item.mask is None:
                raise DataError(f"object {item.id} of {image.name} has no mask")
            bitmaps[place] = decode_mask(item.mask, *size)
        target["masks"] = tv_tensors.Mask(torch.from_numpy(bitmaps))
    return target


def per_object(sample: Any) -> tuple[Tensor, ...]:
    """Returns the entries of a sample that have one row per object, beside boxes and masks.

    For ``v2.SanitizeBoundingBoxes(labels_getter=per_object)``, which takes the rows of objects that
    a crop has cut away out of all of them.
    """
    target = sample[1]
    return tuple(target[name] for name in ("labels", "area", "iscrowd", "object_ids"))


def stack_samples(samples: list[Sample]) -> tuple[list[Any], list[Target]]:
    """Returns the images and the targets as two lists, for a loader's ``collate_fn``."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def _first_without_mask(data: DetectionData) -> str | None:
    for image in data.images:
        for item in image.objects:
            if item.mask is None:
                return f"object {item.id} of {image.name}"
    return None
