"""Average precision as COCO defines it, in percent.

Paper: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014,
    https://arxiv.org/abs/1405.0312. Definition: https://cocodataset.org/#detection-eval and
    https://github.com/cocodataset/cocoapi (PythonAPI/pycocotools/cocoeval.py), commit 8c9bcc3.

faster-coco-eval does the matching.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from torch import distributed

from visgraft.data import DataError
from visgraft.data.detection import AnnotatedImage, DetectionData
from visgraft.data.detection.masks import Polygons
from visgraft.tasks.detection.predictions import (
    CocoRuns,
    Detections,
    Prediction,
    check_prediction,
    compress_mask,
)

__all__ = ["DetectionMetrics", "Kind"]

Kind = Literal["bbox", "segm"]

MAX_DETECTIONS = 100  # per image and class, those with the highest scores
_PREFIX: dict[Kind, str] = {"bbox": "", "segm": "mask_"}
_SIZES = ("", "_S", "_M", "_L")  # in the order of the evaluator's area ranges
_AT_50, _AT_75 = 0, 5  # places of these overlaps among 0.5, 0.55, ..., 0.95


class DetectionMetrics:
    """AP, AP50, AP75 and AP by size of object, over all images seen since the last `result`.

    Equal to pycocotools on the same annotations and detections, with these choices:

    * a mask's size (S, M, L) is that of the mask, as on COCO's server. pycocotools takes the box's
      where a results file has both;
    * an object numbered 0 counts like any other, while pycocotools never counts it as found;
    * what no object speaks for is nan, where pycocotools says -1.

    An image that was seen twice counts once, with its last prediction. Where processes train
    together, `result` gathers what each of them has seen, so that all of them must call it.

    Args:
        data: The annotations, crowds and areas included.
        kinds: ``"bbox"`` and ``"segm"``: what overlaps are measured of.

    Raises:
        DataError: Masks are to be measured and an object has none, or a kind is unknown.
        ImportError: faster-coco-eval is not installed.

    Example:
        >>> from visgraft.data.detection import DetectionDataset, fashion_scenes
        >>> data = fashion_scenes(train_images=1, val_images=1)[0]
        >>> _, target = DetectionDataset(data)[0]
        >>> metrics = DetectionMetrics(data, ("bbox", "segm"))
        >>> found = {**target, "scores": [0.9] * len(target["labels"])}
        >>> metrics.update([found], [target["image_id"]])
        >>> result = metrics.result()
        >>> round(result["AP"], 6), round(result["mask_AP50"], 6)
        (100.0, 100.0)
    """

    def __init__(self, data: DetectionData, kinds: Sequence[Kind] = ("bbox",)) -> None:
        _require()
        if not kinds or not set(kinds) <= set(_PREFIX):
            raise DataError(
                f"DetectionMetrics: kinds must be some of {', '.join(_PREFIX)}, got {kinds!r}"
            )
        self.data = data
        self.kinds = tuple(dict.fromkeys(kinds))
        self._images = {image.id: image for image in data.images}
        self._seen: dict[int, Detections] = {}
        self._runs: dict[int, list[CocoRuns]] = {}
        self._precisions: dict[Kind, np.ndarray] = {}
        if "segm" in self.kinds:
            _check_masks(data)

    def update(
        self, predictions: Iterable[Prediction | Detections], image_ids: Iterable[Any]
    ) -> None:
        """Counts the predictions for some images; nothing is counted if one of them is wrong.

        Args:
            predictions: For each image ``boxes`` ``(n, 4)``, x1 y1 x2 y2 in pixels of the
                annotations' frame; ``labels`` ``(n,)`` from 0 up; ``scores`` ``(n,)``; and
                ``masks`` if they are measured: ``(n, H, W)`` of bool, or run lengths.
            image_ids: The id of each image in the data; a tensor will do.

        Raises:
            DataError: A prediction has a wrong shape or value, or an image is not in the data.
        """
        checked: dict[int, Detections] = {}
        predictions, keys = list(predictions), [int(key) for key in image_ids]
        if len(predictions) != len(keys):
            raise DataError(
                f"DetectionMetrics: there must be one prediction for each image, got "
                f"{len(predictions)} predictions for {len(keys)} images"
            )
        for prediction, key in zip(predictions, keys, strict=True):
            where = f"DetectionMetrics: image {key}"
            if (image := self._images.get(key)) is None:
                raise DataError(f"{where}: is not among the {len(self.data)} of {self.data.name}")
            checked[key] = check_prediction(
                prediction,
                where,
                num_classes=len(self.data.classes),
                size=(image.height, image.width),
                masks="segm" in self.kinds,
            )
        self._seen |= checked

    def result(self) -> dict[str, float]:
        """Returns the metrics in percent, nan where there is no object, and starts anew.

        Returns:
            ``AP``, ``AP50``, ``AP75``, ``AP_S``, ``AP_M``, ``AP_L`` of boxes; the same of masks
            with ``mask_`` before.
        """
        seen = self._gather()
        self._precisions = {kind: self._measure(kind, seen) for kind in self.kinds}
        self._seen = {}
        return self._summary(slice(None))

    def per_class(self) -> list[dict[str, float]]:
        """Returns the metrics of the last `result` for each class, in the order of the classes.

        Raises:
            DataError: There was no result yet.
        """
        if not self._precisions:
            raise DataError("DetectionMetrics: per_class is of the last result; call result first")
        return [self._summary(slice(k, k + 1)) for k in range(len(self.data.classes))]

    def _summary(self, classes: slice) -> dict[str, float]:
        values: dict[str, float] = {}
        for kind, precision in self._precisions.items():
            prefix, chosen = _PREFIX[kind], precision[:, :, classes]
            values[f"{prefix}AP"] = _mean(chosen[..., 0])
            values[f"{prefix}AP50"] = _mean(chosen[_AT_50, ..., 0])
            values[f"{prefix}AP75"] = _mean(chosen[_AT_75, ..., 0])
            for place, size in enumerate(_SIZES[1:], 1):
                values[f"{prefix}AP{size}"] = _mean(chosen[..., place])
        return values

    def _gather(self) -> dict[int, Detections]:
        """Returns what all processes have seen."""
        parts: list[Any] = [self._seen]
        together = distributed.is_available() and distributed.is_initialized()
        if together and (processes := distributed.get_world_size()) > 1:
            parts = [None] * processes
            distributed.all_gather_object(parts, self._seen)
        return {key: found for part in parts for key, found in part.items()}

    def _measure(self, kind: Kind, seen: dict[int, Detections]) -> np.ndarray:
        """Returns the precision by overlap, recall, class and size; -1 where there is no object."""
        from faster_coco_eval import COCO, COCOeval_faster

        sides: list[Any] = []
        for annotations in (self._truth(kind, seen), _found(kind, seen)):
            side = COCO(print_function=_say_nothing)
            side.dataset = {
                "images": [
                    {"id": key, "height": image.height, "width": image.width}
                    for key, image in ((key, self._images[key]) for key in seen)
                ],
                "annotations": annotations,
                "categories": [{"id": label} for label in range(len(self.data.classes))],
            }
            side.createIndex()
            sides.append(side)
        evaluator: Any = COCOeval_faster(*sides, iouType=kind, print_function=_say_nothing)
        shape = (10, 101, len(self.data.classes), len(_SIZES))
        if not seen:
            return np.full(shape, -1.0)
        evaluator.params.maxDets = [MAX_DETECTIONS]
        evaluator.evaluate()
        evaluator.accumulate()
        return np.asarray(evaluator.eval["precision"]).reshape(shape)

    def _truth(self, kind: str, seen: Iterable[int]) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        for key in seen:
            image = self._images[key]
            runs = self._truth_runs(image) if kind == "segm" else [None] * len(image.objects)
            for item, mask in zip(image.objects, runs, strict=True):
                x1, y1, x2, y2 = item.box
                entry = {
                    "id": len(entries) + 1,
                    "image_id": key,
                    "category_id": item.label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": item.area,
                    "iscrowd": int(item.is_crowd),
                }
                entries.append(entry if mask is None else entry | {"segmentation": mask})
        return entries

    def _truth_runs(self, image: AnnotatedImage) -> list[CocoRuns]:
        """Returns the masks of an image's objects, compressed once."""
        if image.id not in self._runs:
            self._runs[image.id] = [_runs(item.mask, image) for item in image.objects]
        return self._runs[image.id]


def _found(kind: str, seen: dict[int, Detections]) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for key, detections in seen.items():
        sizes = detections.boxes[:, 2:] - detections.boxes[:, :2]
        boxes = np.concatenate([detections.boxes[:, :2], sizes], axis=1).tolist()
        if kind == "segm":
            masks = list(detections.masks or ())
            areas = _areas(masks)
        else:
            masks = [None] * len(boxes)
            areas = [width * height for _, _, width, height in boxes]
        labels, scores = detections.labels.tolist(), detections.scores.tolist()
        for box, label, score, area, mask in zip(boxes, labels, scores, areas, masks, strict=True):
            entry = {
                "id": len(entries) + 1,
                "image_id": key,
                "category_id": label,
                "bbox": box,
                "area": area,
                "score": score,
                "iscrowd": 0,
            }
            entries.append(entry if mask is None else entry | {"segmentation": mask})
    return entries


def _runs(mask: Any, image: AnnotatedImage) -> CocoRuns:
    """Returns the compressed form of an annotation's mask."""
    if isinstance(mask, Polygons):
        from faster_coco_eval.core import mask as coco

        parts = [
            runs
            for ring in mask.rings
            for runs in coco.frPyObjects([ring.tolist()], image.height, image.width)
        ]
        return coco.merge(parts)
    return compress_mask(mask)


def _areas(masks: list[Any]) -> list[float]:
    from faster_coco_eval.core import mask as coco

    return [float(area) for area in coco.area(masks)] if masks else []


def _mean(precision: np.ndarray) -> float:
    measured = precision[precision > -1]
    return 100 * float(np.mean(measured)) if measured.size else float("nan")


def _check_masks(data: DetectionData) -> None:
    for image in data.images:
        for item in image.objects:
            if item.mask is None:
                raise DataError(
                    f"DetectionMetrics: masks cannot be measured, object {item.id} of "
                    f"{image.name} has none; leave 'segm' out of kinds"
                )


def _require() -> None:
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "average precision needs faster-coco-eval: pip install 'visgraft[detect]'",
            name="faster_coco_eval",
        ) from error


def _say_nothing(*_: object, **__: object) -> None:
    """Takes the place of the evaluator's print."""
