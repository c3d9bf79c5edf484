"""Kills a study again and again, and compares what it ends with with an undisturbed run.

A small real study runs once in peace, and once while its driver or its workers are killed with
SIGKILL at random moments; a killed driver is started again. In the end no trial may be missing,
none counted twice, no finished trial touched again, and every metric of every epoch and every
final weight must be the same to the last bit.

    python benchmarks/kill_study.py --kills 20 --json kills.json

Needs Linux (/proc).
"""

import argparse
import hashlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import visgraft.study.execution
import visgraft.tasks.training  # noqa: F401 (what a driver would import, too)
from visgraft.cli.main import main as command_line
from visgraft.study import Store, load_study
from visgraft.tasks.checkpoint import read_checkpoint

MEASURED = {"seconds"}  # differs from run to run
LEDGER = (
    "CREATE TABLE ledger (trial INTEGER, was TEXT, is_now TEXT)",
    "CREATE TRIGGER book AFTER UPDATE OF status ON trials"
    " BEGIN INSERT INTO ledger VALUES (NEW.id, OLD.status, NEW.status); END",
)
PATIENCE = 600.0


@dataclass
class Kill:
    """One kill.

    Attributes:
        kind: What was killed.
        second: Since the start.
        finished: Trials finished by then.
        running: The trials that ran, with the epochs that they had recorded.
    """

    kind: str
    second: float
    finished: int
    running: list[str]


class Local:
    """Kills the driver of a study, or a worker that holds a trial."""

    kinds = ("driver", "worker")

    def kill(self, kind: str, driver: "Driver", dice: random.Random) -> bool:
        """Kills; False if there was nothing to kill."""
        workers = children(driver.pid, "visgraft.study.worker")
        if kind == "worker":
            return bool(workers) and kill(dice.choice(workers))
        driver.kill()
        driver.wait()
        wait_for(lambda: not any(map(is_alive, workers)))
        return True


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


def plan(seeds: int, epochs: int) -> dict[str, Any]:
    """Returns the fields of a small real study."""
    return {
        "recipe": {
            "data": "fashion_mini",
            "model": "resnet10_small",
            "model_args": {"channels": [8, 8, 16, 16]},
            "train_limit": 300,
            "val_limit": 200,
            "epochs": epochs,
            "batch_size": 30,
            "loggers": "none",
            "device": "cpu",
        },
        "variants": {"ca": {"block": "coord_attention", "at": "block_end"}},
        "seeds": seeds,
    }


class Driver:
    """A process that runs the study of a folder, forked from this one, which has all imports.

    Args:
        folder: Of the study.
        options: More options of the command line.
    """

    def __init__(self, folder: Path, options: list[str]) -> None:
        command = ["study", "run", str(folder / "study.yaml"), "--folder", str(folder)]
        command += ["--threads", "1", "--no-measure", "--quiet", *options]
        self._process = get_context("fork").Process(target=self._run, args=(folder, command))
        self._process.start()
        self.pid: int = self._process.pid or 0

    @staticmethod
    def _run(folder: Path, command: list[str]) -> None:
        with (folder / "drivers.log").open("ab") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        sys.exit(command_line(command))

    def poll(self) -> int | None:
        """Returns the exit code, None while it runs."""
        return self._process.exitcode

    def wait(self) -> int:
        """Waits for its end and returns the exit code."""
        self._process.join()
        return self._process.exitcode or 0

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._process.kill()


@contextmanager
def driver(folder: Path, options: list[str]) -> Iterator[Driver]:
    """Runs the study of a folder; the process is killed in the end."""
    process = Driver(folder, options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run_in_peace(folder: Path, options: list[str]) -> float:
    """Runs a study without disturbance; returns the seconds."""
    start = time.monotonic()
    with driver(folder, options) as process:
        if process.wait():
            raise SystemExit(f"kill_study: the study failed, see {folder}/drivers.log")
    return time.monotonic() - start


def run_under_fire(
    store: Store, executor: Local, options: list[str], kinds: list[str], dice: random.Random
) -> tuple[list[Kill], dict[Path, int]]:
    """Runs a study while it is killed.

    Returns:
        The kills, and when the checkpoint of each trial was written that a kill found finished.
    """
    start, kills = time.monotonic(), list[Kill]()
    written: dict[Path, int] = {}
    while True:
        with driver(store.folder, options) as process:
            while kinds and process.poll() is None:
                wait_for(lambda: process.poll() is not None or is_at_work(store))
                await_epochs(store, process, dice.choice((0, 0, 0, 1, 2)))
                time.sleep(dice.uniform(0.0, 2.0))
                trials = store.trials()
                kind = kinds[0]
                if process.poll() is not None or not executor.kill(kind, process, dice):
                    continue
                kinds.pop(0)
                finished = [t for t in trials if t.status == "finished"]
                for trial in finished:
                    path = store.trial_folder(trial.variant, trial.seed) / "last.ckpt"
                    written.setdefault(path, path.stat().st_mtime_ns)
                running = [
                    f"{t.variant}-{t.seed} after {t.epochs} epochs"
                    for t in trials
                    if t.status == "running"
                ]
                kills.append(Kill(kind, time.monotonic() - start, len(finished), running))
                print(
                    f"| {len(kills)} | {kind} | {kills[-1].second:.0f} | {len(finished)} | "
                    f"{', '.join(running) or 'none'} |",
                    flush=True,
                )
                if kind == "driver":
                    break
            else:
                code = process.wait()
                if code == 0:
                    return kills, written
                print(f"the driver ended with exit code {code}, it is started again", flush=True)


def await_epochs(store: Store, process: Driver, more: int) -> None:
    """Waits until so many more epochs are recorded, or the driver has ended."""
    target = store.epochs() + more
    wait_for(lambda: process.poll() is not None or store.epochs() >= target)


def is_at_work(store: Store) -> bool:
    """Tells whether a trial runs."""
    return bool(store.counts().get("running"))


def numbers(store: Store) -> dict[str, Any]:
    """Returns every number that a study has found, and digests of the final weights."""
    return {
        "curves": {
            f"{variant}-{seed} epoch {epoch}": {
                name: value.hex() for name, value in metrics.items() if name not in MEASURED
            }
            for variant, seed, epoch, metrics in store.curves()
        },
        "weights": {
            f"{t.variant}-{t.seed}": weights(store.trial_folder(t.variant, t.seed) / "last.ckpt")
            for t in store.trials()
        },
        "facts": {
            f"{t.variant}-{t.seed}": (t.params, t.macs, t.init_digest, t.order_digest)
            for t in store.trials()
        },
    }


def weights(path: Path) -> str:
    """Returns a digest of all tensors of a checkpoint."""
    digest = hashlib.sha256()
    for name, tensor in sorted(read_checkpoint(path)["state_dict"].items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def judge(
    store: Store, peace: Store, kills: list[Kill], written: dict[Path, int]
) -> dict[str, Any]:
    """Returns the figures of the end."""
    with store.transaction() as connection:
        ledger = connection.execute("SELECT trial, was, is_now FROM ledger").fetchall()
        ids = {row[0] for row in connection.execute("SELECT id FROM trials")}
    finished = Counter(trial for trial, _, now in ledger if now == "finished")
    again = 0
    taken_up = 0
    for trial in store.trials():
        log = store.trial_folder(trial.variant, trial.seed) / "log.txt"
        text = log.read_text() if log.exists() else ""
        complete = Counter(re.findall(r"epoch (\d+), train_loss", text))
        again += sum(count - 1 for count in complete.values())
        taken_up += trial.attempts - 1
    return {
        "kills": dict(Counter(kill.kind for kill in kills)),
        "trials": len(ids),
        "lost": sum(finished[trial] == 0 for trial in ids),
        "counted twice": sum(finished[trial] > 1 for trial in ids),
        "touched after their end": sum(was == "finished" for _, was, _ in ledger)
        + sum(path.stat().st_mtime_ns != then for path, then in written.items()),
        "found finished by a kill, checkpoint unchanged since": len(written),
        "complete epochs trained again": again,
        "epochs cut short and begun again": taken_up,
        "trials that were running at a kill": sum(len(kill.running) for kill in kills),
        "numbers equal": numbers(store) == numbers(peace),
        "numbers compared": sum(map(len, numbers(peace)["curves"].values())),
    }


def main() -> None:
    """Prints a table of the kills, and what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--luck", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--folder", type=Path, help="keep the studies there")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    folder = (args.folder or Path(tempfile.mkdtemp(prefix="kill_study_"))).absolute()
    study = load_study(plan(args.seeds, args.epochs))
    peace, store = (Store.prepare(folder / name, study) for name in ("peace", "fire"))
    with store.transaction(write=True) as connection:
        for statement in LEDGER:
            connection.execute(statement)
    dice = random.Random(args.luck)
    executor = Local()
    options = ["--workers", str(args.workers)]
    kinds = [executor.kinds[i % len(executor.kinds)] for i in range(args.kills)]
    dice.shuffle(kinds)
    print(f"in peace: {run_in_peace(peace.folder, options):.0f} s\n", flush=True)
    print("| Kill | Of | Second | Trials finished | Trials running |\n|--:|---|--:|--:|---|")
    kills, written = run_under_fire(store, executor, options, kinds, dice)
    found = judge(store, peace, kills, written)
    print()
    for name, value in found.items():
        print(f"{name}: {value}")
    if args.json:
        log = [asdict(kill) for kill in kills]
        args.json.write_text(json.dumps({**found, "log": log}, indent=1) + "\n")
    good = found["numbers equal"] and not any(
        found[name] for name in ("lost", "counted twice", "touched after their end")
    )
    sys.exit(0 if good and len(kills) == args.kills else 1)


if __name__ == "__main__":
    main()
