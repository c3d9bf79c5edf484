"""What a trial runs with: versions, machine, threads."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from visgraft import __version__

__all__ = ["available_cores", "describe_environment"]

_PACKAGES = ("timm", "torchvision", "pytorch-lightning", "numpy")
_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores() -> int:
    """Returns the number of CPU cores that this process may use, at least 1.

    The affinity of the process and the quota of its container count, not what the machine has.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = _CPU_QUOTA.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or "max"
        return cores


def describe_environment() -> dict[str, Any]:
    """Returns the facts about this process that results may depend on."""
    facts: dict[str, Any] = {
        "visgraft": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # with the build, which the package's metadata lacks
    }
    for package in _PACKAGES:
        facts[package] = metadata.version(package)
    facts["platform"] = platform.platform()
    facts["cpu"] = _cpu_name()
    facts["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    facts["cores"] = available_cores()
    facts["threads"] = torch.get_num_threads()
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
    commit = _commit()
    if commit:
        facts["git"] = commit
    return facts


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """Returns the commit of visgraft's checkout, with a plus sign if files were changed."""
    checkout = Path(__file__).parents[3]
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
