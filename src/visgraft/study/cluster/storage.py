"""Where trials keep their checkpoints when the machines that train them share no folder.

Any file system that fsspec knows: a path, ``file://``, ``s3://``, ``gs://`` ... Below its root:

    <trial>/<attempt>/<epoch>/...             the files of the trial's folder after that epoch
    <trial>/<attempt>/<epoch>/manifest.json   their sizes and digests; written last

Nothing is ever overwritten. Each attempt has a folder of its own, so that one that was thought dead
and still runs cannot spoil its successor's files, and an epoch without its manifest, or with a file
that does not agree with it, was not completely written and is not there.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import fsspec
from fsspec.core import url_to_fs

from visgraft.study.errors import StudyError
from visgraft.tasks.files import write_atomically

__all__ = ["Storage", "TrialStorage"]

MANIFEST = "manifest.json"
_FINISHED = "finished"
_CHECKPOINT = ".ckpt"
_TRIES = 3
_ONE_PROCESS = ("memory",)


class Storage:
    """The root of it.

    Args:
        url: Of fsspec, or a path.

    Raises:
        StudyError: There is no such kind of file system, or it lives in one process.
    """

    def __init__(self, url: str) -> None:
        self.url = url if "://" in url else str(Path(url).absolute())
        try:
            files, root = url_to_fs(self.url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise StudyError(
                f"study: the storage {url} cannot be used: {error}; give a path or a URL that "
                "fsspec knows, with its package installed on all machines."
            ) from None
        self._files = cast("fsspec.AbstractFileSystem", files)
        self._root = str(root).rstrip("/")
        if self.url.partition("://")[0] in _ONE_PROCESS:
            raise StudyError(
                f"study: the storage {url} lives in one process; give one that all machines see."
            )

    def leave_mark(self) -> str:
        """Writes a small file with a new name, by which others see that they see this storage.

        Raises:
            StudyError: It cannot be written.
        """
        mark = f".seen-{uuid4().hex}"
        try:
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(f"{self._root}/{mark}", b"visgraft\n")
        except Exception as error:  # each file system has its own kinds
            text = f"study: the storage {self.url} cannot be written: {error}."
            raise StudyError(text) from error
        return mark

    def sees(self, mark: str) -> bool:
        """Tells whether a mark is there."""
        return self._files.exists(f"{self._root}/{mark}")

    def wipe_mark(self, mark: str) -> None:
        """Removes a mark; it does no harm where that fails."""
        with suppress(Exception):
            self._files.rm_file(f"{self._root}/{mark}")

    def trial(self, name: str) -> "TrialStorage":
        """Returns the part of one trial."""
        return TrialStorage(self._files, f"{self._root}/{name}")


@dataclass(frozen=True)
class _Saved:
    """What an attempt saved after an epoch."""

    path: str
    epoch: int
    finished: bool
    files: dict[str, list[Any]]  # bytes and digest by name


class TrialStorage:
    """What attempts on one trial have saved.

    Args:
        files: The file system.
        root: Of the trial there.
    """

    def __init__(self, files: fsspec.AbstractFileSystem, root: str) -> None:
        self._files = files
        self._root = root

    def save(self, folder: Path, attempt: str, epoch: int, *, finished: bool = False) -> None:
        """Copies a trial's folder here, then drops what the same attempt saved before.

        Args:
            folder: Files whose names begin with a dot stay away.
            attempt: Name of the attempt.
            epoch: Epochs that are complete.
            finished: Whether that is all of them.

        Raises:
            OSError: It could not be written, three times in a row.
        """
        place = f"{self._root}/{attempt}/{epoch:06d}{'-' + _FINISHED if finished else ''}"
        manifest: dict[str, Any] = {"epoch": epoch, "finished": finished, "files": {}}
        for path in _files_of(folder):
            name = path.relative_to(folder).as_posix()
            content = path.read_bytes()
            self._put(f"{place}/{name}", content)
            manifest["files"][name] = [len(content), hashlib.sha256(content).hexdigest()]
        self._put(f"{place}/{MANIFEST}", json.dumps(manifest).encode())
        self._drop(other for other in self._list(f"{self._root}/{attempt}") if other != place)

    def restore(self, folder: Path) -> int | None:
        """Copies the most advanced state into a folder, checkpoints last.

        Args:
            folder: Made if it is not there; files of the same names are replaced.

        Returns:
            Epochs that are complete in it; None if nothing is here, and the folder is as it was.
        """
        for _ in range(_TRIES):  # an attempt that still runs may drop what was just found
            for saved in self._newest_first():
                contents = self._read(saved)
                if contents is None:
                    continue
                for name in sorted(contents, key=lambda name: name.endswith(_CHECKPOINT)):
                    path = folder / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(path, contents[name])
                return saved.epoch
        return None

    def is_empty(self) -> bool:
        """Tells whether no attempt has saved anything."""
        return not self._newest_first()

    def keep_newest(self) -> None:
        """Drops everything but the most advanced state."""
        newest = self._newest_first()[:1]
        for attempt in self._list(self._root):
            self._drop(path for path in self._list(attempt) if path not in {s.path for s in newest})

    def _newest_first(self) -> list[_Saved]:
        found = []
        for attempt in self._list(self._root):
            for path in self._list(attempt):
                with suppress(OSError, ValueError, KeyError, TypeError):  # not complete, or dropped
                    manifest = json.loads(self._files.cat_file(f"{path}/{MANIFEST}"))
                    finished, files = bool(manifest["finished"]), dict(manifest["files"])
                    found.append(_Saved(path, int(manifest["epoch"]), finished, files))
        return sorted(found, key=lambda s: (s.finished, s.epoch, s.path), reverse=True)

    def _read(self, saved: _Saved) -> dict[str, bytes] | None:
        """Returns the contents of the files, None if one of them is not what was saved."""
        contents = {}
        for name, (_, digest) in saved.files.items():
            try:
                contents[name] = self._files.cat_file(f"{saved.path}/{name}")
            except FileNotFoundError:
                return None
            if hashlib.sha256(contents[name]).hexdigest() != digest:
                return None
        return contents

    def _put(self, path: str, content: bytes) -> None:
        for left in reversed(range(_TRIES)):
            try:
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._files.pipe_file(path, content)
                return
            except OSError:
                if not left:
                    raise

    def _list(self, path: str) -> list[str]:
        try:
            return sorted(str(p).rstrip("/") for p in self._files.ls(path, detail=False))
        except FileNotFoundError:
            return []

    def _drop(self, paths: Iterable[str]) -> None:
        for path in paths:
            with suppress(FileNotFoundError):  # another attempt was faster
                self._files.rm(path, recursive=True)


def _files_of(folder: Path) -> list[Path]:
    """Returns the files of a folder and its sub-folders, but those that begin with a dot."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent) / name for name in sorted(names) if not name.startswith(".")]
    return found
