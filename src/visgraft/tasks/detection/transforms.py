"""What happens to a picture and its objects on the way to a detector."""

from collections.abc import Sequence
from typing import Any

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from visgraft.data.detection import per_object

__all__ = ["FitSize", "evaluation_transform", "fitted_size", "training_transform"]

_LEAST_SIDE = 1.0  # pixels of a box that is kept


def training_transform(
    *,
    min_size: Sequence[int],
    max_size: int,
    hflip: float = 0.5,
    scale_jitter: tuple[float, float] | None = None,
    color_jitter: float = 0.0,
) -> v2.Transform:
    """Returns a transform of image and target; boxes and masks move with the image.

    Args:
        min_size: Pixels of the shorter side; of several, one is taken at random.
        max_size: Most pixels of the longer side.
        hflip: Probability of mirroring left and right.
        scale_jitter: Factors between which the size is multiplied; what is then too large is cut.
        color_jitter: Strength of random brightness, contrast and saturation.
    """
    steps: list[Any] = [v2.RandomHorizontalFlip(hflip)] if hflip else []
    if color_jitter:
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter))
    steps += [
        v2.ToDtype(torch.float32, scale=True),
        FitSize(min_size, max_size, scale_jitter),
        v2.SanitizeBoundingBoxes(min_size=_LEAST_SIDE, labels_getter=per_object),
        v2.ToPureTensor(),
    ]
    return v2.Compose(steps)


def evaluation_transform() -> v2.Transform:
    """Returns what happens to an image that is measured on: it comes in its own size."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])


def fitted_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Returns the largest size with sides of at most ``min_size`` and ``max_size``, rounded down.

    Args:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        min_size: Of the shorter side.
        max_size: Of the longer side.
    """
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return max(int(height * scale), 1), max(int(width * scale), 1)


class FitSize(v2.Transform):
    """Scales an image as torchvision's detectors do in evaluation, with sizes drawn at random.

    Args:
        min_size: Pixels of the shorter side; of several, one is taken at random.
        max_size: Most pixels of the longer side.
        jitter: Factors between which that size is multiplied, uniformly; an image that gets larger
            by it is cut to the size before, somewhere.
    """

    def __init__(
        self,
        min_size: Sequence[int],
        max_size: int,
        jitter: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.min_size = tuple(min_size)
        self.max_size = max_size
        self.jitter = jitter

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws size and place."""
        shape = v2.query_size(flat_inputs)
        side = self.min_size[int(torch.randint(len(self.min_size), ()))]
        height, width = fitted_size(*shape, side, self.max_size)
        scaled = (height, width)
        if self.jitter:
            low, high = self.jitter
            factor = float(low + (high - low) * torch.rand(()))
            scaled = (max(round(height * factor), 1), max(round(width * factor), 1))
        cut = (min(height, scaled[0]), min(width, scaled[1]))
        top, left = (int(torch.randint(s - c + 1, ())) for s, c in zip(scaled, cut, strict=True))
        return {"size": scaled, "window": (top, left, *cut)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Scales, then cuts."""
        scaled = self._call_kernel(
            functional.resize, inpt, size=list(params["size"]), antialias=False
        )
        if params["window"] == (0, 0, *params["size"]):
            return scaled
        top, left, height, width = params["window"]
        return self._call_kernel(
            functional.crop, scaled, top=top, left=left, height=height, width=width
        )
