"""COCO's ``segmentation`` field: which of its three forms it is, and whether it is sound."""

from typing import Any

import numpy as np

from visgraft.data.detection._findings import is_number, is_whole, shorten
from visgraft.data.detection.masks import Mask, Polygons, RunLengths, counts_from_text

__all__ = ["parse_polygons", "parse_segmentation"]


def parse_segmentation(value: Any, height: int, width: int) -> Mask | None:
    """Returns the mask in a ``segmentation`` field, ``None`` for an empty one.

    Args:
        value: A list of polygons, or a dict of ``size`` and ``counts``.
        height: Of the image.
        width: Of the image.

    Raises:
        ValueError: It is none of the forms, or does not fit the image; the text follows the place.
    """
    if value is None or value == []:
        return None
    if isinstance(value, list):
        return parse_polygons(value, height, width)
    if isinstance(value, dict):
        return _parse_runs(value, height, width)
    raise ValueError(
        "segmentation must be a list of polygons or a dict of size and counts, "
        f"got {shorten(value)}"
    )


def parse_polygons(rings: list[Any], height: int, width: int) -> Polygons:
    """Returns polygons given as lists of ``x1, y1, x2, y2, ...`` in pixels.

    Raises:
        ValueError: They are no polygons, or lie further outside than the image is large.
    """
    arrays: list[np.ndarray] = []
    for ring in rings:
        if not isinstance(ring, list) or not all(is_number(value) for value in ring):
            raise ValueError(
                "segmentation must be a list of polygons, each a list of finite numbers, "
                f"got {shorten(ring)} as one"
            )
        if len(ring) < 6 or len(ring) % 2:
            raise ValueError(
                "a polygon needs at least three points of two numbers each, "
                f"got {len(ring)} numbers"
            )
        array = np.array(ring, np.float64)
        x, y = array[::2], array[1::2]
        if (
            min(x.min() + width, y.min() + height) < 0
            or x.max() > 2 * width
            or (y.max() > 2 * height)
        ):
            raise ValueError(
                f"a polygon reaches from ({x.min():g}, {y.min():g}) to ({x.max():g}, "
                f"{y.max():g}), far outside of its image of {width} x {height} pixels"
            )
        arrays.append(array)
    return Polygons(tuple(arrays))


def _parse_runs(value: dict[str, Any], height: int, width: int) -> RunLengths:
    size, counts = value.get("size"), value.get("counts")
    if size != [height, width]:
        raise ValueError(
            f"run lengths of size {shorten(size)} do not fit the image's [{height}, {width}]"
        )
    if isinstance(counts, str):
        counts = counts_from_text(counts)
    if not isinstance(counts, list) or not all(is_whole(count) and count >= 0 for count in counts):
        raise ValueError(
            "counts must be compressed text or a list of lengths from 0 up, "
            f"got {shorten(value.get('counts'))}"
        )
    if sum(counts) != height * width:
        raise ValueError(
            f"run lengths add up to {sum(counts)} pixels, and the image has {height * width}"
        )
    return RunLengths(height, width, np.array(counts, np.int64))
