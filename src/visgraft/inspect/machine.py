"""What a machine is and how fast it copies and multiplies, measured where the rest is measured."""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from visgraft._version import __version__
from visgraft.inspect._clock import Clock, check_clock, seconds_of
from visgraft.inspect._kept import keeping_process

__all__ = [
    "TUNED_ALLOCATOR",
    "Limits",
    "allocator_settings",
    "describe_machine",
    "machine_limits",
    "tuned_environment",
]

TUNED_ALLOCATOR = (
    "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184:"
    "glibc.malloc.top_pad=268435456"
)
_ALLOCATOR_VARIABLES = ("GLIBC_TUNABLES", "LD_PRELOAD", "PYTORCH_CUDA_ALLOC_CONF")


@dataclass(frozen=True)
class Limits:
    """What the machine reached on its simplest work.

    Attributes:
        copy_small: Bytes read and written per second by a copy that fits the last cache.
        copy_large: The same, through main memory.
        multiply: Floating-point operations per second of a matrix product; a multiplication and
            an addition are two.
        dtype: Of the matrices.
    """

    copy_small: float
    copy_large: float
    multiply: float
    dtype: str

    def as_dict(self) -> dict[str, Any]:
        """Returns plain numbers and texts, ready for JSON."""
        return asdict(self)


def machine_limits(
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    clock: Clock = "cpu",
    threads: int | None = None,
    rounds: int = 7,
    small: int = 4 << 20,
    large: int = 128 << 20,
    size: int = 1024,
) -> Limits:
    """Measures copies and a matrix product, the best of the rounds each.

    Args:
        device: To be measured.
        dtype: Of the matrices.
        clock: As of ``measure_side_by_side``.
        threads: Of torch; None leaves them.
        rounds: Readings of each.
        small: Bytes of the tensor whose copy, with its source, fits the last cache.
        large: Bytes of the tensor whose copy does not.
        size: Rows and columns of the matrices.

    Raises:
        ValueError: The clock does not fit the device.

    Example:
        >>> machine_limits(rounds=1, large=1 << 20, small=1 << 16, size=64).multiply > 0
        True
    """
    place = torch.device(device)
    check_clock("machine_limits", clock, place)
    with keeping_process(threads, place), torch.no_grad():
        copies = []
        for bytes_ in (small, large):
            source = torch.zeros(bytes_ // 4, device=place)
            target = torch.empty_like(source)

            def copy(source: torch.Tensor = source, target: torch.Tensor = target) -> None:
                target.copy_(source)

            repeats = max(1, (64 << 20) // bytes_)
            copy()
            best = min(seconds_of(copy, clock, place, repeats) for _ in range(rounds))
            copies.append(2 * bytes_ / best)
        left = torch.randn(size, size, device=place).to(dtype)
        product = torch.empty_like(left)

        def multiply() -> None:
            torch.mm(left, left, out=product)

        multiply()
        best = min(seconds_of(multiply, clock, place) for _ in range(rounds))
    return Limits(copies[0], copies[1], 2 * size**3 / best, str(dtype).removeprefix("torch."))


def allocator_settings() -> Mapping[str, str]:
    """Returns the variables of this process's environment that change how memory is handed out."""
    found = {n: os.environ[n] for n in _ALLOCATOR_VARIABLES if os.environ.get(n)}
    return MappingProxyType(found)


def tuned_environment(
    environment: Mapping[str, str] | None = None, *, threads: int | None = None
) -> dict[str, str]:
    """Returns an environment for a child process whose allocator keeps large blocks.

    glibc hands large blocks back to the system after each use, and the page faults of fetching
    them again cost up to half of the time of memory-bound layers. Settings for memory that are
    there already are kept; so are those of other allocators.

    Args:
        environment: To start from; None for that of this process.
        threads: Also the threads of OpenMP, which then wait passively; None leaves them.

    Example:
        >>> tuned_environment({}, threads=2)["OMP_NUM_THREADS"]
        '2'
    """
    tuned = dict(os.environ if environment is None else environment)
    if not any(tuned.get(name) for name in ("GLIBC_TUNABLES", "LD_PRELOAD")):
        tuned["GLIBC_TUNABLES"] = TUNED_ALLOCATOR
    if threads is not None:
        passive = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
        tuned |= {"OMP_NUM_THREADS": str(threads), **passive}
    return tuned


def describe_machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Returns processor, cores, load, GPU and versions, as plain values."""
    place = torch.device(device)
    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "load": [round(n, 2) for n in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "visgraft": __version__,
    }
    if place.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(place), "cuda": torch.version.cuda}
    return facts


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo")
    if lines.is_file():
        for line in lines.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
