"""Masks of objects: polygons, run lengths and bitmaps, and the bitmap of each.

Source: the run-length format of COCO, https://cocodataset.org/#format-data and
    https://github.com/cocodataset/cocoapi (common/maskApi.c). Runs go down the columns, zeros
    first. Polygons are filled by faster-coco-eval, so that every pixel is COCO's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "Mask",
    "Polygons",
    "RunLengths",
    "counts_from_text",
    "counts_to_text",
    "decode_mask",
    "encode_bitmap",
]

_MOST_DIGITS = 8  # a run of 2^40 pixels


@dataclass(frozen=True, slots=True, eq=False)
class Polygons:
    """The outlines of an object's parts; a pixel is in the mask if it is in one of them.

    Attributes:
        rings: For each part ``x1, y1, x2, y2, ...`` in pixels.
    """

    rings: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True, eq=False)
class RunLengths:
    """A mask as the lengths of its runs down the columns, the first one of zeros.

    Attributes:
        height: Pixels.
        width: Pixels.
        counts: Lengths that add up to ``height * width``.
    """

    height: int
    width: int
    counts: np.ndarray


Mask = Polygons | RunLengths | np.ndarray


def decode_mask(mask: Mask, height: int, width: int) -> np.ndarray:
    """Returns the bitmap of a mask.

    Args:
        mask: Polygons, run lengths or a bitmap.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Returns:
        ``(H, W)`` of bool.

    Raises:
        ImportError: faster-coco-eval, which fills polygons, is not installed.
    """
    if isinstance(mask, Polygons):
        return _fill(mask, height, width)
    if isinstance(mask, RunLengths):
        values = np.arange(len(mask.counts)) % 2 == 1
        return np.repeat(values, mask.counts).reshape((mask.width, mask.height)).T
    return mask


def encode_bitmap(bitmap: np.ndarray) -> RunLengths:
    """Returns the run lengths of a bitmap ``(H, W)``."""
    height, width = bitmap.shape
    flat = np.asarray(bitmap, bool).T.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    return RunLengths(height, width, np.diff(changes, prepend=0, append=flat.size))


def counts_to_text(counts: Sequence[int] | np.ndarray) -> str:
    """Returns run lengths in COCO's compressed form.

    Each length but the first three is written as its difference to the one before the last, in
    groups of five bits, lowest first, with a sixth bit where more follow, from character 48 on.
    """
    text: list[str] = []
    lengths = [int(length) for length in counts]
    for i, length in enumerate(lengths):
        rest = length - lengths[i - 2] if i > 2 else length
        is_open = True
        while is_open:
            bits, rest = rest & 31, rest >> 5
            is_open = rest != (-1 if bits & 16 else 0)
            text.append(chr(48 + bits + 32 * is_open))
    return "".join(text)


def counts_from_text(text: str) -> list[int]:
    """Returns the run lengths of COCO's compressed form.

    Raises:
        ValueError: It is none.
    """
    lengths: list[int] = []
    value = shift = 0
    for char in text:
        bits = ord(char) - 48
        if not 0 <= bits < 64 or shift >= 5 * _MOST_DIGITS:
            raise ValueError("its counts are no compressed run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("its compressed counts end in the middle of a number")
    return lengths


def _fill(polygons: Polygons, height: int, width: int) -> np.ndarray:
    try:
        from faster_coco_eval.core import mask as coco
    except ImportError as error:
        raise ImportError(
            "masks given as polygons need faster-coco-eval: pip install 'visgraft[detect]'"
        ) from error
    rings = (coco.frPyObjects([ring.tolist()], height, width) for ring in polygons.rings)
    return coco.decode(coco.merge([runs for ring in rings for runs in ring])).astype(bool)
