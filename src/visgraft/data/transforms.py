"""From an image to a normalised tensor, on the transforms of timm and torchvision."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import ResizeKeepRatio
from timm.data.transforms_factory import transforms_imagenet_eval, transforms_imagenet_train
from torch import Tensor
from torchvision.transforms import v2

from visgraft.data._errors import DataError
from visgraft.data.splits import ImageData

__all__ = ["build_transforms"]

SMALL_IMAGE = 64
AUTO_AUGMENT_POLICIES = ("rand", "augmix", "original", "originalr", "v0", "v0r", "3a")
INTERPOLATIONS = ("bicubic", "bilinear", "nearest")


def build_transforms(
    data: ImageData,
    image_size: int | tuple[int, int] | None = None,
    *,
    training: bool,
    hflip: float = 0.5,
    crop_padding: int | None = None,
    crop_scale: tuple[float, float] | None = None,
    auto_augment: str | None = None,
    random_erase: float = 0.0,
    color_jitter: float = 0.0,
    crop_pct: float | None = None,
    interpolation: str = "bicubic",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Callable[[Image.Image], Tensor]:
    """Returns the transform of one part of ``data``, for training or for evaluation.

    Training takes one of two paths:

    * *pad and crop*, where the images or ``image_size`` are at most 64 pixels, or ``crop_padding``
      is given: resize the shorter side (skipped where all images have the size already), pad with
      black, cut at random;
    * *random resized crop* otherwise, or where ``crop_scale`` is given: timm's.

    Both go on with flip, timm's ``auto_augment``, colour jitter, normalisation and timm's random
    erasing. Evaluation is timm's: resize the shorter side to ``image_size / crop_pct``, cut the
    centre. Options of the other kind are ignored, so both transforms can be built from one set of
    options.

    Args:
        data: Says channels, sizes, mean and standard deviation.
        image_size: Of the tensor, in pixels: a side, ``(H, W)``, or ``None`` for the size of the
            images.
        training: With random choices, or without.
        hflip: Probability of a horizontal flip.
        crop_padding: Pixels added on each side before cutting; on the first path by default an
            eighth of the shorter side (4 for 32). 0 cuts without padding.
        crop_scale: Share of the area that is cut out, ``(low, high)``; on the second path by
            default ``(0.08, 1.0)``.
        auto_augment: timm's text, such as ``"rand-m9-mstd0.5-inc1"``; RGB only.
        random_erase: Probability of erasing a rectangle (filled with noise).
        color_jitter: Strength for brightness, contrast and saturation.
        crop_pct: Share of the shorter side that evaluation keeps; by default 1 for small images
            (see above), else 0.875.
        interpolation: ``"bicubic"``, ``"bilinear"`` or ``"nearest"``, except for random resized
            crops, which change between the first two.
        mean: Per channel, instead of that of ``data`` (that of a pretrained network, say).
        std: Per channel, instead of that of ``data``.

    Raises:
        DataError: If an option is out of its range, or does not suit the images.

    Example:
        >>> from visgraft.data import load_data
        >>> data = load_data("fashion_mini")
        >>> build_transforms(data, training=True)(data.train[0][0]).shape
        torch.Size([1, 28, 28])
    """
    size = _output_size(data, image_size)
    small = max(size) <= SMALL_IMAGE or max(data.image_size or (SMALL_IMAGE + 1,)) <= SMALL_IMAGE
    normalize = _Normalize(
        _per_channel("mean", data.mean if mean is None else mean, data),
        _per_channel("std", data.std if std is None else std, data),
    )
    if interpolation not in INTERPOLATIONS:
        raise DataError(
            f"build_transforms: interpolation must be one of {', '.join(INTERPOLATIONS)}, "
            f"got {interpolation!r}"
        )
    if not training:
        crop_pct = (1.0 if small else 0.875) if crop_pct is None else crop_pct
        if not 0 < crop_pct <= 1:
            raise DataError(f"build_transforms: crop_pct must be in (0, 1], got {crop_pct}")
        evaluation: Any = transforms_imagenet_eval(
            size, crop_pct=crop_pct, interpolation=interpolation, normalize=False
        )
        return v2.Compose([*evaluation.transforms, normalize])

    _check_training(data, hflip, random_erase, color_jitter, auto_augment)
    _check_crop(crop_padding, crop_scale)
    try:
        stages: Any = transforms_imagenet_train(
            size,
            scale=crop_scale,
            hflip=hflip,
            color_jitter=color_jitter or None,  # pyright: ignore[reportArgumentType]
            force_color_jitter=True,
            auto_augment=auto_augment,
            interpolation="random",
            mean=normalize.mean,
            normalize=False,
            separate=True,
        )
    except (AssertionError, ValueError) as error:
        raise DataError(
            f"build_transforms: timm does not understand auto_augment={auto_augment!r} ({error}); "
            "write it like 'rand-m9-mstd0.5-inc1'"
        ) from error
    crop, augment, to_tensor = (stage.transforms for stage in stages)
    if crop_padding is not None or (small and crop_scale is None):
        padding = round(min(size) / 8) if crop_padding is None else crop_padding
        crop = [_PadAndCrop(size, padding), v2.RandomHorizontalFlip(hflip)]
        if data.image_size != size:
            crop.insert(0, ResizeKeepRatio(size, interpolation=interpolation))
    erase = [RandomErasing(random_erase, mode="pixel", device="cpu")] if random_erase else []
    return v2.Compose([*crop, *augment, *to_tensor, normalize, *erase])


class _PadAndCrop:
    """Pads with black and cuts ``size`` at random.

    Pillow fills with black what a box has outside the image: one call, a quarter of the time of
    torchvision's ``RandomCrop(size, padding)``.
    """

    def __init__(self, size: tuple[int, int], padding: int) -> None:
        self.size = size
        self.padding = padding

    def __call__(self, image: Image.Image) -> Image.Image:
        height, width = self.size
        top = self._start(image.height - height)
        left = self._start(image.width - width)
        return image.crop((left, top, left + width, top + height))

    def _start(self, spare: int) -> int:
        """Returns a random start for a side that has ``spare`` pixels more than are cut."""
        return int(torch.randint(max(0, spare + 2 * self.padding) + 1, ())) - self.padding

    def __repr__(self) -> str:
        return f"PadAndCrop(size={self.size}, padding={self.padding})"


class _Normalize:
    """From pixels of 0-255 to ``(pixels / 255 - mean) / std``, in two operations."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        if min(std) <= 0:
            raise DataError(f"build_transforms: std must be above 0, got {std}")
        self.mean = mean
        self.std = std
        self._factor = (255 * torch.tensor(std)).reciprocal().reshape(-1, 1, 1)
        self._shift = (torch.tensor(mean) / torch.tensor(std)).reshape(-1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.float().mul_(self._factor).sub_(self._shift)

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std})"


def _output_size(data: ImageData, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Returns the size of the tensor as (H, W)."""
    size = data.image_size if image_size is None else image_size
    if size is None:
        raise DataError(
            f"build_transforms: the images of {data.name} differ in size; choose an image_size"
        )
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise DataError(f"build_transforms: image_size must be at least 1, got {image_size}")
    return height, width


def _per_channel(name: str, values: Sequence[float], data: ImageData) -> tuple[float, ...]:
    """Returns ``values`` as a tuple, one per channel."""
    if len(values) != data.in_chans:
        raise DataError(
            f"build_transforms: {name} must have one value per channel, {data.in_chans} for "
            f"{data.name}, got {tuple(values)}"
        )
    return tuple(values)


def _check_crop(crop_padding: int | None, crop_scale: tuple[float, float] | None) -> None:
    """Raises unless at most one way to cut is given, with legal numbers."""
    if crop_padding is not None and crop_scale is not None:
        raise DataError(
            "build_transforms: crop_padding and crop_scale are two ways to cut; give one of them, "
            f"got {crop_padding=} and {crop_scale=}"
        )
    if crop_padding is not None and crop_padding < 0:
        raise DataError(f"build_transforms: crop_padding must not be negative, got {crop_padding}")
    if crop_scale is not None and not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise DataError(
            "build_transforms: crop_scale must be (low, high) with 0 < low <= high <= 1, "
            f"got {crop_scale}"
        )


def _check_training(
    data: ImageData,
    hflip: float,
    random_erase: float,
    color_jitter: float,
    auto_augment: str | None,
) -> None:
    """Raises if an option of the training transform is out of its range."""
    for name, value in (("hflip", hflip), ("random_erase", random_erase)):
        if not 0 <= value <= 1:
            raise DataError(f"build_transforms: {name} must be in [0, 1], got {value}")
    if color_jitter < 0:
        raise DataError(f"build_transforms: color_jitter must not be negative, got {color_jitter}")
    if auto_augment is None:
        return
    if data.in_chans == 1:
        raise DataError(
            f"build_transforms: auto_augment={auto_augment!r} works on RGB images, and those of "
            f"{data.name} are grayscale; leave it out"
        )
    policy = auto_augment.split("-")[0]
    if policy not in AUTO_AUGMENT_POLICIES:
        near = get_close_matches(policy, AUTO_AUGMENT_POLICIES, 1)
        raise DataError(
            f"build_transforms: unknown auto_augment policy {policy!r}"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + f" There are {', '.join(AUTO_AUGMENT_POLICIES)}"
        )
