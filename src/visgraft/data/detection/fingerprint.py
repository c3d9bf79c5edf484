"""A digest by which a run knows its detection data again."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from visgraft.data.detection.annotations import AnnotatedImage, AnnotatedObject, DetectionData
from visgraft.data.detection.masks import Mask, Polygons, RunLengths

__all__ = ["fingerprint"]


@runtime_checkable
class _Signing(Protocol):
    """A reader that tells two pictures apart without decoding them."""

    def signature(self, image: AnnotatedImage) -> str:
        """Returns what changes when the picture does."""
        ...


def fingerprint(parts: Mapping[str, DetectionData]) -> str:
    """Returns the SHA-256 (hex) over classes, images and objects of the parts of a data set.

    A picture file counts by its size in bytes, so the folder may move; one of another reader by its
    pixels.

    Args:
        parts: Data by the part's name.
    """
    digest = hashlib.sha256()
    for part, data in parts.items():
        for name, key in zip(data.classes, data.category_ids, strict=True):
            _add(digest, part, name, key)
        for image in data.images:
            sign = _signature(data, image)
            _add(digest, part, image.id, image.name, image.height, image.width, sign)
            for item in image.objects:
                _add_object(digest, item)
    return digest.hexdigest()


def _signature(data: DetectionData, image: AnnotatedImage) -> str:
    if isinstance(data.read, _Signing):
        return data.read.signature(image)
    return hashlib.sha256(np.asarray(data.read(image)).tobytes()).hexdigest()


def _add_object(digest: "hashlib._Hash", item: AnnotatedObject) -> None:
    _add(digest, *item.box, item.label, item.area, item.id, item.is_crowd)
    if item.mask is not None:
        for piece in _pieces(item.mask):
            digest.update(piece)


def _pieces(mask: Mask) -> Iterable[bytes]:
    if isinstance(mask, Polygons):
        return (ring.tobytes() for ring in mask.rings)
    if isinstance(mask, RunLengths):
        return (mask.counts.tobytes(),)
    return (np.packbits(mask).tobytes(),)


def _add(digest: "hashlib._Hash", *values: object) -> None:
    digest.update("\0".join(map(str, values)).encode("utf-8", "surrogateescape") + b"\n")
