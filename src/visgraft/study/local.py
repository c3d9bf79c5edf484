"""Runs trials on persistent processes of this machine."""

import subprocess
import sys
import time
from collections.abc import Callable

from visgraft.study.child_process import child_environment
from visgraft.study.claims import MAX_CRASHES, busy_processes, sweep
from visgraft.study.errors import StudyError
from visgraft.study.store import Store

__all__ = ["LocalExecutor"]

POLL_SECONDS = 0.5
SWEEP_SECONDS = 15.0
STOP_SECONDS = 5.0
WORKER_LOG = "workers.log"


class LocalExecutor:
    """Keeps a number of worker processes busy until no trial waits or runs.

    Workers claim trials from the store themselves. One that dies is replaced, and its trial freed;
    when this process ends, however it ends, they end too.

    Args:
        workers: Most processes at a time.
        threads: CPU threads of each.
        devices: GPUs of each, where there are some.
    """

    def __init__(self, workers: int, threads: int, devices: int = 1) -> None:
        self.workers = workers
        self.threads = threads
        self.devices = devices
        self._processes: dict[int, subprocess.Popen[bytes]] = {}  # by lane

    def run(self, store: Store, on_tick: Callable[[], None]) -> None:
        """Returns when every trial of the store is finished or failed, whoever worked on it.

        Args:
            store: The study.
            on_tick: Called about twice a second.

        Raises:
            StudyError: The workers die without getting anything done.
        """
        swept, done, deaths = time.monotonic(), 0, 0
        try:
            while True:
                died = self._reap()
                if died or time.monotonic() - swept > SWEEP_SECONDS:
                    sweep(store)
                    swept = time.monotonic()
                counts = store.counts()
                on_tick()
                waiting, running = counts.get("waiting", 0), counts.get("running", 0)
                if not waiting and not running:
                    return
                progress = store.epochs() - waiting - running
                deaths = died if progress != done else deaths + died
                done = progress
                if deaths > MAX_CRASHES * (self.workers + 1):
                    raise StudyError(self._explain(store, deaths))
                busy = busy_processes(store)
                idle = sum(process.pid not in busy for process in self._processes.values())
                free = [lane for lane in range(self.workers) if lane not in self._processes]
                for lane in free[: max(0, waiting - idle)]:
                    self._processes[lane] = self._start(store, lane)
                time.sleep(POLL_SECONDS)
        finally:
            self._stop()

    def _start(self, store: Store, lane: int) -> subprocess.Popen[bytes]:
        """Starts a worker; it lives as long as the pipe to its standard input is open."""
        command = [sys.executable, "-P", "-m", "visgraft.study.worker", str(store.folder)]
        with (store.folder / WORKER_LOG).open("ab") as log:
            return subprocess.Popen(
                [*command, "--threads", str(self.threads)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=child_environment(self.threads, lane, self.devices),
                start_new_session=True,  # Ctrl-C reaches this process alone
            )

    def _reap(self) -> int:
        """Forgets the workers that ended; returns how many of them did not end well."""
        ended = {lane: p for lane, p in self._processes.items() if p.poll() is not None}
        for lane in ended:
            self._close(self._processes.pop(lane))
        return sum(process.returncode != 0 for process in ended.values())

    def _stop(self) -> None:
        """Ends all workers: asks by closing their pipes, then kills."""
        for process in self._processes.values():
            self._close(process)
        for process in self._processes.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    @staticmethod
    def _close(process: subprocess.Popen[bytes]) -> None:
        if process.stdin:
            process.stdin.close()

    @staticmethod
    def _explain(store: Store, deaths: int) -> str:
        log = store.folder / WORKER_LOG
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        last = f" The last line of {log}: {lines[-1].strip()}" if lines else ""
        return (
            f"study: {deaths} workers died in a row without finishing an epoch; the trials so far "
            f"are kept, run the same command again once the cause is gone.{last}"
        )
