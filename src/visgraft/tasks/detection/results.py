"""Detections as COCO results json, and back.

Format: https://cocodataset.org/#format-results: a list with one entry per detection.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from visgraft.data import DataError
from visgraft.data.detection import AnnotatedImage, DetectionData
from visgraft.data.detection.masks import RunLengths, counts_from_text
from visgraft.tasks.detection.predictions import Detections, check_prediction, compress_mask
from visgraft.tasks.json_lists import write_json_list

__all__ = ["coco_results", "load_results", "save_results"]

_NAMED = 20  # problems that are named one by one


def coco_results(
    detections: Detections,
    image_id: int,
    category_ids: tuple[int, ...],
    *,
    boxes: bool = True,
) -> list[dict[str, Any]]:
    """Returns the entries of one image.

    Args:
        detections: What was found in it.
        image_id: Its number in the annotations.
        category_ids: The number of each class there, ``data.category_ids``.
        boxes: False leaves the boxes out where there are masks. pycocotools takes the size (S, M,
            L) of a mask from the box where an entry has both, COCO's server that of the mask.

    Returns:
        Dicts of ``image_id``, ``category_id``, ``bbox`` (x, y, width, height), ``score`` and, with
        masks, ``segmentation`` (``size`` and compressed ``counts`` as text).
    """
    entries: list[dict[str, Any]] = []
    for place, (x1, y1, x2, y2) in enumerate(detections.boxes.tolist()):
        entry: dict[str, Any] = {
            "image_id": image_id,
            "category_id": category_ids[int(detections.labels[place])],
        }
        if boxes or detections.masks is None:
            entry["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        entry["score"] = float(detections.scores[place])
        if detections.masks is not None:
            runs = detections.masks[place]
            entry["segmentation"] = {
                "size": list(runs["size"]),
                "counts": runs["counts"].decode("ascii"),
            }
        entries.append(entry)
    return entries


def save_results(
    path: str | Path,
    detections: Mapping[int, Detections],
    category_ids: tuple[int, ...],
    *,
    boxes: bool = True,
) -> None:
    """Writes a COCO results json, whole or not at all, that pycocotools' ``loadRes`` takes.

    ``loadRes`` itself fails on a list without entries.

    Args:
        path: Of the file; an old one is replaced.
        detections: By the image's number in the annotations.
        category_ids: The number of each class there.
        boxes: As in `coco_results`.

    Raises:
        OSError: It cannot be written; an old file is still there.
    """
    write_json_list(
        path,
        (
            entry
            for key, found in detections.items()
            for entry in coco_results(found, key, category_ids, boxes=boxes)
        ),
    )


def load_results(path: str | Path, data: DetectionData) -> dict[int, Detections]:
    """Reads a COCO results json for some annotations, and checks every entry.

    Args:
        path: Of the file.
        data: The annotations that image and category numbers are of.

    Returns:
        The detections of each image of ``data``, for `DetectionMetrics.update`; labels count from
        0. An image without entries has none. Where an entry has a mask alone, its box is that
        around the mask, 0, 0, 0, 0 around an empty one.

    Raises:
        DataError: The file is no results json, or entries are wrong; each is named by its place.
    """
    entries = _load(Path(path))
    reader = _Reader(data, with_masks=any("segmentation" in _as_dict(e) for e in entries))
    problems: list[str] = []
    for place, entry in enumerate(entries):
        try:
            reader.read(entry)
        except ValueError as error:
            problems.append(f"  entry {place}: {error}")
    if problems:
        more = len(problems) - _NAMED
        raise DataError(
            f"load_results: {len(problems)} of {len(entries)} entries in {path} do not fit "
            f"{data.name}; correct them, or give the annotations that they were made for:\n"
            + "\n".join(problems[:_NAMED])
            + (f"\n  ... and {more} more" if more > 0 else "")
        )
    return reader.detections()


class _Reader:
    """Collects entries by image."""

    def __init__(self, data: DetectionData, *, with_masks: bool) -> None:
        self.data = data
        self.with_masks = with_masks
        self.images = {image.id: image for image in data.images}
        self.labels = {key: label for label, key in enumerate(data.category_ids)}
        self.found: dict[int, dict[str, list[Any]]] = {
            key: {"boxes": [], "labels": [], "scores": [], "masks": []} for key in self.images
        }

    def read(self, entry: Any) -> None:
        """Takes one entry.

        Raises:
            ValueError: What is wrong with it.
        """
        if not isinstance(entry, dict):
            raise ValueError(f"must be a dict, got {type(entry).__name__}")
        image = _look_up(entry, "image_id", self.images)
        label = _look_up(entry, "category_id", self.labels)
        score = entry.get("score")
        if not _is_number(score):
            raise ValueError(f"score must be a finite number, got {score!r}")
        runs = _read_runs(entry, image) if self.with_masks else None
        box = _read_box(entry, runs)
        found = self.found[image.id]
        found["boxes"].append(box)
        found["labels"].append(label)
        found["scores"].append(score)
        found["masks"].append(runs)

    def detections(self) -> dict[int, Detections]:
        """Returns what was read."""
        return {
            key: check_prediction(
                found,
                f"load_results: image {key}",
                num_classes=len(self.data.classes),
                size=(self.images[key].height, self.images[key].width),
                masks=self.with_masks,
            )
            for key, found in self.found.items()
        }


def _load(path: Path) -> list[Any]:
    try:
        entries = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"load_results: there is no file {path}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"load_results: {path} is not json ({error})") from error
    if not isinstance(entries, list):
        raise DataError(
            f"load_results: {path} must hold a list of detections, got a {type(entries).__name__}"
        )
    return entries


def _look_up(entry: dict[str, Any], field: str, known: Mapping[int, Any]) -> Any:
    value = entry.get(field)
    if type(value) is not int or value not in known:
        kind = "image" if field == "image_id" else "category"
        raise ValueError(f"{field} {value!r} is no {kind} of the annotations")
    return known[value]


def _read_runs(entry: dict[str, Any], image: AnnotatedImage) -> RunLengths:
    value = entry.get("segmentation")
    if not isinstance(value, dict) or not isinstance(value.get("counts"), str):
        raise ValueError(
            "segmentation must be a dict of size and compressed counts, as other entries have, "
            f"got {type(value).__name__}"
        )
    if value.get("size") != [image.height, image.width]:
        raise ValueError(
            f"segmentation has size {value.get('size')}, and image {image.id} "
            f"[{image.height}, {image.width}]"
        )
    counts = np.array(counts_from_text(value["counts"]), np.int64)
    if counts.min(initial=0) < 0 or counts.sum() != image.height * image.width:
        raise ValueError(
            f"run lengths add up to {counts.sum()} pixels, and image {image.id} has "
            f"{image.height * image.width}"
        )
    return RunLengths(image.height, image.width, counts)


def _read_box(entry: dict[str, Any], runs: RunLengths | None) -> tuple[float, ...]:
    """Returns x1, y1, x2, y2."""
    value = entry.get("bbox")
    if value is None and runs is not None:
        return _box_around(runs)
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        raise ValueError(f"bbox must be four finite numbers x, y, width, height, got {value!r}")
    x, y, width, height = value
    if width < 0 or height < 0:
        raise ValueError(f"bbox must have a width and a height from 0 up, got {value!r}")
    return x, y, x + width, y + height


def _box_around(runs: RunLengths) -> tuple[float, ...]:
    from faster_coco_eval.core import mask as coco

    x, y, width, height = coco.toBbox(compress_mask(runs)).tolist()
    return x, y, x + width, y + height


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and abs(value) < 1e15


def _as_dict(entry: Any) -> dict[str, Any]:
    return entry if isinstance(entry, dict) else {}
