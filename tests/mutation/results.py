"""What the last mutation check found: per block and edit, the first stage and test that failed."""

import json
from pathlib import Path

__all__ = ["FILE", "read", "write"]

FILE = Path(__file__).parent / "results.json"
Results = dict[str, dict[str, dict[str, str | None]]]


def read() -> Results:
    """Returns the records; none where there is no file."""
    return json.loads(FILE.read_text()) if FILE.is_file() else {}


def write(results: Results) -> None:
    """Writes the records, sorted by block and edit."""
    FILE.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
