"""How images become a detector's input: their size, mean and deviation."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

__all__ = ["DetectorTransform", "ImageSize", "channels_of", "mean_and_std", "min_and_max"]

ImageSize = int | tuple[int | Sequence[int], int]
"""Of the longer side, or of the shorter side (some of which one is drawn) and the longest legal."""


class DetectorTransform(GeneralizedRCNNTransform):
    """torchvision's transform, which tells an image with a wrong number of channels.

    Left alone, torchvision spreads a grey image over the channels of the mean.

    Args:
        shorter: Pixels of the shorter side; training draws one of them for each image, evaluation
            takes the last.
        longest: Pixels that the longer side may have.
        mean: Per channel.
        std: Per channel.
        divisor: Sides of a batch are padded to a multiple of it.
    """

    def __init__(
        self,
        shorter: tuple[int, ...],
        longest: int,
        mean: list[float],
        std: list[float],
        divisor: int,
    ) -> None:
        sides: Any = shorter  # declared as one number, and documented as several
        super().__init__(sides, longest, mean, std, size_divisible=divisor)

    def normalize(self, image: Tensor) -> Tensor:
        """Subtracts the mean from an image ``(C, H, W)`` and divides by the deviation."""
        wanted = len(self.image_mean)
        if image.shape[-3] != wanted:
            raise ValueError(
                f"the detector takes images with {wanted} channel{'s' if wanted > 1 else ''}, got "
                f"one of shape {tuple(image.shape)}; convert it, or build the network with "
                f"in_chans={image.shape[-3]}"
            )
        return super().normalize(image)


def min_and_max(image_size: Any) -> tuple[tuple[int, ...], int]:
    """Returns the sizes of the shorter side and the largest of the longer one, in pixels.

    Raises:
        ValueError: ``image_size`` says nothing of the kind.
    """
    if _is_size(image_size):
        return (image_size,), image_size
    if isinstance(image_size, (tuple, list)) and len(image_size) == 2:
        shorter, longer = image_size
        sizes = tuple(shorter) if isinstance(shorter, (tuple, list)) else (shorter,)
        if sizes and all(map(_is_size, sizes)) and _is_size(longer) and max(sizes) <= longer:
            return sizes, longer
    raise ValueError(
        "build_detector: image_size must be pixels of the longer side, such as 256, or (shorter "
        "side, limit of the longer side), such as (800, 1333) or ((640, 672, 800), 1333), got "
        f"{image_size!r}"
    )


def channels_of(network: nn.Module) -> int:
    """Returns how many channels the images of a network have."""
    known = getattr(network, "in_chans", None)
    return known if isinstance(known, int) else int(_config(network).get("input_size", (3,))[0])


def mean_and_std(
    network: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[list[float], list[float]]:
    """Returns mean and deviation per channel: those given, else those the network was trained with.

    Raises:
        ValueError: They do not fit the network's images.
    """
    count, config = channels_of(network), _config(network)
    found: list[list[float]] = []
    for field, given in (("mean", mean), ("std", std)):
        values = list(config.get(field, ())) if given is None else given
        if given is None and count == 1 and values:
            values = [sum(values) / len(values)]
        legal = isinstance(values, (tuple, list)) and all(isinstance(v, Real) for v in values)
        if not legal or len(values) != count or (field == "std" and min(values) <= 0):
            kind = "positive numbers" if field == "std" else "numbers"
            raise ValueError(
                f"build_detector: {field} must be {kind}, one for each of the {count} channels of "
                f"the images of network {type(network).__name__}, got {values!r}"
            )
        found.append([float(v) for v in values])
    return found[0], found[1]


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _config(network: nn.Module) -> dict[str, Any]:
    return dict(getattr(network, "pretrained_cfg", None) or {})
