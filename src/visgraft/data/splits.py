"""What a data set is to the other rooms: two parts of (image, label) and the facts about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self, overload

from PIL import Image

__all__ = ["ImageData", "ImageSource", "ImageSplit"]


class ImageSource(Protocol):
    """Images by index, read when asked for; can be pickled to the workers of a loader."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the images, in order, the same on every machine."""
        ...

    def __getitem__(self, index: int) -> Image.Image:
        """Returns the decoded image."""
        ...

    def subset(self, indices: Sequence[int]) -> Self:
        """Returns a source of these images only, in this order."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class ImageSplit(Sequence[tuple[Image.Image, int]]):
    """The training or the validation part of a data set, a sequence of (image, label).

    Attributes:
        images: Where the images come from.
        labels: One class index per image.
    """

    images: ImageSource
    labels: list[int]

    @property
    def names(self) -> Sequence[str]:
        """Names of the images, relative to the data set."""
        return self.images.names

    def __repr__(self) -> str:
        return f"ImageSplit({len(self)} images)"

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> tuple[Image.Image, int]: ...
    @overload
    def __getitem__(self, index: slice) -> "ImageSplit": ...
    def __getitem__(self, index: int | slice) -> "tuple[Image.Image, int] | ImageSplit":
        if isinstance(index, slice):
            return self.subset(range(len(self))[index])
        label = self.labels[index]
        return self.images[index], label

    def subset(self, indices: Sequence[int]) -> "ImageSplit":
        """Returns a split of these images only, in this order."""
        return ImageSplit(self.images.subset(indices), [self.labels[index] for index in indices])


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set for classification, ready to be read.

    Attributes:
        name: ``'fashion_mini'`` or the name of the folder.
        classes: Names of the classes; a label is an index into them.
        train: The part to learn from.
        val: The part to measure on.
        in_chans: 1 (images of mode L) or 3 (RGB).
        image_size: ``(H, W)`` of every image, ``None`` where they differ.
        mean: Per channel, of pixels in 0-1.
        std: Per channel, of pixels in 0-1.
        fingerprint: SHA-256 (hex) over classes, relative names, sizes in bytes, labels and split.
            The folder may move; another file, name, size, label or split changes it.
        skipped: Names of the unreadable files that were left out (``on_bad_image="skip"``).
        has_own_split: Whether the data set says itself which images are measured on.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSplit
    val: ImageSplit
    in_chans: int
    image_size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    skipped: tuple[str, ...] = ()
    has_own_split: bool = True
