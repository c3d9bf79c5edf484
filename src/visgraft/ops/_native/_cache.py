"""The folder of compiled libraries: private, filled by whole files only, checked before use.

A file is named after what went into it and after its own content, ``<name>-<key>-<digest>.so``, so
that one that is damaged is not loaded.
"""

import atexit
import hashlib
import os
import shutil
import stat
import tempfile
from functools import cache
from pathlib import Path

__all__ = ["UnsafeFolderError", "cache_folder", "find_compiled", "keep_compiled"]

_DIGITS = 24  # of each hash in a file name


class UnsafeFolderError(Exception):
    """The cache folder could have been filled by somebody else."""


def cache_folder() -> Path:
    """Returns a folder that only this user can write to, created where it is missing.

    It is ``visgraft/native`` in ``XDG_CACHE_HOME``, or in ``~/.cache``; where that cannot be
    written, a temporary folder that goes with the process.

    Raises:
        UnsafeFolderError: The folder belongs to another user, or others may write to it.
    """
    folder = _usual_folder()
    if folder is None:
        return _temporary_folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return _temporary_folder()
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise UnsafeFolderError(f"the cache folder {folder} belongs to another user")
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise UnsafeFolderError(
            f"the cache folder {folder} can be written by others; chmod 700 it or remove it"
        )
    return folder if os.access(folder, os.W_OK | os.X_OK) else _temporary_folder()


def find_compiled(folder: Path, name: str, key: str) -> Path | None:
    """Returns the undamaged file of this name and key, or None; a damaged one is removed."""
    for path in sorted(folder.glob(f"{name}-{key[:_DIGITS]}-*.so")):
        try:
            if path.stem.rpartition("-")[2] == _digest(path):
                return path
            path.unlink()
        except FileNotFoundError:
            continue  # another process has just removed it
    return None


def keep_compiled(built: Path, name: str, key: str) -> Path:
    """Gives a file that was built in the cache folder its final name, in one step."""
    final = built.with_name(f"{name}-{key[:_DIGITS]}-{_digest(built)}.so")
    return built.replace(final)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGITS]


def _usual_folder() -> Path | None:
    """Returns where caches of this user are kept, or None without a home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if Path(named).is_absolute():
        return Path(named, "visgraft", "native")
    try:
        return Path.home() / ".cache" / "visgraft" / "native"
    except RuntimeError:
        return None


@cache
def _temporary_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="visgraft-native-")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child leaves it to its parent
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return Path(folder)
