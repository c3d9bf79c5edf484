"""`fashion_scenes`: garments of `fashion_mini` composed into scenes with exact boxes and masks.

Source of the garments: Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017,
    https://arxiv.org/abs/1708.07747; MIT licence, (C) 2017 Zalando SE.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from visgraft.data._errors import DataError
from visgraft.data._seeds import mix_seed
from visgraft.data.detection.annotations import AnnotatedImage, AnnotatedObject, DetectionData
from visgraft.data.detection.masks import encode_bitmap
from visgraft.data.fashion import load_fashion_mini
from visgraft.data.splits import ImageSplit

__all__ = ["MemoryPictures", "fashion_scenes"]

_CANVAS = (128, 256)  # pixels, both ends included
_GARMENT = (40, 112)
_COUNT = (2, 7)
_LEAST_VISIBLE = 0.4  # of a garment, after all that lie on it
_LEAST_FILLED = 0.08  # of a garment's square; darker ones are left out
_TRIES = 12
_FAINT = 16  # of 255: what lies around a garment, and is not of it
_NOTHING = -1


@dataclass(frozen=True, eq=False)
class MemoryPictures:
    """Pictures in memory.

    Attributes:
        pixels: ``(H, W, 3)`` of uint8 each, by the image's id.
    """

    pixels: dict[int, np.ndarray]

    def __call__(self, image: AnnotatedImage) -> Image.Image:
        """Returns the picture in RGB."""
        return Image.fromarray(self.pixels[image.id])

    def signature(self, image: AnnotatedImage) -> str:
        """Returns a digest of the pixels."""
        return hashlib.sha256(self.pixels[image.id].tobytes()).hexdigest()


def fashion_scenes(
    *, train_images: int = 200, val_images: int = 50, seed: int = 0
) -> tuple[DetectionData, DetectionData]:
    """Returns scenes to train and to measure on, the same for the same arguments.

    A scene has 128 to 256 pixels a side, a coloured background with noise, and up to seven tinted
    garments of 40 to 112 pixels, later ones on top of earlier ones. Masks and boxes are modal: they
    cover the visible pixels of an object, which are at least two fifths of it. Training scenes use
    garments of fashion_mini's training part, the others those of its validation part. Scene N is
    the same whatever the number of scenes.

    Args:
        train_images: Scenes to train on, at least 1.
        val_images: Scenes to measure on, at least 1.
        seed: Another seed, other scenes.

    Raises:
        DataError: If a number is below 1, or the seed below 0.

    Example:
        >>> train, val = fashion_scenes(train_images=4, val_images=2)
        >>> len(train), len(val), train.classes[0]
        (4, 2, 'T-shirt/top')
    """
    for name, value in (("train_images", train_images), ("val_images", val_images)):
        if value < 1:
            raise DataError(f"fashion_scenes: {name} must be at least 1, got {value}")
    if seed < 0:
        raise DataError(f"fashion_scenes: seed must be at least 0, got {seed}")
    mini = load_fashion_mini()
    return (
        _compose_part("train", mini.train, mini.classes, train_images, mix_seed(seed, 0)),
        _compose_part("val", mini.val, mini.classes, val_images, mix_seed(seed, 1)),
    )


def _compose_part(
    name: str, garments: ImageSplit, classes: tuple[str, ...], count: int, seed: int
) -> DetectionData:
    images: list[AnnotatedImage] = []
    pixels: dict[int, np.ndarray] = {}
    first_id = 1
    for index in range(count):
        picture, owner, labels = _compose(garments, np.random.default_rng(mix_seed(seed, index)))
        items = tuple(
            _describe(owner == place, label, first_id + place) for place, label in enumerate(labels)
        )
        first_id += len(items)
        key = index + 1
        pixels[key] = picture
        height, width = owner.shape
        images.append(AnnotatedImage(key, f"{key:06}.png", height, width, items))
    return DetectionData(
        name=f"fashion_scenes/{name}",
        classes=classes,
        category_ids=tuple(range(1, len(classes) + 1)),
        images=images,
        read=MemoryPictures(pixels),
    )


def _compose(
    garments: ImageSplit, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Returns the picture, the place of the object that each pixel shows, and their labels."""
    height, width = (int(side) for side in rng.integers(_CANVAS[0], _CANVAS[1] + 1, 2))
    picture = _background(height, width, rng)
    owner = np.full((height, width), _NOTHING)
    full: list[int] = []
    labels: list[int] = []
    for _ in range(rng.integers(_COUNT[0], _COUNT[1] + 1)):
        gray, label = garments[int(rng.integers(len(garments)))]
        colours, shape = _garment(gray, rng)
        side = len(shape)
        if shape.mean() < _LEAST_FILLED:
            continue
        for _ in range(_TRIES):
            top, left = rng.integers(0, (height - side + 1, width - side + 1))
            window = (slice(top, top + side), slice(left, left + side))
            if not _hides_too_much(owner, owner[window][shape], full):
                picture[window][shape] = colours[shape]
                owner[window][shape] = len(labels)
                full.append(int(shape.sum()))
                labels.append(label)
                break
    return picture, owner, labels


def _hides_too_much(owner: np.ndarray, covered: np.ndarray, full: list[int]) -> bool:
    """Returns whether covering these pixels would leave too little of an earlier object."""
    visible = np.bincount(owner.ravel() + 1, minlength=len(full) + 1)[1:]
    hidden = np.bincount(covered + 1, minlength=len(full) + 1)[1:]
    return bool((visible - hidden < _LEAST_VISIBLE * np.array(full)).any())


def _garment(gray: Image.Image, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns a garment in colour, ``(S, S, 3)``, and its shape, ``(S, S)`` of bool."""
    side = int(rng.integers(_GARMENT[0], _GARMENT[1] + 1))
    if rng.integers(2):
        gray = gray.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    solid = Image.fromarray((np.asarray(gray) > _FAINT).astype(np.uint8) * 255)
    size, smooth = (side, side), Image.Resampling.BILINEAR
    shape = np.asarray(solid.resize(size, smooth)) >= 128
    light = np.asarray(gray.resize(size, smooth)).astype(np.uint16)[..., None]
    tint = rng.integers(96, 256, 3).astype(np.uint16)
    return ((56 + light * 199 // 255) * tint // 255).astype(np.uint8), shape


def _background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a blend of two colours with noise, ``(H, W, 3)`` of uint8."""
    here, there = rng.integers(16, 176, (2, 3))
    ramp = np.arange(width) * 256 // width
    row = here + (there - here) * ramp[:, None] // 256
    noise = rng.integers(-14, 15, (height, width, 1))
    return np.clip(row[None] + noise, 0, 255).astype(np.uint8)


def _describe(bitmap: np.ndarray, label: int, key: int) -> AnnotatedObject:
    """Returns the object that these pixels show."""
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    x1, y1, x2, y2 = (float(value) for value in box)
    return AnnotatedObject((x1, y1, x2, y2), label, float(bitmap.sum()), key, encode_bitmap(bitmap))
