"""What a detection data set is: images, classes and objects with boxes and masks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from PIL import Image

from visgraft.data.detection.masks import Mask

__all__ = ["AnnotatedImage", "AnnotatedObject", "Box", "DetectionData", "ImageReader"]

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class AnnotatedObject:
    """One object in an image.

    Attributes:
        box: ``x1, y1, x2, y2`` in pixels, inside the image, ``x1 < x2`` and ``y1 < y2``.
        label: Index into the data set's classes.
        area: Pixels of the object, of its box where the file does not say.
        id: The annotation's number in its file.
        mask: Its pixels, ``None`` where only the box is known.
        is_crowd: Whether it stands for several objects, or is not to be measured on.
    """

    box: Box
    label: int
    area: float
    id: int
    mask: Mask | None = None
    is_crowd: bool = False


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One image with its objects, which may be none.

    Attributes:
        id: The image's number in its file.
        name: Path below the image folder, with ``/``.
        height: In the frame of the annotations, in pixels.
        width: The same.
        objects: In the order of the file.
    """

    id: int
    name: str
    height: int
    width: int
    objects: tuple[AnnotatedObject, ...] = ()


class ImageReader(Protocol):
    """Gives the pixels of an image; can be pickled to the workers of a loader."""

    def __call__(self, image: AnnotatedImage) -> Image.Image:
        """Returns the picture in RGB, in the frame of its annotations."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class DetectionData:
    """One part (training, say) of a data set for detection.

    Attributes:
        name: What the user calls it.
        classes: Names of the classes; a label is an index into them.
        category_ids: The number of each class in the file, in the same order.
        images: All images, also those without objects.
        read: Gives the picture of an image.
        notes: What was met and needs no mending, in sentences.
    """

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: Sequence[AnnotatedImage]
    read: ImageReader
    notes: tuple[str, ...] = ()

    @property
    def num_objects(self) -> int:
        """How many objects there are, crowds included."""
        return sum(len(image.objects) for image in self.images)

    @property
    def has_masks(self) -> bool:
        """Whether there are objects and each of them has a mask."""
        masks = [item.mask is not None for image in self.images for item in image.objects]
        return bool(masks) and all(masks)

    def subset(self, indices: Sequence[int]) -> "DetectionData":
        """Returns the data with these images only, in this order."""
        return replace(self, images=tuple(self.images[index] for index in indices))

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return (
            f"DetectionData({self.name!r}, {len(self)} images, {self.num_objects} objects, "
            f"{len(self.classes)} classes)"
        )
