"""Pictures in gray with a glow at the places that count for a network."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["as_pixels", "colours", "enlarge", "glowing"]

_GLOW = np.array((255, 96, 0), np.float32)  # of the places that count
_STRENGTH = 0.8  # of the glow at the largest value


def as_pixels(inputs: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Returns what the network sees as pixels in 0-1."""
    shape = (1, -1, 1, 1)
    return (inputs * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)).clamp(0, 1)


def colours(pixels: Tensor) -> Image.Image:
    """Returns pixels (C, H, W) in 0-1 as a picture in RGB."""
    values = (pixels.expand(3, -1, -1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(values.contiguous().numpy())


def enlarge(picture: Image.Image, side: int) -> Image.Image:
    """Returns a picture whose shorter side has so many pixels: whole pixels of a smaller one."""
    factor = side / min(picture.size)
    kind = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return picture.resize((width, height), kind)


def glowing(picture: Image.Image, values: Tensor) -> Image.Image:
    """Returns a picture in gray with a glow where the map is large, by its own largest value."""
    gray = picture.convert("L").convert("RGB")
    size = (gray.height, gray.width)
    spread = interpolate(values[None, None], size=size, mode="bilinear")[0, 0]
    peak = float(spread.max())
    glow = (spread / peak if peak > 0 else spread).numpy()[..., None] * _STRENGTH
    mixed = np.asarray(gray, np.float32) * (1 - glow) + _GLOW * glow
    return Image.fromarray(mixed.round().astype(np.uint8))
