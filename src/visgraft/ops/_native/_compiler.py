"""The C compiler of this machine, and what it makes of a source file."""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from visgraft.ops._native._cache import find_compiled, keep_compiled

__all__ = ["CompilerError", "compiled"]

_FLAGS = (
    "-std=gnu11", "-O3", "-fPIC", "-shared", "-pthread",
    "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi",
)  # fmt: skip
_TUNINGS = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler knows
_LIMIT = 300  # seconds for one file
_HEADERS = Path(__file__).parent


class CompilerError(Exception):
    """There is no compiler, or it does not do its work."""


@dataclass(frozen=True)
class _Compiler:
    command: tuple[str, ...]
    version: str


def compiled(source: Path, name: str, folder: Path) -> Path:
    """Returns the library made of ``source``, compiled into ``folder`` unless it is there.

    Raises:
        CompilerError: No compiler was found, or it failed; the text says what it said.
    """
    compiler = _find(os.environ.get("CC", ""), os.environ.get("PATH", ""))
    key = _key(source, compiler)
    found = find_compiled(folder, name, key)
    if found is not None:
        return found
    handle, partial = tempfile.mkstemp(prefix=f".{name}-", suffix=".part", dir=folder)
    os.close(handle)
    try:
        _compile(compiler, source, Path(partial))
        return keep_compiled(Path(partial), name, key)
    finally:
        Path(partial).unlink(missing_ok=True)


@cache
def _find(named: str, search: str) -> _Compiler:
    """Returns the compiler that CC names, or else cc, gcc or clang."""
    try:
        candidates = [shlex.split(named)] if named.strip() else [["cc"], ["gcc"], ["clang"]]
    except ValueError as error:
        raise CompilerError(f"CC cannot be split into words: {error}: {named}") from error
    for program, *options in candidates:
        path = shutil.which(program, path=search)
        if path is None:
            continue
        try:
            done = _run([path, *options, "--version"], 60)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompilerError(f"the C compiler {path} does not run: {error}") from error
        if done.returncode != 0:
            raise CompilerError(f"the C compiler {path} does not run: {_first_line(done.stderr)}")
        return _Compiler((path, *options), done.stdout)
    if named.strip():
        raise CompilerError(f"the C compiler that CC names was not found: {named}")
    raise CompilerError("no C compiler was found; install gcc or clang")


def _key(source: Path, compiler: _Compiler) -> str:
    """Returns a hash of everything that the library depends on."""
    headers = [*sorted(_HEADERS.glob("*.h")), *sorted(source.parent.glob("*.h"))]
    parts = [header.read_text() for header in headers]
    parts += [source.read_text(), *compiler.command, compiler.version, *_FLAGS, _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@cache
def _processor() -> str:
    """Returns what distinguishes this machine's processor: folders may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    named = ("flags", "Features", "model", "CPU part", "isa")
    kept = [line for line in lines if line.split(":")[0].strip() in named]
    return "\n".join([platform.machine(), *kept])


def _compile(compiler: _Compiler, source: Path, target: Path) -> None:
    text = ""
    for tuning in _TUNINGS:
        command = [
            *compiler.command, *_FLAGS, *tuning,
            f"-I{_HEADERS}", str(source), "-o", str(target), "-lm",
        ]  # fmt: skip
        try:
            done = _run(command, _LIMIT)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompilerError(f"the C compiler {command[0]} does not run: {error}") from error
        if done.returncode == 0:
            return
        text = text or done.stderr
    raise CompilerError(f"the C compiler {compiler.command[0]} failed: {_first_line(text)}")


def _run(command: Sequence[str], seconds: int) -> subprocess.CompletedProcess[str]:
    """Runs a command, which may say what it likes in any encoding."""
    return subprocess.run(
        command, capture_output=True, text=True, errors="backslashreplace", timeout=seconds
    )


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line]
    return next(iter(errors or lines), "it said nothing")
