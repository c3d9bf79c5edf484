"""Puts results of `visgraft bench` that were measured anew in the place of the former ones.

    visgraft bench blocks --only cot --out cot.json
    python -m benchmarks.merge_results benchmarks/results/blocks-cpu.json cot.json

Both must come from one machine, with the same versions and settings. A record that was measured
anew tells its own date.
"""

import argparse
from pathlib import Path
from typing import Any

from visgraft.inspect.bench import read_document, write_document

__all__ = ["main", "merged"]

_RUN = ("allocator", "threads", "clock")


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Returns the old document with the new records, those of new cases at the end.

    Raises:
        ValueError: The documents cannot be compared.
    """
    for what, one, other in _settings(old, new):
        if one != other:
            raise ValueError(f"merge: {what} differs, {one!r} and {other!r}; measure all anew")
    runs = []
    for before, after in zip(old["runs"], new["runs"], strict=True):
        records = {_key(record): record for record in before["records"]}
        records |= {_key(r): {"date": new["date"], **r} for r in after["records"]}
        runs.append({**before, "records": list(records.values())})
    return {**old, "runs": runs}


def _settings(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    found = [(name, old[name], new[name]) for name in ("device", "quick")]
    found += [
        (name, old["machine"][name], new["machine"][name])
        for name in ("cpu", "cpu_capability", "cores", "torch")
    ]
    found += [
        (name, [run[name] for run in old["runs"]], [run[name] for run in new["runs"]])
        for name in _RUN
    ]
    found += [
        (
            name,
            *({record[name] for run in d["runs"] for record in run["records"]} for d in (old, new)),
        )
        for name in ("dtype", "channels_last")
    ]
    return found


def _key(record: dict[str, Any]) -> tuple[str, tuple[int, ...], str]:
    return record["case"], tuple(record["shape"]), record["step"]


def main() -> None:
    """Merges the second file into the first."""
    parser = argparse.ArgumentParser(description="puts new results in the place of old ones")
    parser.add_argument("old", type=Path, help="the file that is changed")
    parser.add_argument("new", type=Path, help="the file with new records")
    options = parser.parse_args()
    write_document(merged(read_document(options.old), read_document(options.new)), options.old)


if __name__ == "__main__":
    main()
