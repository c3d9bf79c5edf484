"""The pictures of a study's folder as a report shows them: read, never computed.

`visgraft.study.reports.explaining` writes them; a study without them has a report without pictures.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visgraft.study.errors import StudyError

__all__ = ["INDEX", "PICTURES", "Picture", "PictureRow", "Pictures", "read_pictures"]

PICTURES = "pictures"
"""Folder, inside that of the study."""
INDEX = "pictures.json"


@dataclass(frozen=True)
class Picture:
    """One image, or what one network sees in it.

    Attributes:
        source: PNG as a data URI.
        label: The true class of the image; of a network's picture, what it says.
        chance: The probability that the network gives to ``label``; None of an image itself.
        is_right: Whether ``label`` is the true class.
    """

    source: str
    label: str
    chance: float | None = None
    is_right: bool = True


@dataclass(frozen=True)
class PictureRow:
    """One network's pictures, one per image."""

    network: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Pictures:
    """The class-activation pictures of a study.

    Attributes:
        seed: Of the networks.
        images: The validation images.
        rows: What each network sees in them.
        missing: Why a network has none, by its name.
        grid: Rows and columns of the networks' last feature maps, by name.
    """

    seed: int
    images: tuple[Picture, ...]
    rows: tuple[PictureRow, ...]
    missing: Mapping[str, str]
    grid: Mapping[str, tuple[int, int]]

    @property
    def grids(self) -> str:
        """The sizes of the feature maps: ``4 x 4``, or ``4 x 4 to 7 x 7``."""
        sizes = sorted(set(self.grid.values()))
        named = [f"{rows} x {columns}" for rows, columns in dict.fromkeys((sizes[0], sizes[-1]))]
        return " to ".join(named)


def read_pictures(folder: str | Path) -> Pictures | None:
    """Returns the pictures in a study's folder; None if it has none.

    Raises:
        StudyError: They are damaged.
    """
    place = Path(folder) / PICTURES
    try:
        text = (place / INDEX).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StudyError(f"report: {place / INDEX} cannot be read: {error}.") from error
    try:
        return _parse(place, json.loads(text))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"report: the pictures in {place} are damaged ({error}); delete that folder, the "
            "report then has none."
        ) from error


def _parse(place: Path, index: Mapping[str, Any]) -> Pictures | None:
    images = tuple(Picture(_embed(place, i["file"]), str(i["label"])) for i in index["images"])
    rows = []
    for entry in index["networks"]:
        pictures = tuple(
            Picture(
                _embed(place, shown["file"]),
                str(shown["says"]),
                float(shown["chance"]),
                shown["says"] == image.label,
            )
            for shown, image in zip(entry["pictures"], images, strict=True)
        )
        rows.append(PictureRow(str(entry["network"]), pictures))
    if not rows:
        return None
    grid = {str(e["network"]): (int(e["grid"][0]), int(e["grid"][1])) for e in index["networks"]}
    missing = {str(name): str(why) for name, why in index["missing"].items()}
    return Pictures(int(index["seed"]), images, tuple(rows), missing, grid)


def _embed(place: Path, name: str) -> str:
    """Returns a PNG of the folder as a data URI."""
    if Path(name).name != name:
        raise ValueError(f"{name!r} is not a file in it")
    content = (place / name).read_bytes()
    if not content.startswith(b"\x89PNG\r\n"):
        raise ValueError(f"{name} is not a PNG")
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
