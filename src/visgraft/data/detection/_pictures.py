"""The picture files of a detection data set: checked at the start, read in the right frame."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from PIL import Image

from visgraft.data._errors import DataError
from visgraft.data._scan import Checked, check_images
from visgraft.data.detection._findings import Findings
from visgraft.data.detection.annotations import AnnotatedImage
from visgraft.data.images import explain, open_picture, read_image

__all__ = ["PictureFolder", "Progress", "check_pictures", "fits_frame", "is_below"]

Progress = Callable[[int, int], None]
_ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class PictureFolder:
    """Reads pictures from a folder, in the frame that the annotations were drawn in.

    A camera's EXIF tag may say that the stored pixels are to be turned before they are shown. The
    frame is the stored one where its size fits the annotations (or the upright one, with
    ``prefer_upright``), and the other one where only that fits.

    Attributes:
        root: Absolute path.
        prefer_upright: Which frame is tried first.
    """

    root: str
    prefer_upright: bool = False

    def __call__(self, image: AnnotatedImage) -> Image.Image:
        """Returns the picture in RGB, in the frame of its annotations."""
        path = os.path.join(self.root, image.name)
        try:
            for upright in (self.prefer_upright, not self.prefer_upright):
                picture = read_image(path, upright=upright)
                if picture.size == (image.width, image.height):
                    return picture
        except Exception as error:
            raise DataError(
                f"{path} could be read when the data set was checked and cannot now: "
                f"{explain(error)}; repair the file, or start again with on_problem='mend'"
            ) from error
        raise DataError(
            f"{path} has {picture.width} x {picture.height} pixels and had {image.width} x "
            f"{image.height} when the data set was checked; start again"
        )

    def signature(self, image: AnnotatedImage) -> str:
        """Returns the size of the picture's file in bytes."""
        path = os.path.join(self.root, image.name)
        try:
            return str(os.stat(path).st_size)
        except OSError as error:
            raise DataError(
                f"{path} could be read when the data set was checked and is gone; start again"
            ) from error


def check_pictures(
    root: Path,
    names: Iterable[str],
    findings: Findings,
    progress: Progress | None,
    *,
    look_closely: bool = False,
) -> dict[str, Checked]:
    """Decodes all pictures and returns the sizes, as a viewer shows them, of the readable ones.

    Args:
        root: Absolute path of the folder.
        names: Paths below it.
        findings: Takes a problem for each file that is missing or cannot be read.
        progress: Called with (files decoded, files to decode).
        look_closely: Also counts turned, CMYK and 16-bit pictures.
    """
    checked = check_images(root, list(dict.fromkeys(names)), progress)
    for name, seen in checked.items():
        if seen.problem is not None:
            findings.problem(str(root / name), seen.problem)
        elif look_closely:
            _look(root / name, findings)
    return {name: seen for name, seen in checked.items() if seen.problem is None}


def fits_frame(root: Path, name: str, seen: Checked, height: int, width: int) -> bool:
    """Returns whether annotations for an image of this size fit the stored or upright picture."""
    if (height, width) == (seen.height, seen.width):
        return True
    if (width, height) != (seen.height, seen.width):
        return False
    with (root / name).open("rb") as file, open_picture(file) as picture:
        return picture.size == (width, height)


def is_below(name: str) -> bool:
    """Returns whether a path from a file stays in the folder that it is looked up in."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    path = PurePosixPath(name)
    return bool(name) and not (
        path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive or "\0" in name
    )


def _look(path: Path, findings: Findings) -> None:
    with path.open("rb") as file, open_picture(file) as picture:
        mode = picture.mode
        try:
            turn = picture.getexif().get(_ORIENTATION, 1)
        except Exception:  # Pillow's parser raises what it meets; the pixels are fine
            turn = 1
            findings.note("pictures have damaged EXIF data (ignored)")
    if turn in range(2, 9):
        findings.note("pictures have an EXIF rotation (read in the frame of their annotations)")
    if mode.startswith("I"):
        findings.note("pictures have 16 bits (read with 8)")
    elif mode == "CMYK":
        findings.note("pictures are CMYK (read as RGB)")
