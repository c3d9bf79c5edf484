"""How a study of ten thousand trials fares: seconds and memory of its record and its report.

The trials are made up, nothing is trained: what is measured is everything around the training.
Each step runs in a process of its own, which is forked from one that has imported all it needs.

    python benchmarks/study_scale.py --variants 100 --seeds 100 --epochs 10
"""

import argparse
import io
import json
import multiprocessing
import os
import resource
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.console import Console

from visgraft.study import load_study, progress, trial
from visgraft.study.claims import busy_processes, claim_next, sweep
from visgraft.study.facts import TrialFacts
from visgraft.study.plan import Study
from visgraft.study.progress import StudyProgress
from visgraft.study.reports.data import StudyData, Summary, from_store, summarise
from visgraft.study.reports.files import render_csv, render_markdown, render_trials_csv
from visgraft.study.reports.page import render_html
from visgraft.study.reports.writing import terminal_table
from visgraft.study.store import Store

METRICS = ("train_loss", "loss", "top1", "top5", "lr", "seconds")
BY_HAND = 20
"""Trials whose bookkeeping is timed one by one."""


def made_up_plan(variants: int, seeds: int, epochs: int) -> Study:
    """Returns a study of so many networks (the baseline among them) and seeds."""
    gate = {"block": "global_context", "at": "block_end"}
    changes = {
        f"reduction_{i:03}": gate | {"options": {"reduction": i}} for i in range(1, variants)
    }
    recipe = {
        "data": "fashion_mini",
        "model": "resnet10_small",
        "epochs": epochs,
        "loggers": "none",
        "device": "cpu",
    }
    return load_study({"recipe": recipe, "variants": changes, "seeds": seeds})


def fill(store: Store, count: int, epochs: int) -> None:
    """Marks the next ``count`` trials as finished, with made-up numbers."""
    rng = np.random.default_rng(0)
    facts = json.dumps({"torch": "2", "threads": 1})
    with store.transaction(write=True) as connection:
        connection.execute("INSERT OR IGNORE INTO environments (facts) VALUES (?)", (facts,))
        rows = connection.execute(
            "SELECT id, seed FROM trials WHERE status = 'waiting' ORDER BY position LIMIT ?",
            (count,),
        ).fetchall()
        for number, seed in rows:
            curves = rng.normal(50, 1, (epochs, len(METRICS))).tolist()
            result = json.dumps(dict(zip(METRICS, curves[-1], strict=True)))
            connection.execute(
                "UPDATE trials SET status = 'finished', attempts = 1, epochs = ?, started = 1,"
                " finished = 2, seconds = 60, params = 70000, macs = 3000000, init_digest = ?,"
                " order_digest = ?, result = ?, environment = 1 WHERE id = ?",
                (epochs, f"weights-{seed}", f"order-{seed}", result, number),
            )
            connection.executemany(
                "INSERT INTO metrics VALUES (?, ?, ?, ?)",
                [
                    (number, epoch, name, value)
                    for epoch, values in enumerate(curves, 1)
                    for name, value in zip(METRICS, values, strict=True)
                ],
            )


def bookkeeping(store: Store, count: int) -> None:
    """Takes up and finishes trials as a worker does, with a training that takes no time."""
    row = {"epoch": 1.0} | dict.fromkeys(METRICS, 1.0)

    def train(recipe: Any, _: Path, *, on_epoch: Any, **__: Any) -> Any:
        history = [row | {"epoch": float(epoch + 1)} for epoch in range(recipe.epochs)]
        for epoch in history:
            on_epoch(epoch)
        return SimpleNamespace(data_order=f"order-{recipe.seed}", metrics=history)

    def facts(recipe: Any, _: Any) -> TrialFacts:
        return TrialFacts(70000, 3000000, f"weights-{recipe.seed}", f"order-{recipe.seed}")

    trial.train, trial.gather_facts = train, facts
    trial.open_images = lambda *_: None
    trial.describe_environment = lambda: {"torch": "2", "threads": 1}
    for _ in range(count):
        claim = claim_next(store)
        if claim:
            trial.work_on(claim)
    failed = [record.error for record in store.trials() if record.status == "failed"]
    if failed:
        raise RuntimeError(failed[0])


def ticks(store: Store, count: int) -> None:
    """Shows the progress so often in a terminal that is none."""
    with StudyProgress(store, 2, 1) as display:
        for _ in range(count):
            display._due = 0.0  # as if enough time had gone by
            display.update()


def looks(store: Store, count: int) -> None:
    """Looks as often what there is to do, as the local executor does."""
    for _ in range(count):
        store.counts()
        store.epochs()
        busy_processes(store)


class Stopwatch:
    """Runs steps in forked processes and prints what each took."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def run(self, name: str, step: Callable[[], Any], *, count: int = 1) -> None:
        """Runs a step, and divides its time by ``count``."""
        receiver, sender = multiprocessing.Pipe(duplex=False)
        child = os.fork()
        if not child:
            _report(step, sender)
        os.waitpid(child, 0)
        if not receiver.poll():
            raise SystemExit(f"{name}: the step failed")
        seconds, processor, memory, size = receiver.recv()
        row = {
            "step": name,
            "seconds": seconds / count,
            "cpu_seconds": processor / count,
            "peak_mib": memory,
            "bytes": size,
        }
        self.rows.append(row)
        size_text = f"{size / 1e6:.1f} MB" if size else ""
        print(
            f"| {name} | {row['seconds']:.3f} | {row['cpu_seconds']:.3f} | {memory:.0f} |"
            f" {size_text} |",
            flush=True,
        )


def _report(step: Callable[[], Any], sender: Any) -> None:
    """Runs a step in this process, sends what it took, and ends the process."""
    try:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, processor = time.perf_counter(), time.process_time()
        found = step()
        seconds, used = time.perf_counter() - start, time.process_time() - processor
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        size = len(found.encode()) if isinstance(found, str) else 0
        sender.send((seconds, used, peak / 1024, size))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", type=int, default=100, help="networks, the baseline among")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    plan = made_up_plan(args.variants, args.seeds, args.epochs)
    total = args.variants * args.seeds
    progress.Console = lambda **_: Console(file=io.StringIO(), force_terminal=True, width=100)
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        print("| Step | seconds | CPU seconds | MiB more at the peak | written |")
        print("|---|--:|--:|--:|--:|")
        watch.run("create the store", lambda: Store.prepare(folder, plan))
        watch.run("open it again", lambda: Store.prepare(folder, plan))
        store = Store.open(folder)
        fill(store, total - 2 * BY_HAND, args.epochs)
        watch.run("claim and give back", lambda: _claims(store), count=BY_HAND)
        watch.run("bookkeeping of a trial", lambda: bookkeeping(store, BY_HAND), count=BY_HAND)
        claim_next(store)
        watch.run("look what there is to do", lambda: looks(store, BY_HAND), count=BY_HAND)
        watch.run("show the progress", lambda: ticks(store, BY_HAND), count=BY_HAND)
        watch.run("sweep", lambda: sweep(store))
        fill(store, BY_HAND, args.epochs)
        watch.run("read the trials", store.trials)
        watch.run("read the curves", store.curves)
        watch.run("read it all for a report", lambda: from_store(store))
        _reports(watch, from_store(store))
        size = sum(path.stat().st_size for path in Path(folder).glob("study.*"))
        print(f"\n{total} trials; the store has {size / 1e6:.1f} MB.")
    if args.json:
        args.json.write_text(json.dumps({"store_bytes": size, "steps": watch.rows}, indent=1))


def _claims(store: Store) -> None:
    for _ in range(BY_HAND):
        if claim := claim_next(store):
            claim.release()


def _reports(watch: Stopwatch, data: StudyData) -> None:
    watch.run("summarise", lambda: summarise(data))
    summary = summarise(data)
    renderers: dict[str, Callable[[Summary], str]] = {
        "trials.csv": render_trials_csv,
        "report.csv": render_csv,
        "report.md": render_markdown,
        "report.html": render_html,
    }
    for name, render in renderers.items():
        watch.run(name, lambda render=render: render(summary))
    watch.run("table in the terminal", lambda: terminal_table(data))


if __name__ == "__main__":
    main()
