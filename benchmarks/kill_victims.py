"""What dies when a study is killed: its driver, the process of a trial, a node of a cluster."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

COMMAND_LINE = "import sys; from visgraft.cli.main import main; sys.exit(main())"
PATIENCE = 600.0


class Driver:
    """A process that runs the study of a folder.

    A fresh one: the fork of a process that has started a cluster cannot speak with it.

    Args:
        folder: Of the study.
        options: More options of the command line.
    """

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        command = ["study", "run", str(folder / "study.yaml"), "--folder", str(folder)]
        command += ["--threads", "1", "--no-measure", "--quiet", *options]
        with (folder / "drivers.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", COMMAND_LINE, *command], stdout=log, stderr=log
            )
        self.pid = self._process.pid
        self.poll, self.wait, self.kill = (
            self._process.poll,
            self._process.wait,
            self._process.kill,
        )


class Local:
    """Kills the driver of a study, or a worker that holds a trial."""

    kinds = ("driver", "worker")
    options: tuple[str, ...] = ()

    def processes(self, driver: Driver) -> list[int]:
        """Returns the processes that work on trials."""
        return children(driver.pid, "visgraft.study.worker")

    def kill(self, kind: str, driver: Driver, dice: random.Random) -> int | None:
        """Kills; returns how many processes of trials end with it, None if there was no victim."""
        workers = self.processes(driver)
        if kind == "worker":
            return 1 if workers and kill(dice.choice(workers)) else None
        driver.kill()
        driver.wait()
        wait_for(lambda: not any(map(is_alive, workers)))
        return len(workers)

    def close(self) -> None:
        """Nothing is left to end."""


class Ray:
    """Kills the driver, the process of a trial, or a whole node of a cluster on this machine."""

    kinds = ("driver", "worker", "node")

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="kill_")
        settings = {
            "RAY_memory_monitor_refresh_ms": "0",  # which kills, too
            "RAY_worker_niceness": "0",  # else trials barely move beside other work
            "RAY_TMPDIR": self._folder,
        }
        os.environ.update(settings)
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        try:
            self._add(num_cpus=0, include_dashboard=False)
            self._nodes = [self._add(num_cpus=1) for _ in range(2)]
        except BaseException:
            self.close()
            raise
        self.options = ("--executor", "ray", "--address", str(self._cluster.address))

    def _add(self, **options: Any) -> Any:
        """Starts a node; on a busy machine Ray gives up too early, so that a second try is due."""
        options["object_store_memory"] = 80 * 2**20
        try:
            return self._cluster.add_node(**options)
        except Exception as error:
            print(f"a node did not start ({error!r}), another try", flush=True)
            return self._cluster.add_node(**options)

    def processes(self, _: Driver) -> list[int]:
        """Returns the processes that work on trials."""
        return [process for node in self._nodes for process in self._processes_of(node)]

    def kill(self, kind: str, driver: Driver, dice: random.Random) -> int | None:
        """Kills; returns how many processes of trials end with it, None if there was no victim."""
        workers = self.processes(driver)
        if kind == "worker":
            return 1 if workers and kill(dice.choice(workers)) else None
        if kind == "driver":
            driver.kill()
            driver.wait()
            return len(workers)
        place = dice.randrange(len(self._nodes))
        node = self._nodes[place]
        workers = self._processes_of(node)
        kill(self._raylet(node))
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes[place] = self._add(num_cpus=1)
        return len(workers)

    def _processes_of(self, node: Any) -> list[int]:
        return children(self._raylet(node), "ray::.*visgraft_trial")

    @staticmethod
    def _raylet(node: Any) -> int:
        return node.all_processes["raylet"][0].process.pid

    def close(self) -> None:
        """Ends the cluster."""
        self._cluster.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


def children(parent: int, pattern: str) -> list[int]:
    """Returns the living children of a process whose command line or title fits a pattern."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, owner = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
        if int(owner) == parent and state != "Z" and re.search(pattern, command):
            found.append(int(entry.name))
    return found


def is_alive(pid: int) -> bool:
    """Tells whether a process still runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int) -> bool:
    """Kills a process; False if it was gone."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition: Callable[[], Any], pause: float = 0.02) -> Any:
    """Returns what a condition says as soon as it says something."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise SystemExit("kill_study: waited in vain, see the log in the folder")
        time.sleep(pause)
    return found
