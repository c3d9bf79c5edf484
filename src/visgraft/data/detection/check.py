"""Everything that has to be mended in a detection data set, told at once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from visgraft.data._errors import DataError
from visgraft.data.detection._findings import Findings
from visgraft.data.detection._pictures import Progress
from visgraft.data.detection.annotations import DetectionData
from visgraft.data.detection.coco import read_coco
from visgraft.data.detection.voc import read_voc, voc_parts
from visgraft.data.detection.yolo_txt import read_yolo, yolo_parts

__all__ = ["CheckedPart", "check_detection", "find_description", "find_jsons"]

_Read = Callable[[Findings], DetectionData]


@dataclass(frozen=True)
class CheckedPart:
    """What the check of one part of a data set told.

    Attributes:
        source: The file or folder, and the part.
        format: ``"COCO"``, ``"YOLO"`` or ``"VOC"``.
        problems: What has to be mended, one sentence each, with file and id.
        notes: What is handled, with counts.
        data: What can be used, ``None`` if nothing can.
    """

    source: str
    format: str
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    data: DetectionData | None


def check_detection(
    path: str | Path, images: str | Path | None = None, *, progress: Progress | None = None
) -> list[CheckedPart]:
    """Reads a data set as training would, and returns all that is wrong in each part.

    Args:
        path: A COCO json, a YOLO data.yaml, or a folder that holds COCO jsons (in itself, in
            ``annotations/`` or in its folders), a data.yaml, or VOC's xml files.
        images: The picture folder of a COCO json, where its place does not tell.
        progress: Called with (files decoded, files to decode) now and then.

    Raises:
        DataError: If there is no such path, or it is no data set of these formats.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"check_detection: there is no {path}")
    return [_check(source, kind, read) for source, kind, read in _find(path, images, progress)]


def _check(source: str, kind: str, read: _Read) -> CheckedPart:
    findings = Findings()
    data = None
    try:
        data = read(findings)
    except DataError as error:
        findings.problems.append(str(error))
    return CheckedPart(source, kind, tuple(findings.problems), findings.notes, data)


def _find(
    path: Path, images: str | Path | None, progress: Progress | None
) -> list[tuple[str, str, _Read]]:
    """Returns source, format and reader of each part."""
    jsons = [path] if path.suffix.lower() == ".json" else find_jsons(path)
    if jsons:
        folder = None if images is None else Path(images)
        return [(str(file), "COCO", _coco(file, folder, progress)) for file in jsons]
    if images is not None:
        raise DataError(f"check_detection: images is for COCO jsons only, and {path} has none")
    if (description := find_description(path)) is not None:
        parts = yolo_parts(description)
        if not parts:
            raise DataError(f"check_detection: {description} names neither train, val nor test")
        return [
            (f"{description} ({part})", "YOLO", _yolo(description, part, progress))
            for part in parts
        ]
    if path.is_dir() and any(any(p.glob("*.xml")) for p in (path / "Annotations", path)):
        return [
            (f"{path} ({part})" if part else str(path), "VOC", _voc(path, part, progress))
            for part in voc_parts(path)
        ]
    raise DataError(
        f"check_detection: {path} is neither a COCO json, a YOLO data.yaml, nor a folder with "
        "one of them or with VOC's xml files"
    )


def _coco(file: Path, folder: Path | None, progress: Progress | None) -> _Read:
    return lambda findings: read_coco(file, folder, findings, progress, look_closely=True)


def _yolo(file: Path, part: str, progress: Progress | None) -> _Read:
    return lambda findings: read_yolo(file, part, findings, progress, look_closely=True)


def _voc(folder: Path, part: str | None, progress: Progress | None) -> _Read:
    return lambda findings: read_voc(folder, part, findings, progress, look_closely=True)


def find_jsons(folder: Path) -> list[Path]:
    """Returns the COCO jsons of a folder; of ``annotations/`` those of instances, if there are."""
    if not folder.is_dir():
        return []
    for pattern in ("annotations/instances_*.json", "annotations/*.json"):
        if found := sorted(folder.glob(pattern)):
            return found
    if find_description(folder) is not None or any(folder.glob("Annotations/*.xml")):
        return []
    return sorted(folder.glob("*.json")) or sorted(folder.glob("*/_annotations.coco.json"))


def find_description(path: Path) -> Path | None:
    """Returns the description of a YOLO data set."""
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    candidates = [path / "data.yaml", path / "data.yml", path / "dataset.yaml"]
    candidates += sorted(path.glob("*.y*ml"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)
