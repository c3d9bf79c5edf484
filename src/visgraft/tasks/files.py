"""Files that are there whole or not at all, and a folder that one process at a time writes to."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from visgraft.tasks.errors import TrainingError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["locked", "remove_parts", "write_atomically"]

PATIENCE = 10.0  # seconds: the loader processes of a killed run hold its lock until they notice
_LOCK = ".lock"
_PART = ".part"


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a crash, meets the old content or the new one.

    Raises:
        OSError: It cannot be written; the old content is still there.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{_PART}")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def remove_parts(folder: Path) -> None:
    """Removes what writers that were killed left in a folder; no other may be writing there."""
    for part in folder.glob(f".*{_PART}"):
        with suppress(OSError):
            part.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[IO[str]]:
    """Keeps other processes from training in ``folder``; a killed process lets go by itself.

    Yields the lock: a process that inherits the file holds it, too.

    The folder is made if it is not there, and taken away again if nothing was written into it.
    Where the file system has no locks, nothing is kept out.

    Raises:
        TrainingError: Another process is at work there.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / _LOCK
    with lock.open("a") as file:
        deadline = time.monotonic() + PATIENCE
        while not _try_lock(file):
            if time.monotonic() >= deadline:
                raise TrainingError(
                    f"another process is training in {folder}; wait for it or choose another folder"
                )
            time.sleep(0.1)
        try:
            yield file
        finally:
            if is_new and list(folder.iterdir()) == [lock]:
                with suppress(OSError):
                    lock.unlink()
                    folder.rmdir()


def _try_lock(file: IO[str]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system
        return True
    return True
