"""Lists in json files, one entry per line, there whole or not at all."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from visgraft.tasks.files import write_atomically

__all__ = ["write_json_list"]


def write_json_list(path: str | Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Writes a json file; an old one stays until the new one is complete.

    Raises:
        OSError: It cannot be written.
    """
    lines = ",\n".join(
        json.dumps(entry, separators=(",", ":"), ensure_ascii=False) for entry in entries
    )
    text = f"[\n{lines}\n]\n" if lines else "[]\n"
    write_atomically(Path(path), text.encode("utf-8", "surrogateescape"))
