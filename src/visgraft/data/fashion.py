"""The embedded demo set: a class-balanced sample of Fashion-MNIST.

Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
    Learning Algorithms", 2017, https://arxiv.org/abs/1708.07747; MIT licence, (C) 2017 Zalando SE
    (``fashion_mini/LICENSE``). The sprites are made by ``scripts/make_fashion_mini.py``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image

from visgraft.data.splits import ImageSplit

__all__ = ["FashionMini", "PixelImages", "load_fashion_mini"]


@dataclass(frozen=True, eq=False)
class PixelImages:
    """Images of one size, kept in memory.

    Attributes:
        pixels: ``(N, H, W)`` of uint8.
        names: One name per image.
    """

    pixels: np.ndarray
    names: Sequence[str]

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def subset(self, indices: Sequence[int]) -> "PixelImages":
        """Returns a source of these images only, in this order."""
        return PixelImages(self.pixels[list(indices)], [self.names[index] for index in indices])


@dataclass(frozen=True, eq=False)
class FashionMini:
    """The two parts of the demo set and its facts."""

    classes: tuple[str, ...]
    train: ImageSplit
    val: ImageSplit
    mean: float
    std: float
    sha256: str


def load_fashion_mini() -> FashionMini:
    """Returns 10 000 images to learn from and 2 000 to measure on, 28 x 28, mode L, 10 classes."""
    folder = files("visgraft.data") / "fashion_mini"
    facts = json.loads((folder / "facts.json").read_text("utf-8"))

    def part(name: str) -> ImageSplit:
        with (folder / facts[name]["file"]).open("rb") as file, Image.open(file) as sprite:
            return _cut(np.asarray(sprite), name, facts)

    return FashionMini(
        classes=tuple(facts["classes"]),
        train=part("train"),
        val=part("val"),
        mean=facts["mean"],
        std=facts["std"],
        sha256=facts["train"]["pixels_sha256"] + facts["val"]["pixels_sha256"],
    )


def _cut(sprite: np.ndarray, name: str, facts: dict[str, Any]) -> ImageSplit:
    """Cuts a sprite, whose images are sorted by class, into its images."""
    height, width = facts["image_size"]
    rows, columns = sprite.shape[0] // height, sprite.shape[1] // width
    pixels = sprite.reshape(rows, height, columns, width).swapaxes(1, 2)
    per_class = facts[name]["per_class"]
    labels = [label for label in range(len(facts["classes"])) for _ in range(per_class)]
    names = [f"{name}/{label}/{index % per_class:04}" for index, label in enumerate(labels)]
    return ImageSplit(PixelImages(pixels.reshape(-1, height, width), names), labels)
