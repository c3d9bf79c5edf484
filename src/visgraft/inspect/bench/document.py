"""Results as a document: what was measured, where, when and with what."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from visgraft.inspect.bench.cases import CaseMaker
from visgraft.inspect.bench.running import Settings, run_case
from visgraft.inspect.machine import (
    allocator_settings,
    describe_machine,
    machine_limits,
    tuned_environment,
)

__all__ = [
    "ALLOCATORS",
    "check_target",
    "measure_cases",
    "measure_in_children",
    "read_document",
    "unfinished_file",
    "write_document",
]

ALLOCATORS = ("tuned", "default")
_FORMAT = 1


def measure_cases(
    makers: Iterable[CaseMaker],
    settings: Settings,
    *,
    only: Sequence[str] = (),
    quick: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Measures cases in this process, as it is.

    Args:
        makers: Of the cases; one is alive at a time.
        settings: How to measure.
        only: Patterns of names, or of names with shapes (``cot 8 x 64 x *``); nothing for all.
        quick: Measure the machine's limits coarsely.
        tell: Takes one line of progress at a time.
        keep: Takes the document so far after each case.

    Returns:
        The document, with one run.

    Raises:
        ValueError: No case has such a name.
        RuntimeError: Forms that must agree do not.
    """
    makers = list(makers)
    for pattern in only:
        if not any(maker.is_meant([pattern]) for maker in makers):
            raise ValueError(
                f"bench: no case is called {pattern!r}; there are "
                f"{', '.join(dict.fromkeys(maker.name for maker in makers))}"
            )
    chosen = [maker for maker in makers if maker.is_meant(only)]
    small = {"rounds": 1, "small": 1 << 18, "large": 1 << 22, "size": 128} if quick else {}
    limits = machine_limits(
        device=settings.device,
        dtype=settings.dtype,
        clock=settings.clock,
        threads=settings.threads,
        **small,
    )
    machine = describe_machine(settings.device)
    records: list[dict[str, Any]] = []
    document: dict[str, Any] = {}
    for maker in chosen:
        tell(maker.label)
        records += run_case(maker(), settings, limits)
        run = {
            "allocator": "as it is",
            "environment": dict(allocator_settings()),
            "threads": records[0]["threads"],
            "clock": settings.clock,
            "limits": limits.as_dict(),
            "records": records,
        }
        document = {
            "format": _FORMAT,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": str(settings.device),
            "quick": quick,
            "machine": machine,
            "runs": [run],
        }
        keep(document)
    return document


def measure_in_children(
    command: Sequence[str],
    allocators: Sequence[str],
    *,
    threads: int | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Measures in one child process after another, with and without the allocator's settings.

    Args:
        command: Arguments for Python that measure in the process as it is and write the document
            to the file named by one more argument.
        allocators: ``'tuned'`` sets ``GLIBC_TUNABLES`` so that large blocks are kept;
            ``'default'`` removes it.
        threads: Of OpenMP in the children; None leaves them.
        keep: Takes what there is when a child fails or is interrupted, if it is anything.

    Returns:
        One document, with one run for each.

    Raises:
        RuntimeError: A child failed; it has said why.
    """
    document: dict[str, Any] | None = None
    for allocator in allocators:
        bare = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
        tuned = tuned_environment(bare, threads=threads)
        child = tuned if allocator == "tuned" else {**tuned, "GLIBC_TUNABLES": ""}
        with tempfile.TemporaryDirectory(prefix="visgraft-bench-") as folder:
            file = Path(folder) / "document.json"
            try:
                done = subprocess.run([sys.executable, *command, str(file)], env=child, check=False)
            finally:
                whole = file.exists()
                part = _part(file if whole else unfinished_file(file), allocator)
                document = _joined(document, part)
                if document is not None and not whole:
                    keep(document)
        if done.returncode:
            raise RuntimeError(
                f"bench: the process with the {allocator} allocator ended with status "
                f"{done.returncode}; what it said stands above"
            )
    if document is None:
        raise RuntimeError("bench: no allocator was named, nothing was measured")
    return document


def _part(file: Path, allocator: str) -> dict[str, Any] | None:
    """Returns what a child wrote, None where it wrote nothing."""
    if not file.exists():
        return None
    part = read_document(file)
    part["runs"][0]["allocator"] = allocator
    return part


def _joined(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    if first is None or second is None:
        return first or second
    return {**first, "runs": [*first["runs"], *second["runs"]]}


def read_document(file: Path) -> dict[str, Any]:
    """Reads a document.

    Raises:
        ValueError: The file holds something else, or was written by another version.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"bench: {file} is not JSON ({error}); measure again") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(
            f"bench: {file} is not a document of this version's `visgraft bench`; measure again"
        )
    return document


def check_target(file: Path) -> None:
    """Makes sure that a file can be written, and leaves everything as it is.

    Raises:
        ValueError: It is a folder, or its folder is a file or cannot be written to.
    """
    if file.is_dir():
        raise ValueError(f"bench: {file} is a folder; name a file")
    folder = file.absolute().parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise ValueError(f"bench: {file} cannot be written: {folder} is not a folder")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"bench: {file} cannot be written: {error.strerror}; name another"
        ) from error


def unfinished_file(file: Path) -> Path:
    """Returns where the cases measured so far stand while a document is being made."""
    return file.with_suffix(f".unfinished{file.suffix}")


def write_document(document: dict[str, Any], file: Path) -> None:
    """Writes a document beside its place and moves it there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
