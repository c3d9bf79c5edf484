"""YOLO's label files: one txt per picture, one line per object, described by a data.yaml.

Format: https://docs.ultralytics.com/datasets/detect and https://docs.ultralytics.com/datasets/segment.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from visgraft.data._errors import DataError
from visgraft.data._scan import Checked
from visgraft.data.detection._findings import Findings, OnProblem, check_on_problem, shorten
from visgraft.data.detection._pictures import PictureFolder, Progress, check_pictures, is_below
from visgraft.data.detection._segmentation import parse_polygons
from visgraft.data.detection.annotations import (
    AnnotatedImage,
    AnnotatedObject,
    Box,
    DetectionData,
)
from visgraft.data.detection.masks import Mask

__all__ = ["SUFFIXES", "load_yolo", "read_yolo", "yolo_parts"]

SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff")
SUFFIXES += (".webp",)
_PARTS = ("train", "val", "test")


def load_yolo(
    data_yaml: str | Path,
    part: str = "train",
    *,
    on_problem: OnProblem = "error",
    progress: Progress | None = None,
) -> DetectionData:
    """Loads one part of a YOLO data set and makes sure that all of it can be used.

    A line is ``class cx cy w h`` or ``class x1 y1 x2 y2 x3 y3 ...`` (an outline), as fractions of
    the picture as a viewer shows it, EXIF rotation applied. ``path`` of the yaml is looked up from
    the folder of the yaml; labels are in ``labels/`` where the pictures are in ``images/``.

    Args:
        data_yaml: The file with ``path``, ``train``, ``val`` and ``names``.
        part: ``"train"``, ``"val"`` or ``"test"``.
        on_problem: As in `load_coco`.
        progress: Called with (files decoded, files to decode) now and then.

    Raises:
        DataError: If something has to be mended; the text names file and line.
    """
    check_on_problem("load_yolo", on_problem)
    findings = Findings()
    data = read_yolo(Path(data_yaml), part, findings, progress)
    findings.settle("load_yolo", f"{data_yaml} ({part})", on_problem)
    return data


def yolo_parts(path: Path) -> list[str]:
    """Returns the parts that a data.yaml names."""
    content = _load_yaml(path)
    return [part for part in _PARTS if content.get(part)]


def read_yolo(
    path: Path,
    part: str,
    findings: Findings,
    progress: Progress | None = None,
    *,
    look_closely: bool = False,
) -> DetectionData:
    """Returns what can be used of a part; ``findings`` takes the rest.

    Raises:
        DataError: If the yaml cannot be used, or a folder that it names is not there.
    """
    content = _load_yaml(path)
    names = _names(path, content)
    if not content.get(part):
        raise DataError(f"load_yolo: {path} has no part {part!r}; add it, or choose another part")
    root = (path.parent / str(content.get("path") or "")).absolute()
    if not root.is_dir():
        raise DataError(f"load_yolo: there is no folder {root}; change 'path' in {path}")
    places = content[part] if isinstance(content[part], list) else [content[part]]
    pictures = [name for place in places for name in _pictures(root, str(place), path)]
    outside = [name for name in pictures if not is_below(name)]
    for name in outside:
        findings.problem(str(path), f"{name} is not below {root}")
    wanted = sorted(set(pictures) - set(outside))
    findings.note(
        "pictures are listed more than once (kept once)", len(pictures) - len(set(pictures))
    )
    checked = check_pictures(root, wanted, findings, progress, look_closely=look_closely)
    images: list[AnnotatedImage] = []
    first_id = 1
    for key, name in enumerate(wanted, 1):
        if (seen := checked.get(name)) is None:
            continue
        items = _read_labels(root / _label_name(name), seen, len(names), first_id, findings)
        first_id += len(items)
        images.append(AnnotatedImage(key, name, seen.height, seen.width, tuple(items)))
    _tell_orphans(root, wanted, findings)
    findings.note("images have no objects (kept)", sum(not image.objects for image in images))
    return DetectionData(
        name=f"{path.parent.name}/{part}",
        classes=tuple(names),
        category_ids=tuple(range(len(names))),
        images=images,
        read=PictureFolder(str(root), prefer_upright=True),
        notes=findings.notes,
    )


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"load_yolo: there is no file {path}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"load_yolo: {path} is not yaml ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"load_yolo: {path} must be a mapping with train, val and names")
    return content


def _names(path: Path, content: dict[str, Any]) -> list[str]:
    """Returns the names of the classes."""
    names = content.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(
                f"load_yolo: names in {path} must be numbered 0 to {len(names) - 1}, "
                f"got {shorten(list(names))}"
            )
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(
            f"load_yolo: names in {path} must be a list of classes, got {shorten(names)}"
        )
    if content.get("nc", len(names)) != len(names):
        raise DataError(
            f"load_yolo: {path} has nc {content['nc']} and {len(names)} names; correct one"
        )
    return [str(name) for name in names]


def _pictures(root: Path, place: str, source: Path) -> list[str]:
    """Returns the pictures of a folder, or of a list of files, as paths below ``root``."""
    found = next((p for p in (root / place, root / place.removeprefix("../")) if p.exists()), None)
    if found is None:
        raise DataError(f"load_yolo: there is no {root / place}, which {source} names; correct it")
    if found.is_dir():
        files = [p for p in found.rglob("*") if p.suffix.lower() in SUFFIXES]
        if not files:
            raise DataError(f"load_yolo: {found} holds no pictures")
    else:
        lines = [line.strip() for line in found.read_text("utf-8").splitlines()]
        files = [found.parent / line if line[:2] == "./" else root / line for line in lines if line]
    return [Path(os.path.relpath(file, root)).as_posix() for file in files]


def _label_name(picture: str) -> str:
    """Returns where the labels of a picture are: the last ``images/`` is ``labels/``."""
    before, sep, after = f"/{picture}".rpartition("/images/")
    moved = f"{before}/labels/{after}" if sep else f"/{picture}"
    return moved[1:].rpartition(".")[0] + ".txt"


def _read_labels(
    path: Path, seen: Checked, num_classes: int, first_id: int, findings: Findings
) -> list[AnnotatedObject]:
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        findings.note("pictures have no label file (kept, without objects)")
        return []
    except (OSError, UnicodeDecodeError) as error:
        findings.problem(str(path), f"cannot be read ({error})")
        return []
    items: list[AnnotatedObject] = []
    known: set[tuple[str, ...]] = set()
    for number, line in enumerate(lines, 1):
        fields = tuple(line.split())
        if not fields:
            continue
        if fields in known:
            findings.note("lines repeat another one of their file (kept once)")
            continue
        known.add(fields)
        where = f"{path}, line {number}"
        try:
            label, box, mask = _parse(fields, seen, num_classes)
        except ValueError as error:
            findings.problem(where, str(error))
            continue
        inside = findings.settle_box(box, seen.height, seen.width, where)
        if inside is not None:
            area = (inside[2] - inside[0]) * (inside[3] - inside[1])
            items.append(AnnotatedObject(inside, label, area, first_id + len(items), mask))
    return items


def _parse(
    fields: tuple[str, ...], seen: Checked, num_classes: int
) -> tuple[int, Box, Mask | None]:
    """Returns label, box and mask of a line."""
    try:
        values = [float(field) for field in fields]
    except ValueError:
        raise ValueError(f"must be numbers only, got {shorten(' '.join(fields))}") from None
    if not (0 <= values[0] < num_classes) or values[0] != int(values[0]):
        raise ValueError(f"class must be 0 to {num_classes - 1}, got {fields[0]}")
    label, width, height = int(values[0]), seen.width, seen.height
    if len(values) == 5:
        x, y, w, h = values[1:]
        corners = ((x - w / 2) * width, (y - h / 2) * height)
        return label, (*corners, (x + w / 2) * width, (y + h / 2) * height), None
    if len(values) < 7 or len(values) % 2 == 0:
        raise ValueError(
            "must be a class and a box of four numbers, or a class and an outline of at least "
            f"three points, got {len(values)} numbers"
        )
    ring = np.array(values[1:])
    ring[::2] *= width
    ring[1::2] *= height
    mask = parse_polygons([ring.tolist()], height, width)
    x, y = ring[::2], ring[1::2]
    return label, (float(x.min()), float(y.min()), float(x.max()), float(y.max())), mask


def _tell_orphans(root: Path, pictures: list[str], findings: Findings) -> None:
    """Tells of label files without a picture."""
    expected = {_label_name(picture) for picture in pictures}
    for folder in sorted({os.path.dirname(name) for name in expected}):
        for path in sorted((root / folder).glob("*.txt")):
            name = Path(folder, path.name).as_posix()
            if "labels" in Path(folder).parts and name not in expected:
                findings.problem(str(path), "there is no picture for these labels")
