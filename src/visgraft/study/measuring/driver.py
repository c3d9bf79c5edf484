"""Sees to it that the networks of a finished study are measured, once and undisturbed.

The measuring itself runs in a process of its own, with threads and allocator set before torch is
imported as for trials; this process alone writes the record. A failure here never fails the study.
"""

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from rich.console import Console

from visgraft.study.child_process import child_environment
from visgraft.study.errors import StudyError
from visgraft.study.facts import open_images
from visgraft.study.heartbeats import heartbeats
from visgraft.study.local import WORKER_LOG
from visgraft.study.measuring.cost import MeasuredCost
from visgraft.study.measuring.record import CostRecord, claim_measuring, read_costs
from visgraft.study.store import Store

__all__ = ["When", "measure_costs"]

When = Literal["missing", "always", "never"]

POLL_SECONDS = 0.5
STOP_SECONDS = 5.0


def measure_costs(
    store: Store,
    when: When,
    *,
    in_process: bool = False,
    progress: bool = False,
) -> None:
    """Measures the networks of a study all of whose trials have ended, and records the figures.

    While another process measures them, this one waits; while a trial waits or runs, none does.
    What goes wrong is told in a warning, and the next run tries again.

    Args:
        store: The study.
        when: ``"missing"`` measures unless every network with a finished trial has its figures;
            all are measured anew then, since figures of two moments do not belong together.
        in_process: Measure in this process, which may know networks that others do not.
        progress: Say so on standard error.
    """
    if when == "never":
        return
    before = read_costs(store).time
    try:
        while names := _wanted(store, before, always=when == "always"):
            with claim_measuring(store) as claim:
                if claim is None:
                    time.sleep(POLL_SECONDS)
                elif names := _wanted(store, before, always=when == "always"):
                    if progress:
                        _tell(names)
                    measure = _measure_here if in_process else _measure_in_child
                    with heartbeats(claim.heartbeat):
                        found = measure(store, names, _threads(store))
                    if claim.record(found):
                        return
    except Exception as error:  # the trials are safe, and they are what counts
        warnings.warn(
            f"study: what its networks cost could not be measured ({error}); the trials are kept, "
            "and the next run of the study tries again.",
            stacklevel=3,
        )


def _wanted(store: Store, before: float, *, always: bool) -> list[str]:
    """Returns the networks to be measured now, in the study's order; none if that is done.

    Args:
        store: The study.
        before: When the record was made that this run has found.
        always: Whether a complete record of that time is not enough.
    """
    trials = store.trials()
    if any(trial.status in ("waiting", "running") for trial in trials):
        return []
    names = dict.fromkeys(trial.variant for trial in trials if trial.status == "finished")
    record = read_costs(store)
    if record.time != before:  # made by this run, or by another meanwhile
        missing = names.keys() - record.costs.keys() - record.failures.keys()
    else:
        missing = names.keys() - (set() if always else record.costs.keys())
    return list(names) if missing else []


def _threads(store: Store) -> int:
    """Returns the threads that the study has settled on."""
    return int(store.settle("threads", str(torch.get_num_threads())))


def _measure_here(store: Store, names: Sequence[str], threads: int) -> CostRecord:
    from visgraft.study.measuring.networks import measure_networks

    study = store.study
    return measure_networks(study, names, open_images(store, study.recipe), threads=threads)


def _measure_in_child(store: Store, names: Sequence[str], threads: int) -> CostRecord:
    """Measures in another process; without a network that kills it, if one does."""
    left, failures = list(names), {}
    while left:
        found, at, code = _ask(store, left, threads)
        if found is not None:
            return replace(found, failures={**failures, **found.failures})
        if code >= 0 or at is None:
            raise StudyError(_last_words(store, code))
        failures[at] = f"the process that measured it died of signal {-code} (out of memory?)"
        left.remove(at)
    return CostRecord(failures=failures, time=time.time())


def _ask(
    store: Store, names: Sequence[str], threads: int
) -> tuple[CostRecord | None, str | None, int]:
    """Returns what a process found, the network it was last busy with, and its exit code."""
    command = [sys.executable, "-P", "-m", "visgraft.study.measuring.worker", str(store.folder)]
    found: CostRecord | None = None
    at: str | None = None
    with (store.folder / WORKER_LOG).open("ab") as log:
        process = subprocess.Popen(
            [*command, "--threads", str(threads), "--networks", *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=child_environment(threads),
            start_new_session=True,  # Ctrl-C reaches this process alone
        )
    with process:
        try:
            for line in process.stdout or ():
                answer = json.loads(line)
                at = answer.get("at", at)
                found = _record_from(answer["record"]) if "record" in answer else found
        finally:
            _stop(process)
    return found, at, process.returncode


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a process: asks by closing its pipe, then kills."""
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _record_from(values: dict[str, Any]) -> CostRecord:
    costs = {name: MeasuredCost.from_dict(cost) for name, cost in values["costs"].items()}
    return CostRecord(**{**values, "costs": costs})


def _last_words(store: Store, code: int) -> str:
    lines = (store.folder / WORKER_LOG).read_text(errors="replace").strip().splitlines()
    last = f": {lines[-1].strip()}" if lines else ""
    return f"the process that measures ended with {code}{last}"


def _tell(names: Sequence[str]) -> None:
    many = f"{len(names)} network{'s' if len(names) > 1 else ''}"
    Console(stderr=True).print(
        f"measuring latency and memory of {many}", style="none", highlight=False, soft_wrap=True
    )
