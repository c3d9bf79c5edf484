"""Trains a run on several devices: a process for each, and the caller, which watches over them.

The processes (`visgraft.tasks.rank`) get the variables that torchrun would give them, and
Lightning's DDP strategy does the rest. They live no longer than the caller: each ends when the
pipe to its standard input closes, so a caller that is killed leaves nobody behind, and together
with the caller they hold the lock of the run's folder.

The first process tells the caller each epoch and waits for an answer, so that whatever the caller
does with the epoch's files is done before the next epoch changes them.
"""

import json
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from socket import create_server
from typing import IO, Any

import torch
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy

from visgraft.tasks.child_process import python_environment
from visgraft.tasks.errors import TrainingError
from visgraft.tasks.recipe import Recipe

__all__ = [
    "LostDeviceError",
    "RankJob",
    "RankTracebackError",
    "data_parallel",
    "train_on_devices",
]

POLL_SECONDS = 0.2
GRACE_SECONDS = 5.0  # for the cause to show, once something else than it was seen
STOP_SECONDS = 5.0
HOST = "127.0.0.1"


@dataclass(frozen=True)
class RankJob:
    """What each process must know; plain values, since they travel.

    Attributes:
        recipe: All fields.
        folder: Of the run.
        fingerprint: Of the images that the caller has.
        devices: How many processes there are.
        threads: CPU threads of each.
        progress: Whether the first one shows how far the run is.
        keep: See `visgraft.tasks.training.train`.
    """

    recipe: dict[str, Any]
    folder: str
    fingerprint: str
    devices: int
    threads: int
    progress: bool
    keep: str

    @classmethod
    def of(cls, recipe: Recipe, folder: Path, fingerprint: str, **how: Any) -> "RankJob":
        """Shares out the threads of torch among the processes of a run."""
        threads = max(1, torch.get_num_threads() // recipe.devices)
        fields = recipe.model_dump(mode="json")
        return cls(fields, str(folder), fingerprint, recipe.devices, threads, **how)


class LostDeviceError(TrainingError):
    """A process died; the text says which and how."""


class RankTracebackError(Exception):
    """Where in its own process an error was raised; the cause of the one that the caller sees."""


@dataclass
class _Rank:
    """A process and what is known of it.

    Attributes:
        number: From 0.
        process: It lives as long as the pipe to its standard input is open.
        line: On which it tells things.
        done: Whether it said that it had finished.
        error: What it said to have failed with, and where.
    """

    number: int
    process: "subprocess.Popen[bytes]"
    line: Connection
    done: bool = False
    error: tuple[BaseException, str] | None = field(default=None)

    @property
    def is_lost(self) -> bool:
        """Whether it ended without a word."""
        return self.process.poll() is not None and not self.done and self.error is None

    @property
    def end(self) -> str:
        """How it ended, in words."""
        code = self.process.returncode
        if code == -signal.SIGKILL:
            return "was killed by SIGKILL (as a system does that runs out of memory)"
        if code is not None and code < 0:
            with suppress(ValueError):
                return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"


def data_parallel() -> DDPStrategy:
    """Returns what lets the processes of `train_on_devices` learn together.

    Gradients are added up in the same order in every update, also the first after an interruption:
    torch rearranges them after the first update unless it looks for unused parameters. Buffers are
    left to `visgraft.tasks.callbacks.SharedStatistics`, once an epoch. Time limits are of no use:
    who waits for a process that has died is ended by the caller.
    """
    return DDPStrategy(
        cluster_environment=TorchElasticEnvironment(),
        find_unused_parameters=True,
        broadcast_buffers=False,
        timeout=timedelta(days=1),
    )


def train_on_devices(
    job: RankJob, *, on_epoch: Callable[[dict[str, float]], None], lock: IO[str]
) -> None:
    """Trains until the last epoch; the result is in the run's folder.

    Args:
        job: Of all processes.
        on_epoch: Called with the metrics of each epoch once they are safe on disk; the processes
            wait for it.
        lock: Of the folder; the processes hold it, too.

    Raises:
        LostDeviceError: A process died.
        Exception: Whatever one of the processes failed with.
    """
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    socket = create_server((HOST, 0))  # that of TCPStore would be open to the network
    port = socket.getsockname()[1]
    store = TCPStore(
        HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=socket.detach()
    )
    ranks: list[_Rank] = []
    try:
        for number in range(job.devices):
            ranks.append(_start(job, number, store.port, lock))
        _follow(ranks, on_epoch)
    finally:
        _stop(ranks)


def _start(job: RankJob, number: int, port: int, lock: IO[str]) -> _Rank:
    line, theirs = Pipe(duplex=False)
    variables = {
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # it would advise against looking for unused parameters
        "RANK": number,
        "LOCAL_RANK": number,
        "WORLD_SIZE": job.devices,
        "LOCAL_WORLD_SIZE": job.devices,
        "GROUP_RANK": 0,
        "MASTER_ADDR": HOST,
        "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": True,
    }
    if sys.platform == "linux":
        variables["GLOO_SOCKET_IFNAME"] = "lo"
    module = "visgraft.tasks.rank"
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(theirs.fileno()), json.dumps(asdict(job))],
            stdin=subprocess.PIPE,
            env=python_environment(job.threads) | {k: str(v) for k, v in variables.items()},
            pass_fds=(theirs.fileno(), lock.fileno()),
            start_new_session=True,  # Ctrl-C reaches the caller alone
        )
    return _Rank(number, process, line)


def _follow(ranks: Sequence[_Rank], on_epoch: Callable[[dict[str, float]], None]) -> None:
    """Listens until all processes have finished, or one cannot."""
    trouble_since: float | None = None
    while True:
        ended = [rank for rank in ranks if rank.process.poll() is not None]
        wait([rank.line for rank in ranks if rank not in ended], POLL_SECONDS)
        for rank in ranks:
            _hear(rank, on_epoch)
        failed = [rank for rank in ranks if rank.error or (rank in ended and rank.is_lost)]
        if failed:
            trouble_since = trouble_since or time.monotonic()
            is_over = time.monotonic() - trouble_since > GRACE_SECONDS or len(failed) == len(ranks)
            _raise_cause(failed, is_over=is_over)
        elif len(ended) == len(ranks):
            return


def _hear(rank: _Rank, on_epoch: Callable[[dict[str, float]], None]) -> None:
    """Takes in what a process has told so far."""
    while (told := _next_word(rank)) is not None:
        word, content = told
        if word == "epoch":
            on_epoch(content)
            _answer(rank)
        elif word == "error":
            rank.error = rank.error or _unpacked(*content)
        else:
            rank.done = True


def _next_word(rank: _Rank) -> tuple[str, Any] | None:
    with suppress(EOFError, OSError):  # it ended; how, is asked elsewhere
        if rank.line.poll():
            return rank.line.recv()
    return None


def _answer(rank: _Rank) -> None:
    if rank.process.stdin:
        with suppress(BrokenPipeError):  # likewise
            rank.process.stdin.write(b".")
            rank.process.stdin.flush()


def _unpacked(error: bytes, where: str) -> tuple[BaseException, str]:
    """Returns the error of a process, or its last words where it cannot be rebuilt here."""
    try:
        return pickle.loads(error), where
    except Exception:  # an error class may do anything
        return RuntimeError(where.strip().splitlines()[-1]), where


def _raise_cause(failed: Sequence[_Rank], *, is_over: bool) -> None:
    """Raises what began the trouble; a lost connection is only what follows from it.

    Args:
        failed: Processes that were lost or told an error.
        is_over: Whether nothing more is to be expected.
    """
    errors = [rank.error for rank in failed if rank.error]
    for error, where in errors:
        if not isinstance(error, RuntimeError):
            raise error from RankTracebackError(f"\n{where}")
    lost = [rank for rank in failed if not rank.error]
    aborted = [rank for rank in lost if rank.process.returncode == -signal.SIGABRT]
    for rank in lost:
        if rank not in aborted:
            raise _loss(rank)
    if not is_over:
        return
    for error, where in errors:
        raise error from RankTracebackError(f"\n{where}")
    raise _loss(aborted[0])


def _loss(rank: _Rank) -> LostDeviceError:
    return LostDeviceError(
        f"the process that trains on device {rank.number} {rank.end}; the others were ended"
    )


def _stop(ranks: Sequence[_Rank]) -> None:
    """Ends all processes: asks by closing their pipes, then kills."""
    for rank in ranks:
        if rank.process.stdin:
            with suppress(OSError):
                rank.process.stdin.close()
    for rank in ranks:
        try:
            rank.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            rank.process.kill()
            rank.process.wait()
        rank.line.close()
