"""Decoding every file before training, and remembering which were fine."""

import hashlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

from visgraft.data.images import explain, probe_image

__all__ = ["Checked", "check_images"]

logger = logging.getLogger("visgraft.data")

_CHUNK = 64
_TINY = 16 * 1024  # bytes
_CACHE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Checked:
    """What decoding a file told.

    Attributes:
        size: Bytes of the file.
        mtime_ns: When it was changed last.
        height: Pixels.
        width: Pixels.
        problem: Why it cannot be read, ``None`` if it can.
    """

    size: int
    mtime_ns: int
    height: int = 0
    width: int = 0
    problem: str | None = None


def check_images(
    root: Path, names: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> dict[str, Checked]:
    """Decodes the files ``names`` below ``root``, in threads.

    Readable files are remembered by path, size and time of change in the user's cache folder, so
    that the next call only asks the file system. A cache that cannot be read or written is ignored.

    Args:
        root: Absolute path of the data set.
        names: Paths below it.
        progress: Called with (files done, files to do) now and then.

    Returns:
        What is known of each name.
    """
    known = _load_cache(root)
    checked: dict[str, Checked] = {}
    unknown: list[str] = []
    total_size = 0
    for name in names:
        seen = known.get(name)
        size, mtime_ns = _status(root, name)
        if seen is not None and (seen.size, seen.mtime_ns) == (size, mtime_ns):
            checked[name] = seen
        else:
            unknown.append(name)
            total_size += size
    if not unknown:
        return checked

    def check_chunk(start: int) -> list[Checked]:
        return [_check(root, name) for name in unknown[start : start + _CHUNK]]

    # The work on a tiny file is nearly all Python's own, and threads would wait for each other.
    tiny = total_size < _TINY * len(unknown)
    pool = ThreadPoolExecutor(1 if tiny else min(16, os.cpu_count() or 1), "visgraft-scan")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on files that it can read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            done = 0
            for results in pool.map(check_chunk, range(0, len(unknown), _CHUNK)):
                checked.update(zip(unknown[done : done + _CHUNK], results, strict=True))
                done += len(results)
                if progress is not None:
                    progress(done, len(unknown))
    finally:
        pool.shutdown(cancel_futures=True)
        if any(name in checked and checked[name].problem is None for name in unknown):
            _save_cache(root, known | checked)
    return checked


def _status(root: Path, name: str) -> tuple[int, int]:
    """Returns size and time of change, or two impossible numbers for a broken link."""
    try:
        status = os.stat(os.path.join(root, name))
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _check(root: Path, name: str) -> Checked:
    """Decodes one file."""
    size, mtime_ns = _status(root, name)
    try:
        height, width = probe_image(os.path.join(root, name))
    except Exception as error:
        return Checked(size, mtime_ns, problem=explain(error))
    return Checked(size, mtime_ns, height, width)


def _cache_path(root: Path) -> Path:
    """Returns where the results for a data set are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:24]
    return Path(base) / "visgraft" / "scans" / f"{key}.json"


def _cache_header(root: Path) -> dict[str, Any]:
    """Returns what must be equal for a cache to be believed."""
    return {"version": _CACHE_VERSION, "pillow": PIL.__version__, "root": str(root)}


def _load_cache(root: Path) -> dict[str, Checked]:
    """Returns what an earlier scan found readable; nothing if there is no sound cache."""
    try:
        content = json.loads(_cache_path(root).read_bytes())
        if content["header"] != _cache_header(root):
            return {}
        columns = (content[column] for column in ("size", "mtime_ns", "height", "width"))
        rows = zip(content["names"], *columns, strict=True)
        return {name: Checked(*numbers) for name, *numbers in rows}
    except Exception as error:
        logger.debug("no cache of image checks for %s: %s", root, error)
        return {}


def _save_cache(root: Path, checked: dict[str, Checked]) -> None:
    """Remembers the readable files, if the cache folder can be written."""
    good = {name: seen for name, seen in checked.items() if seen.problem is None}
    content = {
        "header": _cache_header(root),
        "names": list(good),
        "size": [seen.size for seen in good.values()],
        "mtime_ns": [seen.mtime_ns for seen in good.values()],
        "height": [seen.height for seen in good.values()],
        "width": [seen.width for seen in good.values()],
    }
    try:
        path = _cache_path(root)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except (OSError, RuntimeError) as error:
        logger.debug("cannot remember the image checks of %s: %s", root, error)
