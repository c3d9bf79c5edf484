"""Reading one image file: upright, RGB, 8 bits, or a sentence that names the file."""

import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from visgraft.data._errors import DataError

__all__ = ["ImageFiles", "explain", "open_picture", "probe_image", "read_image"]

# Decoders that only decode. EPS, say, is left out: Pillow would start Ghostscript on the file.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "MPO", "JPEG2000", "AVIF")
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WIDE_MODES = ("I", "F")


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images in the files of a folder, read when asked for.

    Attributes:
        root: Absolute path of the folder.
        names: Paths below it, with ``/``.
    """

    root: str
    names: Sequence[str]

    def __getitem__(self, index: int) -> Image.Image:
        path = os.path.join(self.root, self.names[index])
        try:
            return read_image(path)
        except Exception as error:
            raise DataError(
                f"{path} could be read when the data set was checked and cannot now: "
                f"{explain(error)}; repair the file, or start again with on_bad_image='skip'"
            ) from error

    def subset(self, indices: Sequence[int]) -> "ImageFiles":
        """Returns a source of these images only, in this order."""
        return ImageFiles(self.root, [self.names[index] for index in indices])


def read_image(path: str | os.PathLike[str], *, upright: bool = True) -> Image.Image:
    """Returns the image as a viewer shows it, in RGB with 8 bits.

    The EXIF orientation is applied (unless ``upright`` is false), transparency is put on white,
    CMYK and palettes are converted, 16 bits are cut to 8, and of several frames the first is taken.
    """
    with open(path, "rb") as file:
        image = open_picture(file)
        image.load()
        return _to_rgb(_upright(image) if upright else image)


def probe_image(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Returns ``(H, W)`` of an image as `read_image` gives it, after decoding all of the file.

    A JPEG is decoded at an eighth of its size, which reads all of its data in less time.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
        raise DataError("not a regular file")
    if status.st_size == 0:
        raise DataError("the file is empty")
    with open(path, "rb") as file:
        image = open_picture(file)
        width, height = image.size
        image.draft(None, (max(1, width // 8), max(1, height // 8)))
        image.load()
        if image.mode != "RGB":
            _to_rgb(image)
        turned = _orientation(image) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def explain(error: Exception) -> str:
    """Returns in a few words why an image could not be read."""
    match error:
        case DataError():
            return str(error)
        case FileNotFoundError():
            return "the file, or what it links to, does not exist"
        case PermissionError():
            return "no permission to read it"
        case UnidentifiedImageError():
            return "not an image of a known format"
        case Image.DecompressionBombWarning() | Image.DecompressionBombError():
            return (
                f"more than {Image.MAX_IMAGE_PIXELS} pixels, Pillow's limit against files that "
                "fill the memory (PIL.Image.MAX_IMAGE_PIXELS)"
            )
        case OSError() if error.strerror:
            return error.strerror
        case _:
            return f"corrupt or truncated ({error or type(error).__name__})"


def open_picture(file: BinaryIO) -> Image.Image:
    """Opens an image by its content, in one of the formats that are merely decoded.

    ultralytics replaces ``PIL.Image.open`` by a function that installs a package when it meets a
    file that is no image; where it was imported, Pillow's own function is taken from it.

    Raises:
        PIL.UnidentifiedImageError: It is in none of these formats.
    """
    patches = sys.modules.get("ultralytics.utils.patches")
    return getattr(patches, "_image_open", Image.open)(file, formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    """Returns the formats that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation of a decoded image, 1 (upright) without sound EXIF data."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow's parser raises what it meets; the pixels may be fine
        return 1


def _upright(image: Image.Image) -> Image.Image:
    """Returns the image turned as its EXIF data say.

    ``ImageOps.exif_transpose`` also writes the EXIF data anew, and fails where they are damaged.
    """
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Returns a decoded image in mode RGB."""
    if image.mode.startswith("I;16") or image.mode in _WIDE_MODES:
        return _from_wide(image)
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image.convert("RGB")


def _from_wide(image: Image.Image) -> Image.Image:
    """Returns an image of 16 bits per pixel in mode RGB."""
    pixels = np.asarray(image)
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise DataError(
            f"pixels of 32 bits (mode {image.mode}) have no agreed range; save it with 8 or 16 bits"
        )
    return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")
