"""Kills a study again and again, and compares what it ends with with an undisturbed run.

A small real study runs once in peace on local processes, and once while its driver, its workers or
(on Ray) whole nodes are killed with SIGKILL at random moments; a killed driver is started again, a
killed node is followed by a new one. In the end no trial may be missing, none counted twice, no
finished trial touched again, and every metric of every epoch and every final weight must be the
same to the last bit.

    python -m benchmarks.kill_study --kills 20 --json kills.json
    python -m benchmarks.kill_study --kills 20 --executor ray

Needs Linux (/proc). On Ray, a cluster of three nodes is started on this machine: a head for the
driver, and two with one CPU each for trials.
"""

import argparse
import hashlib
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.kill_victims import Driver, Local, Ray, wait_for

from visgraft.study import Store, load_study
from visgraft.tasks.checkpoint import read_checkpoint

MEASURED = {"seconds"}  # differs from run to run
EARLY = 0.25  # of the kills do not wait until a trial is under way
LEDGER = (
    "CREATE TABLE ledger (trial INTEGER, was TEXT, is_now TEXT)",
    "CREATE TRIGGER book AFTER UPDATE OF status ON trials"
    " BEGIN INSERT INTO ledger VALUES (NEW.id, OLD.status, NEW.status); END",
)


@dataclass
class Kill:
    """One kill.

    Attributes:
        kind: What was killed.
        processes: Of trials that ended with it.
        second: Since the start.
        finished: Trials finished by then.
        running: The trials that ran, with the epochs that they had recorded.
    """

    kind: str
    processes: int
    second: float
    finished: int
    running: list[str]


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


@contextmanager
def driver(folder: Path, options: Sequence[str]) -> Iterator[Driver]:
    """Runs the study of a folder; the process is killed in the end."""
    process = Driver(folder, options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run_in_peace(folder: Path, options: Sequence[str]) -> float:
    """Runs a study without disturbance; returns the seconds."""
    start = time.monotonic()
    with driver(folder, options) as process:
        if process.wait():
            raise SystemExit(f"kill_study: the study failed, see {folder}/drivers.log")
    return time.monotonic() - start


def run_under_fire(
    store: Store,
    executor: Local | Ray,
    options: Sequence[str],
    kinds: list[str],
    dice: random.Random,
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
                if dice.random() < EARLY:
                    time.sleep(dice.uniform(0.0, 10.0))
                else:
                    wait_for(lambda: process.poll() is not None or executor.processes(process))
                    await_epochs(store, process, dice.choice((0, 0, 1, 1, 2)))
                    time.sleep(dice.uniform(0.0, 2.0))
                trials = store.trials()
                kind = kinds[0]
                if process.poll() is not None:
                    continue
                second = time.monotonic() - start
                processes = executor.kill(kind, process, dice)
                if processes is None:
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
                kills.append(Kill(kind, processes, second, len(finished), running))
                print(
                    f"| {len(kills)} | {kind} | {processes} | {second:.0f} | {len(finished)} | "
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
        "processes of trials that ended with a kill": sum(kill.processes for kill in kills),
        "numbers equal": numbers(store) == numbers(peace),
        "numbers compared": sum(map(len, numbers(peace)["curves"].values())),
    }


def main() -> None:
    """Prints a table of the kills, and what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--executor", choices=("local", "ray"), default="local")
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
    workers = ("--workers", str(args.workers))
    print(f"in peace: {run_in_peace(peace.folder, workers):.0f} s\n", flush=True)
    executor = Ray() if args.executor == "ray" else Local()
    try:
        kinds = [executor.kinds[i % len(executor.kinds)] for i in range(args.kills)]
        dice.shuffle(kinds)
        print("| Kill | Of | Its processes | Second | Trials finished | Trials running |")
        print("|--:|---|--:|--:|--:|---|", flush=True)
        options = (*executor.options, *workers)
        kills, written = run_under_fire(store, executor, options, kinds, dice)
    finally:
        executor.close()
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
