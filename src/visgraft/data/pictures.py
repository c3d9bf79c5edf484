"""Picture files that a user points at, one by one or by their folders, without labels."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from visgraft.data._errors import DataError
from visgraft.data._folder import walk
from visgraft.data._scan import Checked, check_images
from visgraft.data.images import explain, read_image

__all__ = ["PictureFile", "find_pictures"]

_NAMED = 20  # bad files that are named one by one

logger = logging.getLogger("visgraft.data")


@dataclass(frozen=True)
class PictureFile:
    """A file that was decoded and found fine.

    Attributes:
        path: As the user wrote it.
        name: Below the folder that the user named, with ``/``; the file's name if it was named
            itself.
        height: As a viewer shows it, in pixels.
        width: The same.
    """

    path: Path
    name: str
    height: int
    width: int

    def read(self) -> Image.Image:
        """Returns the picture as a viewer shows it, in RGB with 8 bits.

        Raises:
            DataError: It has changed since it was decoded.
        """
        try:
            picture = read_image(self.path)
        except Exception as error:
            raise DataError(
                f"{self.path} could be read when it was checked and cannot now: "
                f"{explain(error)}; repair the file, or start again with on_bad_image='skip'"
            ) from error
        if picture.size != (self.width, self.height):
            raise DataError(
                f"{self.path} has {picture.width} x {picture.height} pixels and had "
                f"{self.width} x {self.height} when it was checked; start again"
            )
        return picture


def find_pictures(
    sources: Iterable[str | Path],
    *,
    on_bad_image: Literal["error", "skip"] = "error",
    progress: Callable[[int, int], None] | None = None,
) -> list[PictureFile]:
    """Returns the files named, and all files in the folders named and in their folders.

    Every visible file in a folder is taken for a picture; its content decides, not the ending of
    its name. All are decoded once; what was fine is remembered, as by `load_data`.

    Args:
        sources: Files and folders. Files of a folder are sorted by name.
        on_bad_image: ``"error"`` names all files that cannot be decoded; ``"skip"`` leaves them
            out, each with a line in the log ``visgraft.data``.
        progress: Called with (files decoded, files to decode) now and then.

    Raises:
        DataError: A source is not there, a folder holds no file, a file cannot be decoded, or
            nothing is left.
    """
    if on_bad_image not in ("error", "skip"):
        raise DataError(
            f"find_pictures: on_bad_image must be one of error, skip, got {on_bad_image!r}"
        )
    wanted = [entry for source in sources for entry in _list(Path(source).expanduser())]
    names: dict[Path, list[str]] = {}
    for root, name in wanted:
        names.setdefault(root, []).append(name)
    checked: dict[tuple[Path, str], Checked] = {}
    for root, of_root in names.items():
        seen = check_images(root.absolute(), list(dict.fromkeys(of_root)), progress)
        checked |= {(root, name): known for name, known in seen.items()}
    bad = {key: known.problem for key, known in checked.items() if known.problem is not None}
    lines = [f"{root / name}: {problem}" for (root, name), problem in bad.items()]
    if bad and on_bad_image == "error":
        more = [f"... and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
        raise DataError(
            f"find_pictures: {len(bad)} of {len(checked)} files cannot be read as images; repair "
            "or remove them, or leave them out with on_bad_image='skip':\n  "
            + "\n  ".join(lines[:_NAMED] + more)
        )
    for line in lines:
        logger.warning("skipped %s", line)
    found = [
        PictureFile(root / name, name, checked[root, name].height, checked[root, name].width)
        for root, name in wanted
        if (root, name) not in bad
    ]
    if not found:
        raise DataError("find_pictures: there is no picture to read; name files or folders of some")
    return found


def _list(path: Path) -> list[tuple[Path, str]]:
    """Returns folder and name of each file that a path stands for."""
    if path.is_dir():
        if not (names := sorted(walk(path))):
            raise DataError(f"find_pictures: folder {path} holds no files")
        return [(path, name) for name in names]
    if not path.exists():
        raise DataError(f"find_pictures: there is no file or folder {path}")
    return [(path.parent, path.name)]
