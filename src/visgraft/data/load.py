"""From a name or a folder to a data set that is known to be readable."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from visgraft.data._errors import DataError
from visgraft.data._folder import Part, find_parts, list_classes, list_part
from visgraft.data._scan import Checked, check_images
from visgraft.data._subsets import balanced_subset, split_by_fraction
from visgraft.data.fashion import load_fashion_mini
from visgraft.data.images import ImageFiles
from visgraft.data.splits import ImageData, ImageSplit

__all__ = ["load_data"]

EMBEDDED = ("fashion_mini",)
ON_BAD_IMAGE = ("error", "skip")
_NAMED = 20  # bad files that are named one by one

logger = logging.getLogger("visgraft.data")


def load_data(
    source: str | Path,
    *,
    val_fraction: float = 0.1,
    split_seed: int = 0,
    on_bad_image: Literal["error", "skip"] = "error",
    train_limit: int | None = None,
    val_limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageData:
    """Loads a data set for classification and makes sure that every image in it can be read.

    ``source`` is ``"fashion_mini"`` (embedded: 28 x 28, grayscale, 10 classes, 10 000 + 2 000
    images) or a folder in one of two layouts:

    * ``train/`` and ``val/`` (or ``valid/``, ``validation/``, ``test/``), each with one folder per
      class; a class may be absent from the validation part;
    * one folder per class, split by ``val_fraction``: stratified, a function of ``split_seed`` and
      the names of the files below ``source``, never of the order a disk lists them in.

    Every visible file in a class folder, at any depth, is an image; its content decides, not the
    ending of its name. Classes are sorted by name. Images come upright and in RGB (see
    `visgraft.data.images.read_image`), with ImageNet's mean and standard deviation.

    The files are decoded once before training. What was fine is remembered in
    ``$XDG_CACHE_HOME/visgraft`` (``~/.cache/visgraft``) until the size or the time of the file
    changes. With limits, only the chosen files are decoded.

    Args:
        source: Name or folder; ``"./fashion_mini"`` means a folder.
        val_fraction: Share of each class that is measured on, where the folder does not say.
        split_seed: Seed of the split and of the limits' choice.
        on_bad_image: ``"error"`` names all files that cannot be decoded; ``"skip"`` leaves them
            out, each with a line in the log ``visgraft.data``.
        train_limit: Keep this many training images, the same number of each class where possible.
        val_limit: The same for the validation part.
        progress: Called with (files decoded, files to decode) now and then.

    Raises:
        DataError: If the folder cannot be used; the text names the file or folder and what to do.

    Example:
        >>> data = load_data("fashion_mini", train_limit=100)
        >>> len(data.train), data.classes[:2], data.image_size
        (100, ('T-shirt/top', 'Trouser'), (28, 28))
    """
    if not 0 < val_fraction < 1:
        raise DataError(f"load_data: val_fraction must be between 0 and 1, got {val_fraction}")
    if on_bad_image not in ON_BAD_IMAGE:
        raise DataError(
            f"load_data: on_bad_image must be one of {', '.join(ON_BAD_IMAGE)}, "
            f"got {on_bad_image!r}"
        )
    limits = (train_limit, val_limit)
    if source in EMBEDDED:
        return _embedded(limits, split_seed)

    root = _checked_root(source)
    classes, parts = _list_parts(root, val_fraction, split_seed)
    for name, limit in zip(("train_limit", "val_limit"), limits, strict=True):
        _check_limit(name, limit, len(classes))
    parts, checked, skipped = _readable(root, parts, limits, split_seed, on_bad_image, progress)
    _check_classes(root, classes, parts)

    used = [checked[name] for part in parts for name in part.names]
    sizes = {(seen.height, seen.width) for seen in used}
    train, val = (ImageSplit(ImageFiles(str(root), p.names), p.labels) for p in parts)
    return ImageData(
        name=root.name or str(root),
        classes=classes,
        train=train,
        val=val,
        in_chans=3,
        image_size=sizes.pop() if len(sizes) == 1 else None,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        fingerprint=_fingerprint(classes, parts, (seen.size for seen in used)),
        skipped=tuple(skipped),
        has_own_split=find_parts(root)[1] is not None,
    )


def _embedded(limits: tuple[int | None, int | None], seed: int) -> ImageData:
    """Returns the embedded data set."""
    mini = load_fashion_mini()
    splits = [mini.train, mini.val]
    for i, (name, limit) in enumerate(zip(("train_limit", "val_limit"), limits, strict=True)):
        _check_limit(name, limit, len(mini.classes))
        if limit is not None:
            split = splits[i]
            splits[i] = split.subset(balanced_subset(split.names, split.labels, limit, seed))
    parts = [Part(list(split.names), split.labels) for split in splits]
    count = sum(len(split) for split in splits)
    return ImageData(
        name="fashion_mini",
        classes=mini.classes,
        train=splits[0],
        val=splits[1],
        in_chans=1,
        image_size=(28, 28),
        mean=(mini.mean,),
        std=(mini.std,),
        fingerprint=_fingerprint((*mini.classes, mini.sha256), parts, [28 * 28] * count),
    )


def _checked_root(source: str | Path) -> Path:
    """Returns the absolute path of a folder that exists."""
    root = Path(source).expanduser().resolve()
    if root.is_dir():
        return root
    if root.exists():
        raise DataError(f"load_data: {root} is a file, not a folder; unpack it and give the folder")
    near = get_close_matches(str(source), EMBEDDED, 1)
    raise DataError(
        f"load_data: there is no folder {root}; "
        + (f"did you mean {near[0]!r}?" if near else f"embedded are: {', '.join(EMBEDDED)}")
    )


def _list_parts(root: Path, fraction: float, seed: int) -> tuple[tuple[str, ...], list[Part]]:
    """Returns the classes and the files of the two parts."""
    train_folder, val_folder = find_parts(root)
    classes = list_classes(train_folder)
    train = list_part(root, train_folder, classes)
    if val_folder is not None:
        return classes, [train, list_part(root, val_folder, classes)]
    for label, count in Counter(train.labels).items():
        if count == 1:
            raise DataError(
                f"load_data: class folder {root / classes[label]} holds one image, and a split "
                "needs two; add images, or make train/ and val/ folders"
            )
    chosen = split_by_fraction(train.names, train.labels, fraction, seed)
    return classes, [train.keep(indices) for indices in chosen]


def _readable(
    root: Path,
    parts: list[Part],
    limits: Sequence[int | None],
    seed: int,
    on_bad_image: str,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Part], dict[str, Checked], list[str]]:
    """Returns the parts after limits and checks, what is known of the files, and the skipped."""
    checked: dict[str, Checked] = {}
    skipped: list[str] = []
    while True:
        chosen = [_limited(*pair, seed) for pair in zip(parts, limits, strict=True)]
        new = [name for part in chosen for name in part.names if name not in checked]
        checked.update(check_images(root, new, progress))
        bad = [name for name in new if checked[name].problem]
        if not bad:
            break
        if on_bad_image == "error":
            raise DataError(_complaint(root, bad, checked))
        skipped += bad
        parts = [
            part.keep([i for i, name in enumerate(part.names) if not _is_bad(checked.get(name))])
            for part in parts
        ]
    for name in skipped:
        logger.warning("skipped %s: %s", root / name, checked[name].problem)
    if skipped:
        logger.warning("skipped %d unreadable files in %s", len(skipped), root)
    return chosen, checked, skipped


def _limited(part: Part, limit: int | None, seed: int) -> Part:
    """Returns the part cut to ``limit`` files."""
    if limit is None or limit >= len(part.names):
        return part
    return part.keep(balanced_subset(part.names, part.labels, limit, seed))


def _is_bad(seen: Checked | None) -> bool:
    """Returns whether a file was checked and cannot be read."""
    return seen is not None and seen.problem is not None


def _complaint(root: Path, bad: list[str], checked: dict[str, Checked]) -> str:
    """Returns the text that names the bad files."""
    lines = [f"  {root / name}: {checked[name].problem}" for name in bad[:_NAMED]]
    if len(bad) > _NAMED:
        lines.append(f"  ... and {len(bad) - _NAMED} more")
    return (
        f"load_data: {len(bad)} of {len(checked)} files in {root} cannot be read as images; repair "
        "or remove them, or leave them out with on_bad_image='skip':\n" + "\n".join(lines)
    )


def _check_limit(name: str, limit: int | None, classes: int) -> None:
    """Raises if a limit does not leave an image per class."""
    if limit is not None and limit < classes:
        raise DataError(
            f"load_data: {name} must be at least the number of classes, {classes}, got {limit}"
        )


def _check_classes(root: Path, classes: tuple[str, ...], parts: list[Part]) -> None:
    """Raises if skipping left a class or a part without images; reports classes not measured."""
    train, val = (set(part.labels) for part in parts)
    for label, name in enumerate(classes):
        if label not in train:
            raise DataError(
                f"load_data: none of the training files of class {name!r} in {root} can be read; "
                "repair some, or remove the class folder"
            )
    if not val:
        raise DataError(f"load_data: none of the validation files in {root} can be read")
    if absent := [name for label, name in enumerate(classes) if label not in val]:
        logger.warning(
            "%s has no validation images of these classes: %s",
            root,
            ", ".join(absent[:10]) + (" ..." if len(absent) > 10 else ""),
        )


def _fingerprint(classes: Iterable[str], parts: list[Part], sizes: Iterable[int]) -> str:
    """Returns the SHA-256 of everything that makes two loaded data sets the same."""
    digest = hashlib.sha256()
    remaining = iter(sizes)
    for name in classes:
        digest.update(f"class\0{name}\n".encode("utf-8", "surrogateescape"))
    for kind, part in zip(("train", "val"), parts, strict=True):
        for name, label in zip(part.names, part.labels, strict=True):
            line = f"{kind}\0{name}\0{label}\0{next(remaining)}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
