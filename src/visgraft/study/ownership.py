"""Who works on a trial, and whether that process is still alive.

A process number alone proves nothing, since numbers are used again: the owner is the process with
that number *and* that start time. Where the process table cannot be read (another machine, another
container), the age of the last heartbeat decides.
"""

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HEARTBEAT_LIMIT", "Owner"]

HEARTBEAT_LIMIT = 120.0
"""Seconds without a heartbeat after which an owner that cannot be looked up counts as dead."""

_PROC = Path("/proc")


@dataclass(frozen=True)
class Owner:
    """A process, identified across machines, reboots and containers.

    Args:
        host: Machine, boot and container whose process table knows the process.
        pid: Its number there.
        born: Its start time, in words of the operating system; empty where that cannot be read.
    """

    host: str
    pid: int
    born: str

    @classmethod
    def current(cls) -> "Owner":
        """Returns the owner that stands for this process."""
        return cls(_host(), os.getpid(), _born(os.getpid()) or "")

    def is_alive(self, heartbeat_age: float) -> bool:
        """Tells whether the process still runs.

        Args:
            heartbeat_age: Seconds since its last sign of life; looked at only where the process
                itself cannot be.
        """
        if self.host == _host() and self.born:
            return _born(self.pid) == self.born
        return heartbeat_age < HEARTBEAT_LIMIT


def _host() -> str:
    """Names the process table that this process lives in."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink(_PROC / "self/ns/pid")
    except OSError:
        boot = space = "-"
    return f"{platform.node()} {boot} {space}"


def _born(pid: int) -> str | None:
    """Returns the start time of a living process, None for one that is gone or a zombie."""
    try:
        if _PROC.is_dir():
            fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
            state, start = fields[0], fields[19]
        else:
            command = ["ps", "-o", "state=,lstart=", "-p", str(pid)]
            answer = subprocess.run(command, capture_output=True, text=True).stdout
            state, _, start = answer.strip().partition(" ")
    except OSError:
        return None
    return start.strip() or None if state[:1] not in ("Z", "X") else None
