"""From a name, a file or a folder to the two parts of a detection data set."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from visgraft.data._errors import DataError
from visgraft.data._subsets import balanced_subset, split_by_fraction
from visgraft.data.detection._findings import OnProblem
from visgraft.data.detection._pictures import Progress
from visgraft.data.detection.annotations import DetectionData
from visgraft.data.detection.check import find_description, find_jsons
from visgraft.data.detection.coco import load_coco
from visgraft.data.detection.fingerprint import fingerprint
from visgraft.data.detection.scenes import fashion_scenes
from visgraft.data.detection.voc import load_voc, voc_lists
from visgraft.data.detection.yolo_txt import load_yolo, yolo_parts

__all__ = ["DetectionParts", "check_objects", "load_detection", "load_measured"]

SCENES = "fashion_scenes"
_SCENES = (200, 50)
_TRAIN, _VAL = ("train", "trainval"), ("val", "valid", "test")
_Load = Callable[[], DetectionData]


@dataclass(frozen=True, eq=False)
class DetectionParts:
    """A data set for detection, ready to be read.

    Attributes:
        name: ``'fashion_scenes'`` or the name of the file or folder.
        train: The part to learn from.
        val: The part to measure on, with the same classes.
        has_own_split: Whether the data set says itself which images are measured on.
        in_chans: Channels of an image.
        mean: Per channel, of pixels in 0-1.
        std: Per channel, of pixels in 0-1.
        image_size: None, since the images differ in size.
        fingerprint: See `fingerprint`.
    """

    name: str
    train: DetectionData
    val: DetectionData
    has_own_split: bool = True
    in_chans: int = 3
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    image_size: None = None
    fingerprint: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if self.train.classes != self.val.classes:
            raise DataError(
                f"load_detection: {self.train.name} has the classes {_some(self.train.classes)}, "
                f"and {self.val.name} has {_some(self.val.classes)}; both parts need the same"
            )
        parts = {"train": self.train, "val": self.val}
        object.__setattr__(self, "fingerprint", fingerprint(parts))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; a label is an index into them."""
        return self.train.classes

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The number of each class in the file, in the same order."""
        return self.train.category_ids


def load_detection(
    source: str | Path,
    *,
    val_source: str | Path | None = None,
    images: str | Path | None = None,
    val_images: str | Path | None = None,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    on_problem: OnProblem = "error",
    train_limit: int | None = None,
    val_limit: int | None = None,
    masks: bool = False,
    progress: Progress | None = None,
) -> DetectionParts:
    """Loads a data set for detection and makes sure that all of it can be used.

    ``source`` is one of

    * ``"fashion_scenes"``: 200 + 50 embedded scenes, or as many as the limits say;
    * a COCO json, or a folder of them: ``annotations/instances_train*.json`` and
      ``instances_val*.json``, or ``train/_annotations.coco.json`` and ``valid/``;
    * a YOLO ``data.yaml``, or its folder: its ``train`` and ``val``;
    * a folder with VOC's xml files: the lists ``train`` and ``val``, or ``trainval`` and ``test``,
      of ``ImageSets/Main``.

    Where there is one part alone and no ``val_source``, ``val_fraction`` of its images are set
    aside by the hash of their names, the same ones every time.

    Args:
        source: Name, file or folder; ``"./fashion_scenes"`` means a folder.
        val_source: What to measure on, as ``source``; of a data set with two parts its validation
            part is taken.
        images: The picture folder of a COCO json, where its place does not tell.
        val_images: The same for ``val_source``; ``images`` if not given.
        val_fraction: Share of the images that is measured on, where the data do not say.
        split_seed: Seed of the split and of the limits' choice.
        on_problem: As in `load_coco`.
        train_limit: Keep this many training images.
        val_limit: The same for the validation part.
        masks: Whether each object must have a mask.
        progress: Called with (files decoded, files to decode) now and then.

    Raises:
        DataError: The data cannot be used; the text names file and id.

    Example:
        >>> data = load_detection("fashion_scenes", train_limit=4, val_limit=2)
        >>> len(data.train), len(data.val), data.classes[0]
        (4, 2, 'T-shirt/top')
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"load_detection: val_fraction must be between 0 and 1, got {val_fraction}")
    for name, limit in (("train_limit", train_limit), ("val_limit", val_limit)):
        if limit is not None and limit < 1:
            raise DataError(f"load_detection: {name} must be at least 1, got {limit}")
    name = str(source) if source == SCENES else Path(source).resolve().name
    finder = _Finder(on_problem, progress)
    if source == SCENES and val_source is None:
        counts = (train_limit or _SCENES[0], val_limit or _SCENES[1])
        return DetectionParts(name, *fashion_scenes(train_images=counts[0], val_images=counts[1]))
    parts = finder.find(source, images)
    is_split = False
    if val_source is not None:
        train, val = parts[0](), finder.find(val_source, val_images or images)[-1]()
    elif len(parts) == 2:
        train, val = (load() for load in parts)
    else:
        whole, is_split = parts[0](), True
        train, val = _split(whole, val_fraction, split_seed)
    train, val = _limited(train, train_limit, split_seed), _limited(val, val_limit, split_seed)
    check_objects(train, "train on", masks)
    check_objects(val, "measure on", masks)
    return DetectionParts(name, train, val, has_own_split=not is_split)


def load_measured(
    source: str | Path,
    *,
    images: str | Path | None = None,
    on_problem: OnProblem = "error",
    progress: Progress | None = None,
) -> DetectionData:
    """Loads what is measured on: the validation part of a data set, or all of a single part.

    Args:
        source: As in `load_detection`.
        images: The picture folder of a COCO json, where its place does not tell.
        on_problem: As in `load_coco`.
        progress: Called with (files decoded, files to decode) now and then.

    Raises:
        DataError: The data cannot be used; the text names file and id.
    """
    return _Finder(on_problem, progress, to_measure=True).find(source, images)[-1]()


@dataclass(frozen=True)
class _Finder:
    """Finds the parts of a data set; each is loaded when it is called."""

    on_problem: OnProblem
    progress: Progress | None
    to_measure: bool = False

    def find(self, source: str | Path, images: str | Path | None) -> list[_Load]:
        """Returns the loaders of the training and the validation part, or that of all there is.

        Raises:
            DataError: There is no such data set.
        """
        if source == SCENES:
            train, val = fashion_scenes(train_images=_SCENES[0], val_images=_SCENES[1])
            return [lambda: train, lambda: val]
        path = Path(source).expanduser()
        if not path.exists():
            raise DataError(
                f"load_detection: there is no {path}; give {SCENES}, a COCO json, a YOLO "
                "data.yaml, or a folder"
            )
        jsons = [path] if path.suffix.lower() == ".json" else find_jsons(path)
        if jsons:
            return [self._coco(file, images) for file in self._choose(path, jsons)]
        if images is not None:
            raise DataError(f"load_detection: images is for COCO jsons, and {path} has none")
        if (description := find_description(path)) is not None:
            parts = self._pair(description, yolo_parts(description))
            return [self._yolo(description, part) for part in parts]
        if path.is_dir() and any(any(p.glob("*.xml")) for p in (path / "Annotations", path)):
            lists = [name for name in voc_lists(path) if name in (*_TRAIN, *_VAL)]
            parts = self._pair(path, lists) if lists else [None]
            return [self._voc(path, part) for part in parts]
        raise DataError(
            f"load_detection: {path} is neither a COCO json, a YOLO data.yaml, nor a folder with "
            "one of them or with VOC's xml files"
        )

    def _choose(self, folder: Path, jsons: list[Path]) -> list[Path]:
        """Returns the jsons to train and to measure on, or the only one.

        Raises:
            DataError: There are several, and their names do not tell.
        """
        if len(jsons) == 1:
            return jsons
        train = [path for path in jsons if "train" in _name_of_part(path)]
        others = [path for path in jsons if path not in train]
        val = [path for path in others if "val" in _name_of_part(path)]
        val = val or [path for path in others if "test" in _name_of_part(path)]
        if len(train) == len(val) == 1:
            return [*train, *val]
        raise DataError(
            f"load_detection: {folder} has {', '.join(p.name for p in jsons)}, and their names do "
            "not say which two to take; give data and val_data"
        )

    def _pair(self, source: Path, parts: list[str]) -> list[str]:
        """Returns the part to train on and that to measure on, or the only one.

        Raises:
            DataError: There is nothing to train on.
        """
        train = next((part for part in _TRAIN if part in parts), None)
        val = next((part for part in _VAL if part in parts), None)
        found = [part for part in (train, val) if part is not None]
        if not found or (train is None and not self.to_measure):
            raise DataError(
                f"load_detection: {source} has {', '.join(parts) or 'no parts'}, and nothing to "
                f"train on ({' or '.join(_TRAIN)})"
            )
        return found

    def _coco(self, file: Path, images: str | Path | None) -> _Load:
        return lambda: load_coco(file, images, on_problem=self.on_problem, progress=self.progress)

    def _yolo(self, file: Path, part: str) -> _Load:
        return lambda: load_yolo(file, part, on_problem=self.on_problem, progress=self.progress)

    def _voc(self, folder: Path, part: str | None) -> _Load:
        return lambda: load_voc(folder, part, on_problem=self.on_problem, progress=self.progress)


def _name_of_part(path: Path) -> str:
    """Returns the name of a json, or of its folder where all jsons have one name."""
    name = path.parent.name if path.name.startswith("_annotations") else path.stem
    return name.lower()


def _split(data: DetectionData, fraction: float, seed: int) -> tuple[DetectionData, DetectionData]:
    names = [image.name for image in data.images]
    if len(names) < 2:
        raise DataError(
            f"load_detection: {data.name} has {len(names)} image, and a split needs two; give what "
            "to measure on (val_data)"
        )
    train, val = split_by_fraction(names, [0] * len(names), fraction, seed)
    return data.subset(train), data.subset(val)


def _limited(data: DetectionData, limit: int | None, seed: int) -> DetectionData:
    if limit is None or limit >= len(data):
        return data
    names = [image.name for image in data.images]
    return data.subset(balanced_subset(names, [0] * len(names), limit, seed))


def check_objects(
    data: DetectionData, purpose: Literal["train on", "measure on"], masks: bool
) -> None:
    """Raises DataError unless there are objects, with masks if they are needed.

    Crowds are not trained on, and measured on with their masks.

    Args:
        data: One part.
        purpose: What it is for.
        masks: Whether each object must have a mask.
    """
    everything = [item for image in data.images for item in image.objects]
    items = [item for item in everything if not item.is_crowd]
    if not items:
        raise DataError(
            f"load_detection: the {len(data)} images of {data.name} have no object to {purpose}"
        )
    used = items if purpose == "train on" else everything
    lacking = [item for item in used if item.mask is None]
    if masks and lacking:
        raise DataError(
            f"load_detection: {len(lacking)} of {len(used)} objects of {data.name} have no mask, "
            f"object {lacking[0].id} for one; task instance_segmentation needs all masks, and task "
            "detection none"
        )


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown}, ... ({len(names)})" if len(names) > 5 else shown
