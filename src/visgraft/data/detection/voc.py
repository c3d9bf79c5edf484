"""Pascal VOC's xml files: boxes.

Paper: Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010,
    https://doi.org/10.1007/s11263-009-0275-4. Format: http://host.robots.ox.ac.uk/pascal/VOC.
"""

import os
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from visgraft.data._errors import DataError
from visgraft.data.detection._findings import Findings, OnProblem, check_on_problem, shorten
from visgraft.data.detection._pictures import (
    PictureFolder,
    Progress,
    check_pictures,
    fits_frame,
    is_below,
)
from visgraft.data.detection.annotations import AnnotatedImage, AnnotatedObject, DetectionData
from visgraft.data.detection.yolo_txt import SUFFIXES

__all__ = ["load_voc", "read_voc", "voc_lists", "voc_parts"]

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_SETS = "ImageSets/Main"


def load_voc(
    folder: str | Path,
    part: str | None = None,
    *,
    on_problem: OnProblem = "error",
    progress: Progress | None = None,
) -> DetectionData:
    """Loads a folder of VOC xml files and makes sure that all of it can be used.

    The layout is VOC's (``Annotations/``, ``JPEGImages/``, ``ImageSets/Main/PART.txt``), or xml
    files beside their pictures. Corners count from 1 and include the last pixel, as in VOC: 1 to 10
    is a box from 0.0 to 10.0. ``difficult`` objects are crowds here: they are not measured on.
    Classes are the names in all xml files, sorted, whatever the part. A ``DOCTYPE`` is refused.

    Args:
        folder: With ``Annotations/``, or with xml files.
        part: Name of a list in ``ImageSets/Main``; all files if not given.
        on_problem: As in `load_coco`.
        progress: Called with (files decoded, files to decode) now and then.

    Raises:
        DataError: If something has to be mended; the text names file and object.
    """
    check_on_problem("load_voc", on_problem)
    findings = Findings()
    data = read_voc(Path(folder), part, findings, progress)
    findings.settle("load_voc", f"{folder}" + (f" ({part})" if part else ""), on_problem)
    return data


def voc_lists(folder: Path) -> list[str]:
    """Returns the names of the lists in ``ImageSets/Main``."""
    return sorted(path.stem for path in (folder / _SETS).glob("*.txt"))


def voc_parts(folder: Path) -> list[str | None]:
    """Returns train and val if the folder has such lists, otherwise ``None`` for all files."""
    found = [name for name in ("train", "val") if (folder / _SETS / f"{name}.txt").is_file()]
    return list(found) or [None]


def read_voc(
    folder: Path,
    part: str | None,
    findings: Findings,
    progress: Progress | None = None,
    *,
    look_closely: bool = False,
) -> DetectionData:
    """Returns what can be used of a folder; ``findings`` takes the rest.

    Raises:
        DataError: If there are no xml files, or no such part.
    """
    xml_folder = next((p for p in (folder / "Annotations",) if p.is_dir()), folder)
    root = next((p for p in (folder / "JPEGImages", folder / "images") if p.is_dir()), folder)
    root = root.absolute()
    stems = sorted(path.stem for path in xml_folder.glob("*.xml"))
    if not stems:
        raise DataError(f"load_voc: {xml_folder} holds no xml files")
    trees: dict[str, ElementTree.Element] = {}
    wanted = stems if part is None else _part_stems(folder, part)
    for stem in stems:
        path = xml_folder / f"{stem}.xml"
        try:
            trees[stem] = _parse(path)
        except (ValueError, OSError) as error:
            if stem in wanted:
                findings.problem(str(path), str(error))
    classes = sorted({_text(item, "name") for tree in trees.values() for item in _objects(tree)})
    labels = {name: label for label, name in enumerate(classes) if name}
    for stem in sorted(set(wanted) - set(stems)):
        findings.problem(f"{folder / _SETS / f'{part}.txt'}", f"there is no {stem}.xml")

    names = {stem: _picture(root, stem, trees[stem]) for stem in wanted if stem in trees}
    checked = check_pictures(root, names.values(), findings, progress, look_closely=look_closely)
    images: list[AnnotatedImage] = []
    first_id = 1
    for key, stem in enumerate(wanted, 1):
        if stem not in names or (seen := checked.get(names[stem])) is None:
            continue
        where = str(xml_folder / f"{stem}.xml")
        height, width = _size(trees[stem]) or (seen.height, seen.width)
        if not fits_frame(root, names[stem], seen, height, width):
            findings.problem(
                where,
                f"says {width} x {height} pixels, and {root / names[stem]} has "
                f"{seen.width} x {seen.height}",
            )
            continue
        items = _read_objects(trees[stem], labels, (height, width), where, first_id, findings)
        first_id += len(items)
        images.append(AnnotatedImage(key, names[stem], height, width, tuple(items)))
    if part is None:
        known = set(names.values())
        lone = [p for p in root.iterdir() if p.suffix.lower() in SUFFIXES and p.name not in known]
        findings.note("pictures have no xml file (left out)", len(lone))
    findings.note("images have no objects (kept)", sum(not image.objects for image in images))
    return DetectionData(
        name=folder.name if part is None else f"{folder.name}/{part}",
        classes=tuple(labels),
        category_ids=tuple(range(len(labels))),
        images=images,
        read=PictureFolder(str(root)),
        notes=findings.notes,
    )


def _part_stems(folder: Path, part: str) -> list[str]:
    path = folder / _SETS / f"{part}.txt"
    if not is_below(part) or not path.is_file():
        raise DataError(f"load_voc: there is no {path}; choose a part that has a list")
    lines = path.read_text("utf-8").splitlines()
    return sorted({line.split()[0] for line in lines if line.strip()})


def _parse(path: Path) -> ElementTree.Element:
    """Returns the root element of a file without a DOCTYPE, and so without entities.

    Raises:
        ValueError: It is not xml, or has a DOCTYPE.
    """
    content = path.read_bytes()
    gate = expat.ParserCreate()
    gate.StartDoctypeDeclHandler = _refuse_doctype
    try:
        gate.Parse(content, True)
        return ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError) as error:
        raise ValueError(f"is not sound xml ({error})") from error


def _refuse_doctype(*_: object) -> NoReturn:
    raise ValueError("has a DOCTYPE, which VOC files have not; remove it")


def _objects(tree: ElementTree.Element) -> list[ElementTree.Element]:
    return tree.findall("object")


def _text(element: ElementTree.Element, name: str) -> str:
    return (element.findtext(name) or "").strip()


def _picture(root: Path, stem: str, tree: ElementTree.Element) -> str:
    """Returns the picture of an xml file: the one it names, or the one with its own name."""
    name = _text(tree, "filename")
    if name and is_below(name) and os.path.isfile(root / name):
        return name
    beside = (f"{stem}{suffix}" for suffix in SUFFIXES)
    return next((other for other in beside if (root / other).is_file()), f"{stem}.jpg")


def _size(tree: ElementTree.Element) -> tuple[int, int] | None:
    """Returns height and width; ``None`` where the file does not know them."""
    sides = [_text(tree, f"size/{side}") for side in ("height", "width")]
    if not all(side.isdecimal() and int(side) > 0 for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def _read_objects(
    tree: ElementTree.Element,
    labels: dict[str, int],
    size: tuple[int, int],
    where: str,
    first_id: int,
    findings: Findings,
) -> list[AnnotatedObject]:
    items: list[AnnotatedObject] = []
    for number, element in enumerate(_objects(tree), 1):
        place = f"{where}, object {number}"
        name = _text(element, "name")
        if not name:
            findings.problem(place, "has no name")
            continue
        texts = [_text(element, f"bndbox/{side}") for side in _SIDES]
        try:
            x1, y1, x2, y2 = (float(text) for text in texts)
        except ValueError:
            findings.problem(
                place, f"bndbox must have {', '.join(_SIDES)} as numbers, got {shorten(texts)}"
            )
            continue
        box = findings.settle_box((x1 - 1, y1 - 1, x2, y2), *size, place)
        if box is None:
            continue
        area = (box[2] - box[0]) * (box[3] - box[1])
        is_crowd = _text(element, "difficult") == "1"
        key = first_id + len(items)
        items.append(AnnotatedObject(box, labels[name], area, key, is_crowd=is_crowd))
    return items
