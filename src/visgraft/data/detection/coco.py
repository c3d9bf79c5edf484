"""COCO's instances json: boxes, polygons, run lengths and crowds.

Paper: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014,
    https://arxiv.org/abs/1405.0312. Format: https://cocodataset.org/#format-data.
"""

import json
import os
from pathlib import Path
from typing import Any

from visgraft.data._errors import DataError
from visgraft.data._scan import Checked
from visgraft.data.detection._findings import (
    Findings,
    OnProblem,
    check_on_problem,
    is_number,
    is_whole,
    shorten,
)
from visgraft.data.detection._pictures import (
    PictureFolder,
    Progress,
    check_pictures,
    fits_frame,
    is_below,
)
from visgraft.data.detection._segmentation import parse_segmentation
from visgraft.data.detection.annotations import AnnotatedImage, AnnotatedObject, DetectionData

__all__ = ["find_coco_pictures", "load_coco", "read_coco"]

_LISTS = ("images", "annotations", "categories")
_PREFIX = "instances_"


def load_coco(
    annotations: str | Path,
    images: str | Path | None = None,
    *,
    on_problem: OnProblem = "error",
    progress: Progress | None = None,
) -> DetectionData:
    """Loads a COCO json and makes sure that every image and object in it can be used.

    Classes are sorted by category id, whatever gaps the ids have. Annotations are in the frame of
    the stored picture: an EXIF rotation is not applied, unless the size in the file fits the turned
    picture only. All pictures are decoded once before training; what was fine is remembered.

    Args:
        annotations: The json file.
        images: The folder that ``file_name`` is looked up in; found from the place of the json
            (``annotations/instances_train.json`` goes with ``train/``) if not given.
        on_problem: ``"error"`` names all problems; ``"mend"`` leaves out the objects and images
            that cannot be used and cuts boxes to their images, each with a line in the log
            ``visgraft.data``.
        progress: Called with (files decoded, files to decode) now and then.

    Raises:
        DataError: If something has to be mended; the text names file and id.

    Example:
        >>> data = load_coco("coco/annotations/instances_val2017.json")  # doctest: +SKIP
        >>> data.classes[:2], data.category_ids[:2]  # doctest: +SKIP
        (('person', 'bicycle'), (1, 2))
    """
    check_on_problem("load_coco", on_problem)
    findings = Findings()
    data = read_coco(
        Path(annotations), None if images is None else Path(images), findings, progress
    )
    findings.settle("load_coco", str(annotations), on_problem)
    return data


def read_coco(
    path: Path,
    images: Path | None,
    findings: Findings,
    progress: Progress | None = None,
    *,
    look_closely: bool = False,
) -> DetectionData:
    """Returns what can be used of a COCO json; ``findings`` takes the rest.

    Raises:
        DataError: If it is no COCO json, or the image folder is not found.
    """
    content = _load_json(path)
    reader = _Reader(path, findings)
    classes = reader.read_categories(content["categories"])
    records = reader.read_images(content["images"])
    root = images if images is not None else find_coco_pictures(path, list(records.values()))
    if not root.is_dir():
        raise DataError(f"load_coco: there is no folder {root}; give the folder of the images")
    root = root.absolute()
    names = [record.name for record in records.values()]
    checked = check_pictures(root, names, findings, progress, look_closely=look_closely)
    usable = {
        key: record
        for key, record in records.items()
        if reader.fits(record, checked.get(record.name), root)
    }
    objects = reader.read_annotations(content["annotations"], records, list(classes))
    kept = tuple(
        AnnotatedImage(r.id, r.name, r.height, r.width, tuple(objects.get(r.id, ())))
        for r in usable.values()
    )
    findings.note("images have no objects (kept)", sum(not image.objects for image in kept))
    return DetectionData(
        name=path.stem,
        classes=tuple(classes.values()),
        category_ids=tuple(classes),
        images=kept,
        read=PictureFolder(str(root)),
        notes=findings.notes,
    )


def find_coco_pictures(path: Path, records: list[AnnotatedImage]) -> Path:
    """Returns the folder that holds the pictures of a json, told by its place and name.

    Raises:
        DataError: If none of the usual folders holds the first picture.
    """
    part = path.stem.removeprefix(_PREFIX)
    bases = (
        (path.parent.parent, path.parent) if path.parent.name == "annotations" else (path.parent,)
    )
    tried = [base / name for base in bases for name in (part, f"images/{part}", "images", "")]
    if not records:
        return tried[-1]
    for folder in tried:
        if any(os.path.isfile(folder / record.name) for record in records[:20]):
            return folder
    raise DataError(
        f"load_coco: the pictures of {path} are in none of "
        f"{', '.join(str(folder) for folder in tried)}; give their folder"
    )


def _load_json(path: Path) -> dict[str, Any]:
    """Returns the content of the file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"load_coco: there is no file {path}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"load_coco: {path} is not json ({error})") from error
    if not isinstance(content, dict):
        raise DataError(
            f"load_coco: {path} must hold a dict with {', '.join(_LISTS)}, got a "
            f"{type(content).__name__}"
        )
    if lacking := [name for name in _LISTS if not isinstance(content.get(name), list)]:
        raise DataError(
            f"load_coco: {path} has no list of {' and '.join(lacking)}; an instances json has "
            f"{', '.join(_LISTS)}"
        )
    return content


class _Reader:
    """Reads the three lists and tells what is wrong in them."""

    def __init__(self, path: Path, findings: Findings) -> None:
        self.path = path
        self.findings = findings

    def problem(self, what: str, key: object, text: str) -> None:
        self.findings.problem(f"{self.path}, {what} {key}", text)

    def read_categories(self, entries: list[Any]) -> dict[int, str]:
        """Returns the names by category id, sorted by it."""
        names: dict[int, str] = {}
        for place, entry in enumerate(entries):
            key = self._id("category", place, entry, names)
            if key is None:
                continue
            if not isinstance(entry.get("name"), str) or not entry["name"]:
                self.problem("category", key, f"name must be text, got {_got(entry, 'name')}")
                continue
            names[key] = entry["name"]
        if not names:
            self.findings.problem(str(self.path), "there is no category that can be used")
        doubled = len(names) - len(set(names.values()))
        self.findings.note("categories have the name of another one (kept apart)", doubled)
        unused = max(names) - min(names) + 1 - len(names) if names else 0
        self.findings.note("numbers between the category ids are unused (kept apart)", unused)
        return dict(sorted(names.items()))

    def read_images(self, entries: list[Any]) -> dict[int, AnnotatedImage]:
        """Returns the images by id, without objects."""
        records: dict[int, AnnotatedImage] = {}
        owners: dict[str, int] = {}
        for place, entry in enumerate(entries):
            key = self._id("image", place, entry, records)
            if key is None:
                continue
            name, sides = entry.get("file_name"), (entry.get("height"), entry.get("width"))
            if not isinstance(name, str) or not is_below(name):
                self.problem(
                    "image",
                    key,
                    "file_name must be a path below the image folder, "
                    f"got {_got(entry, 'file_name')}",
                )
            elif name in owners:
                self.problem("image", key, f"has the file {name} of image {owners[name]}")
            elif not all(is_whole(side) and 0 < side < 2**31 for side in sides):
                self.problem(
                    "image", key, f"height and width must be at least 1, got {shorten(sides)}"
                )
            else:
                owners[name] = key
                records[key] = AnnotatedImage(key, name, *sides)
        return records

    def fits(self, record: AnnotatedImage, seen: Checked | None, root: Path) -> bool:
        """Returns whether the picture is there and has the size in the file."""
        if seen is None:  # told when it was decoded
            return False
        if fits_frame(root, record.name, seen, record.height, record.width):
            return True
        self.problem(
            "image",
            record.id,
            f"is said to have {record.width} x {record.height} pixels, and {root / record.name} "
            f"has {seen.width} x {seen.height}",
        )
        return False

    def read_annotations(
        self, entries: list[Any], images: dict[int, AnnotatedImage], categories: list[int]
    ) -> dict[int, list[AnnotatedObject]]:
        """Returns the objects by image id."""
        labels = {category: label for label, category in enumerate(categories)}
        objects: dict[int, list[AnnotatedObject]] = {}
        seen: set[int] = set()
        for place, entry in enumerate(entries):
            key = self._id("annotation", place, entry, seen)
            if key is None:
                continue
            seen.add(key)
            try:
                image = _look_up(entry, "image_id", images)
                label = _look_up(entry, "category_id", labels)
                item = self._object(entry, key, image, label)
            except ValueError as error:
                self.problem("annotation", key, str(error))
                continue
            if item is not None:
                objects.setdefault(image.id, []).append(item)
        lacking = sum(item.mask is None for items in objects.values() for item in items)
        self.findings.note("objects have no mask, only a box", lacking)
        return objects

    def _object(
        self, entry: dict[str, Any], key: int, image: AnnotatedImage, label: int
    ) -> AnnotatedObject | None:
        """Returns one object, ``None`` if its box is of no use."""
        corner = entry.get("bbox")
        if not isinstance(corner, list) or len(corner) != 4 or not all(map(is_number, corner)):
            raise ValueError(
                f"bbox must be four finite numbers x, y, width, height, got {_got(entry, 'bbox')}"
            )
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise ValueError(f"iscrowd must be 0 or 1, got {shorten(crowd)}")
        mask = parse_segmentation(entry.get("segmentation"), image.height, image.width)
        x, y, width, height = corner
        where = f"{self.path}, annotation {key} of {image.name}"
        box = self.findings.settle_box(
            (x, y, x + width, y + height), image.height, image.width, where
        )
        if box is None:
            return None
        area = entry.get("area")
        if area is None:
            self.findings.note("objects have no area (that of the box is taken)")
            area = (box[2] - box[0]) * (box[3] - box[1])
        elif not is_number(area) or area < 0:
            raise ValueError(f"area must be a number from 0 up, got {shorten(area)}")
        return AnnotatedObject(box, label, float(area), key, mask, bool(crowd))

    def _id(self, what: str, place: int, entry: Any, known: Any) -> int | None:
        """Returns the id of an entry, ``None`` if it has none of its own."""
        if not isinstance(entry, dict) or not is_whole(entry.get("id")):
            got = _got(entry, "id") if isinstance(entry, dict) else shorten(entry)
            self.problem(what, f"at place {place}", f"must be a dict with a whole id, got {got}")
            return None
        if entry["id"] in known:
            self.problem(what, entry["id"], "this id is taken by another one")
            return None
        return entry["id"]


def _look_up(entry: dict[str, Any], field: str, known: dict[int, Any]) -> Any:
    value = entry.get(field)
    if not is_whole(value) or value not in known:
        kind = "image" if field == "image_id" else "category"
        raise ValueError(f"{field} {_got(entry, field)} is no usable {kind} of the file")
    return known[value]


def _got(entry: dict[str, Any], field: str) -> str:
    return shorten(entry[field]) if field in entry else "none"
