"""The layout of an image folder: parts, classes and the files of each class."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from visgraft.data._errors import DataError

__all__ = ["Part", "find_parts", "list_classes", "list_part", "walk"]

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "test", "testing")  # the first that exists is taken
_CLUTTER = ("thumbs.db", "desktop.ini", "__macosx")


@dataclass
class Part:
    """Files of one part of a data set: paths below the root, with ``/``, and their labels."""

    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def keep(self, indices: Collection[int]) -> "Part":
        """Returns the part with these files only."""
        return Part([self.names[i] for i in indices], [self.labels[i] for i in indices])


def find_parts(root: Path) -> tuple[Path, Path | None]:
    """Returns the folders that hold the class folders for training and, if any, for validation.

    Raises:
        DataError: If there is a training part without a validation part, or the reverse, or if
            there are several such data sets in ``root``.
    """
    folders = _folders(root)
    train = next((folders[name] for name in TRAIN_NAMES if name in folders), None)
    val = next((folders[name] for name in VAL_NAMES if name in folders), None)
    if train is not None and val is not None:
        return train, val
    if train is not None and _folders(train):
        raise DataError(
            f"load_data: {root} has {train.name}/ but no val/ (nor {'/, '.join(VAL_NAMES[1:])}/); "
            f"add one, or give {train} to split it by val_fraction"
        )
    if val is not None and all(name in VAL_NAMES for name in folders):
        raise DataError(
            f"load_data: {root} has {val.name}/ but no train/; add one, or give {val} to split it "
            "by val_fraction"
        )
    for folder in folders.values():
        inside = _folders(folder)
        if inside.keys() & set(TRAIN_NAMES) and inside.keys() & set(VAL_NAMES):
            raise DataError(
                f"load_data: {folder} is not the folder of a class, it has {', '.join(inside)}; "
                "give this folder instead"
            )
    return root, None


def _folders(folder: Path) -> dict[str, Path]:
    """Returns the folders in ``folder`` by their names in small letters, sorted."""
    paths = sorted(Path(entry.path) for entry in _visible(folder) if _is_folder(entry))
    return {path.name.lower(): path for path in paths}


def list_classes(folder: Path) -> tuple[str, ...]:
    """Returns the names of the class folders, sorted; a label is an index into them.

    Raises:
        DataError: If there are fewer than two.
    """
    classes = _class_folders(folder)
    if len(classes) == 1:
        inner = folder / classes[0]
        raise DataError(
            f"load_data: {folder} has one class folder only, {classes[0]}/, and a classification "
            "needs at least two"
            + (f"; did you mean {inner}?" if _folders(inner) else "; add another")
        )
    return tuple(classes)


def list_part(root: Path, folder: Path, classes: tuple[str, ...]) -> Part:
    """Returns all files in the class folders of ``folder``, sorted by class and name.

    Raises:
        DataError: If a class folder is not among ``classes``, or holds no file at any depth.
    """
    found = _class_folders(folder)
    if unknown := [name for name in found if name not in classes]:
        raise DataError(
            f"load_data: {folder} has class folders that the training part lacks: "
            f"{_some(unknown)}; the training part has {_some(classes)}"
        )
    part = Part()
    prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
    for name in found:
        files = sorted(walk(folder / name, f"{prefix}{name}/"))
        if not files:
            raise DataError(
                f"load_data: class folder {folder / name} holds no images; add some, or remove the "
                "folder"
            )
        part.names += files
        part.labels += [classes.index(name)] * len(files)
    return part


def _class_folders(folder: Path) -> list[str]:
    """Returns the names of the folders in ``folder``, sorted; at least one."""
    entries = _visible(folder)
    names = sorted(entry.name for entry in entries if _is_folder(entry))
    if not names:
        what = f"{len(entries)} files but no folders" if entries else "nothing in it"
        raise DataError(
            f"load_data: {folder} has {what}; put the images of each class into a folder named "
            "after the class"
        )
    return names


def _some(names: Sequence[str]) -> str:
    """Returns the first names, joined."""
    return ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")


def walk(folder: Path, prefix: str = "", ancestors: tuple[tuple[int, int], ...] = ()) -> list[str]:
    """Returns all visible files below ``folder``; a link to a folder around itself is left out."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in ancestors:
        return []
    files: list[str] = []
    for entry in _visible(folder):
        if _is_folder(entry):
            files += walk(Path(entry.path), f"{prefix}{entry.name}/", (*ancestors, here))
        else:
            files.append(prefix + entry.name)
    return files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether an entry is a folder or a link to one; a link in a circle is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """Returns what a folder holds, without hidden files and the clutter of file managers."""
    try:
        with os.scandir(folder) as entries:
            return [
                entry
                for entry in entries
                if not entry.name.startswith(".") and entry.name.lower() not in _CLUTTER
            ]
    except OSError as error:
        raise DataError(
            f"load_data: cannot list folder {folder} ({error.strerror}); check its permissions"
        ) from error
