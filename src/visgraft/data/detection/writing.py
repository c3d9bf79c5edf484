"""Detection data to disk, as COCO json and PNG, whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from visgraft.data._errors import DataError
from visgraft.data.detection.annotations import AnnotatedObject, DetectionData
from visgraft.data.detection.masks import (
    Mask,
    Polygons,
    RunLengths,
    counts_to_text,
    encode_bitmap,
)

__all__ = ["write_coco"]


def write_coco(
    folder: str | Path,
    parts: Mapping[str, DetectionData],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes ``annotations/instances_PART.json`` and ``PART/*.png``: equal data, equal bytes.

    Everything is written beside ``folder`` and moved there at the end, so that a crash leaves no
    folder that looks whole.

    Args:
        folder: Must not exist, or be empty.
        parts: Data by the part's name, ``train`` and ``val`` say.
        progress: Called with (pictures written, pictures to write).

    Raises:
        DataError: If the folder holds something, or two pictures would get one name.
        OSError: If it cannot be written.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"write_coco: {folder} exists and is not an empty folder; choose another")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    total, done = sum(len(data) for data in parts.values()), 0
    try:
        draft.chmod(0o755)
        (draft / "annotations").mkdir()
        for part, data in parts.items():
            names = _picture_names(data)
            for image, name in zip(data.images, names, strict=True):
                target = draft / part / name
                target.parent.mkdir(parents=True, exist_ok=True)
                data.read(image).save(target, "PNG", compress_level=3)
                done += 1
                if progress is not None:
                    progress(done, total)
            text = json.dumps(_content(data, names), separators=(",", ":")) + "\n"
            (draft / "annotations" / f"instances_{part}.json").write_text(text, "utf-8")
        os.replace(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _picture_names(data: DetectionData) -> list[str]:
    names = [PurePosixPath(image.name).with_suffix(".png").as_posix() for image in data.images]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"write_coco: two pictures of {data.name} would be written to {twice}")
    return names


def _content(data: DetectionData, names: list[str]) -> dict[str, Any]:
    return {
        "info": {"description": data.name},
        "images": [
            {"id": image.id, "file_name": name, "height": image.height, "width": image.width}
            for image, name in zip(data.images, names, strict=True)
        ],
        "annotations": [
            _entry(item, image.id, data.category_ids[item.label])
            for image in data.images
            for item in image.objects
        ],
        "categories": [
            {"id": key, "name": name}
            for key, name in zip(data.category_ids, data.classes, strict=True)
        ],
    }


def _entry(item: AnnotatedObject, image_id: int, category_id: int) -> dict[str, Any]:
    x1, y1, x2, y2 = item.box
    entry: dict[str, Any] = {
        "id": item.id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": item.area,
        "iscrowd": int(item.is_crowd),
    }
    if item.mask is not None:
        entry["segmentation"] = _segmentation(item.mask)
    return entry


def _segmentation(mask: Mask) -> list[list[float]] | dict[str, Any]:
    if isinstance(mask, Polygons):
        return [ring.tolist() for ring in mask.rings]
    runs = encode_bitmap(mask) if isinstance(mask, np.ndarray) else mask
    return _runs(runs)


def _runs(runs: RunLengths) -> dict[str, Any]:
    return {"size": [runs.height, runs.width], "counts": counts_to_text(runs.counts)}
