"""Folders of tiny images, and a cache of their own for each test."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


def noise(seed: int, size: tuple[int, int] = (12, 10), channels: int = 3) -> np.ndarray:
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Makes ``root/part/class/0.png ...`` of noise, 10 x 12 pixels; ``parts=[""]`` for no part."""

    def make(
        parts: Sequence[str] = ("train", "val"),
        classes: Sequence[str] = ("cat", "dog"),
        count: int = 3,
        name: str = "pets",
    ) -> Path:
        root = tmp_path / name
        seed = 0
        for part in parts:
            for class_name in classes:
                folder = root / part / class_name
                folder.mkdir(parents=True)
                for index in range(count):
                    seed += 1
                    Image.fromarray(noise(seed)).save(folder / f"{index}.png")
        return root

    return make
