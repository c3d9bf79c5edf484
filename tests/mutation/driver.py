"""Makes wrong edits in copies of the package and asks the tests about each.

Every stage of every edit runs in a process of its own, forked from one that has imported the
libraries but nothing of the package.
"""

import io
import os
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.mutation.edits import Edit
from tests.mutation.targets import STAGES, TARGETS, Selection

__all__ = ["PACKAGE", "ROOT", "caught_by"]

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "visgraft"
LIBRARIES = (
    "torch",
    "torch._dynamo",
    "torch.export",
    "torchvision",
    "hypothesis",
    "safetensors.torch",
)
LONGEST = 1200  # seconds that a stage may take; a test that does not end has noticed the edit


def caught_by(block: str, edit: Edit | None) -> tuple[str, str] | None:
    """Returns the first stage that notices an edit and its first failing test, or None.

    Args:
        block: Name in the catalogue.
        edit: None for the package as it is, which nothing should notice.

    Raises:
        RuntimeError: The tests do not run, so that they say nothing about the edit.
    """
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Path(folder) / "visgraft"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if edit is not None:
            (copy / edit.file).write_text(edit.apply(PACKAGE))
        for stage, selection in zip(STAGES, TARGETS[block], strict=True):
            test = _first_failure(selection, Path(folder))
            if test is not None:
                return stage, test
    return None


def _first_failure(selection: Selection, source: Path) -> str | None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for library in LIBRARIES:
        import_module(library)
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(selection, source, sender))
    process.start()
    sender.close()
    if not receiver.poll(LONGEST):
        process.kill()
        return f"no end after {LONGEST} s"
    try:
        code, test, output = receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode == 1:
            raise RuntimeError(f"pytest does not start for {selection}") from None
        return f"the process ended with {process.exitcode}"
    process.join()
    if code not in (0, 1) or (code == 1) != (test is not None):
        raise RuntimeError(f"pytest ended with {code} for {selection}:\n{output}")
    return test


def _run(selection: Selection, source: Path, sender: Connection) -> None:
    import pytest

    os.chdir(ROOT)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the tests need none
    sys.dont_write_bytecode = True
    output, watch = io.StringIO(), _Watch(source)
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-o", f"pythonpath={source} {ROOT}"]
    if selection.expression:
        arguments += ["-k", selection.expression]
    with redirect_stdout(output), redirect_stderr(output):
        code = pytest.main([*arguments, *selection.files], plugins=[watch])
    sender.send((int(code), watch.failed, output.getvalue()[-4000:]))


class _Watch:
    """Sees that the copy is what is tested, and which test fails first."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.failed: str | None = None

    def pytest_collection_finish(self) -> None:
        where = Path(import_module("visgraft").__file__ or "")
        if self.source not in where.parents:
            raise RuntimeError(f"the tests import {where}, not the copy in {self.source}")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid
