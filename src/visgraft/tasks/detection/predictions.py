"""What a detector found in one image, checked, and small enough to keep for a whole data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from visgraft.data import DataError
from visgraft.data.detection.masks import RunLengths, counts_to_text

__all__ = ["CocoRuns", "Detections", "Prediction", "check_prediction", "compress_mask"]

Prediction = Mapping[str, Any]
CocoRuns = dict[str, Any]
_FIELDS = ("boxes", "labels", "scores", "masks")


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, in the order that the detector gave them.

    Attributes:
        boxes: ``(n, 4)`` of float64, ``x1, y1, x2, y2`` in pixels of the annotations' frame.
        labels: ``(n,)`` of int64, indices into the classes.
        scores: ``(n,)`` of float64.
        masks: For each object its run lengths in COCO's compressed form, a dict of ``size``
            (``[H, W]``) and ``counts`` (bytes); ``None`` where only boxes are known.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: tuple[CocoRuns, ...] | None = None

    def __len__(self) -> int:
        return len(self.boxes)


def check_prediction(
    prediction: Prediction | Detections,
    where: str,
    *,
    num_classes: int,
    size: tuple[int, int],
    masks: bool,
) -> Detections:
    """Returns a prediction in the form that is kept.

    Args:
        prediction: `Detections`, or a mapping with ``boxes`` ``(n, 4)``, ``labels`` ``(n,)`` from
            0 up, ``scores`` ``(n,)``, and ``masks`` if they are wanted: ``(n, H, W)`` of bool or of
            whole numbers, 0 outside, or one entry of run lengths per object. Tensors or arrays.
        where: Who complains, of which image.
        num_classes: Labels are below it.
        size: ``(H, W)`` of the image.
        masks: Whether masks are wanted.

    Raises:
        DataError: Something is missing, or has a wrong shape or value.
    """
    if isinstance(prediction, Detections):
        prediction = {name: getattr(prediction, name) for name in _FIELDS}
    wanted = _FIELDS if masks else _FIELDS[:3]
    if lacking := [name for name in wanted if prediction.get(name) is None]:
        raise DataError(
            f"{where}: a prediction must have {', '.join(wanted)}, and this one has no "
            f"{' and no '.join(lacking)}"
        )
    boxes, scores = (_array(prediction[name]).astype(np.float64) for name in ("boxes", "scores"))
    labels = _array(prediction["labels"])
    if labels.size and labels.dtype.kind not in "iu":
        raise DataError(f"{where}: labels must be whole numbers, got {labels.dtype}")
    labels = labels.astype(np.int64)
    count = len(boxes)
    if boxes.size == 0:
        boxes = boxes.reshape(-1, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"{where}: boxes must be (n, 4), got {boxes.shape}")
    for name, values in (("labels", labels), ("scores", scores)):
        if values.shape != (count,):
            raise DataError(
                f"{where}: {name} must be ({count},), one for each box, got {values.shape}"
            )
    _check_values(boxes, labels, scores, num_classes, where)
    if not masks:
        return Detections(boxes, labels, scores)
    return Detections(boxes, labels, scores, _compress_all(prediction["masks"], count, size, where))


def compress_mask(mask: np.ndarray | RunLengths) -> CocoRuns:
    """Returns a bitmap ``(H, W)`` or run lengths in COCO's compressed form.

    Raises:
        ImportError: faster-coco-eval, which compresses bitmaps, is not installed.
    """
    if isinstance(mask, RunLengths):
        text = counts_to_text(mask.counts)
        return {"size": [mask.height, mask.width], "counts": text.encode("ascii")}
    try:
        from faster_coco_eval.core import mask as coco
    except ImportError as error:
        raise ImportError(
            "masks are compressed by faster-coco-eval: pip install 'visgraft[detect]'",
            name="faster_coco_eval",
        ) from error
    return coco.encode(np.asfortranarray(mask, np.uint8))


def _array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    return np.asarray(values)


def _check_values(
    boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, num_classes: int, where: str
) -> None:
    broken = ~np.isfinite(boxes).all(axis=1) | ~np.isfinite(scores)
    broken |= (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if broken.any():
        first = int(np.flatnonzero(broken)[0])
        raise DataError(
            f"{where}: detection {first} must have a finite box x1 <= x2, y1 <= y2 and a finite "
            f"score, got {boxes[first].tolist()} and {scores[first]:g}"
        )
    if outside := sorted({int(label) for label in labels if not 0 <= label < num_classes}):
        raise DataError(
            f"{where}: labels must be 0 to {num_classes - 1}, got {outside[0]}; torchvision's "
            "detectors count from 1"
        )


def _compress_all(
    masks: Any, count: int, size: tuple[int, int], where: str
) -> tuple[CocoRuns, ...]:
    if isinstance(masks, Tensor):
        masks = masks.detach().cpu().numpy()
    if isinstance(masks, np.ndarray):
        if masks.dtype.kind == "f":
            raise DataError(
                f"{where}: masks must be of bool at the size of the image, got {masks.dtype}; "
                "compare them with a threshold"
            )
        if masks.shape != (count, *size) and (count or masks.size):
            raise DataError(f"{where}: masks must be {(count, *size)}, got {masks.shape}")
        return tuple(compress_mask(mask != 0) for mask in masks)
    return _take_runs(masks, count, size, where)


def _take_runs(
    masks: Sequence[Any], count: int, size: tuple[int, int], where: str
) -> tuple[CocoRuns, ...]:
    if len(masks) != count:
        raise DataError(f"{where}: there must be {count} masks, one for each box, got {len(masks)}")
    taken: list[CocoRuns] = []
    for index, mask in enumerate(masks):
        if isinstance(mask, Mapping) and {"size", "counts"} <= set(mask):
            counts = mask["counts"]
            counts = counts.encode("ascii") if isinstance(counts, str) else counts
            runs: CocoRuns = {"size": [int(side) for side in mask["size"]], "counts": counts}
        elif isinstance(mask, RunLengths):
            runs = compress_mask(mask)
        else:
            raise DataError(
                f"{where}: mask {index} must be an array, run lengths, or a dict of size and "
                f"counts, got {type(mask).__name__}"
            )
        if runs["size"] != list(size) or not isinstance(runs["counts"], bytes):
            raise DataError(
                f"{where}: mask {index} must have the size {list(size)} of the image and "
                f"compressed counts, got size {runs['size']} and {type(runs['counts']).__name__}"
            )
        taken.append(runs)
    return tuple(taken)
