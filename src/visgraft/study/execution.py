"""Runs a study: checks it, opens its folder, lets an executor work, and says what came out."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from visgraft.study.claims import reopen, sweep
from visgraft.study.deciding import check_metric
from visgraft.study.environment import available_cores, describe_environment
from visgraft.study.errors import StudyError
from visgraft.study.facts import open_images
from visgraft.study.local import LocalExecutor
from visgraft.study.matching import find_widths
from visgraft.study.plan import Study, load_study, trials
from visgraft.study.preflight import preflight
from visgraft.study.pricing import macs_of
from visgraft.study.progress import StudyProgress
from visgraft.study.store import Store, TrialRecord

__all__ = ["Executor", "StudyInterrupted", "StudyResult", "run_study"]

_DECISIVE = ("visgraft", "torch", "timm", "torchvision", "cpu_capability", "gpu")
"""Facts of an environment that change the last digits of a result."""


class Executor(Protocol):
    """Where trials run: all that the rest of the study asks of a machine or a cluster."""

    def run(self, store: Store, on_tick: Callable[[], None]) -> None:
        """Returns when every trial of the store is finished or failed.

        Args:
            store: The study; trials are claimed from it.
            on_tick: To be called now and then, to show progress.
        """
        ...


class StudyInterrupted(KeyboardInterrupt):
    """A study was stopped by Ctrl-C; the text says how to go on."""


@dataclass(frozen=True)
class StudyResult:
    """What a run of a study left behind.

    Attributes:
        folder: Of the study; ``visgraft study report`` reads it.
        trials: All trials, in the order in which they were taken up.
    """

    folder: Path
    trials: list[TrialRecord]

    @property
    def finished(self) -> list[TrialRecord]:
        """The trials that ended well."""
        return [trial for trial in self.trials if trial.status == "finished"]

    @property
    def failed(self) -> list[TrialRecord]:
        """The trials that did not; each has its traceback in ``error``."""
        return [trial for trial in self.trials if trial.status == "failed"]


def run_study(
    study: Study | str | Path,
    folder: str | Path,
    *,
    workers: int | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> StudyResult:
    """Runs the trials of a study that are not finished yet.

    May be killed at any time and called again: finished trials are kept, an interrupted one goes on
    from its last epoch, a failed one is tried again. Several calls on one folder share the trials.
    The results do not depend on the number of workers, nor on the order of the trials.

    Args:
        study: A study, or what :func:`load_study` takes.
        folder: Where its record is, or will be.
        workers: Trials at a time, each in a process of its own. By default as many as there are
            cores (GPUs, if the recipe trains on those). 0 runs them one by one in this process,
            the only one that knows blocks and networks which the caller registered.
        threads: CPU threads per trial. By default those of the study's first run (they decide about
            the last digits of the sums), else the cores divided by the workers.
        progress: Whether to show a table, or a line per trial where there is no terminal.

    Raises:
        StudyError: The study cannot run; nothing was trained.
        StudyInterrupted: Ctrl-C; all workers have ended.
    """
    study = study if isinstance(study, Study) else load_study(study)
    folder = Path(folder)
    if workers is not None and workers < 0:
        raise StudyError(f"study: workers must be at least 0, got {workers}.")
    if threads is not None and threads < 1:
        raise StudyError(f"study: threads must be at least 1, got {threads}.")
    store = Store.prepare(folder, study)
    reopen(store)
    if all(trial.status == "finished" for trial in store.trials()):
        return StudyResult(folder, store.trials())
    try:
        data = open_images(store, study.recipe, progress=progress)
        check_metric(study, data)
        if any(control.is_open for control in store.study.controls.values()):
            store = Store.prepare(folder, find_widths(store.study, data))
        study = store.study
        preflight(study, data)
        store.settle("macs_of", macs_of(study.recipe, data))
        threads, lanes = _shares(store, study, workers, threads)
        _warn_of_another_environment(store)
        with StudyProgress(store, lanes, threads, enabled=progress) as display:
            _executor(workers, lanes, threads).run(store, display.update)
    except KeyboardInterrupt:
        sweep(store, blame=False)
        raise StudyInterrupted(
            f"The study in {folder} was stopped; run the same command again to go on."
        ) from None
    return StudyResult(folder, store.trials())


def _executor(workers: int | None, lanes: int, threads: int) -> Executor:
    if workers != 0:
        return LocalExecutor(lanes, threads)
    from visgraft.study.in_process import InProcessExecutor  # imports Lightning

    return InProcessExecutor(threads)


def _shares(
    store: Store, study: Study, workers: int | None, threads: int | None
) -> tuple[int, int]:
    """Returns the threads per trial, which stay for the life of the study, and trials at a time."""
    cores = available_cores()
    if workers == 0:
        usual = torch.get_num_threads()
    else:
        usual = max(1, cores // (workers or _most_workers(study, cores)))
    settled = int(store.settle("threads", str(threads or usual)))
    if threads is not None and threads != settled:
        warnings.warn(
            f"study: its trials so far ran with {settled} threads, now with {threads}: the last "
            "digits of sums, and so the results, may differ between them.",
            stacklevel=3,
        )
    threads = threads or settled
    if workers is None:
        workers = min(_most_workers(study, cores), max(1, cores // threads))
    return threads, max(workers, 1)


def _most_workers(study: Study, cores: int) -> int:
    """Returns how many trials make sense at a time."""
    on_gpu = study.recipe.device != "cpu" and torch.cuda.is_available()
    places = torch.cuda.device_count() if on_gpu else cores
    return min(places, len(trials(study)))


def _warn_of_another_environment(store: Store) -> None:
    """Says what differs between this process and the one that ran the first trials."""
    before = store.environment()
    now = describe_environment()
    found = [
        f"{name} {before.get(name)} then, {now.get(name)} now"
        for name in _DECISIVE
        if before and before.get(name) != now.get(name)
    ]
    if found:
        warnings.warn(
            f"study: the trials so far ran in another environment ({'; '.join(found)}); results "
            "may differ in the last digits, and a trial continued here will not repeat exactly.",
            stacklevel=3,
        )
