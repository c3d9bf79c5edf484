"""Runs a study: checks it, opens its folder, lets an executor work, and says what came out."""

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import torch

from visgraft.study.claims import reopen, sweep
from visgraft.study.cluster.wishes import RayWishes, check_wishes
from visgraft.study.deciding import check_metric
from visgraft.study.devices import check_devices, check_threads, most_workers
from visgraft.study.environment import available_cores, describe_environment
from visgraft.study.errors import StudyError
from visgraft.study.facts import check_images
from visgraft.study.local import LocalExecutor
from visgraft.study.matching import find_widths
from visgraft.study.measuring.driver import When, measure_costs
from visgraft.study.plan import Study, load_study, trials
from visgraft.study.preflight import preflight
from visgraft.study.pricing import macs_of
from visgraft.study.progress import StudyProgress
from visgraft.study.reports.explaining import draw_pictures
from visgraft.study.store import Store, TrialRecord
from visgraft.tasks.images import RunData, load_images

__all__ = ["Executor", "StudyInterrupted", "StudyResult", "run_study"]

_DECISIVE = ("visgraft", "torch", "timm", "torchvision", "cpu_capability", "gpu")
"""Facts of an environment that change the last digits of a result."""
_WHEN: Mapping[bool | str, When] = {True: "missing", False: "never", "again": "always"}


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
    measure: bool | Literal["again"] = True,
    pictures: bool = True,
    executor: Literal["local", "ray"] = "local",
    address: str | None = None,
    gpus: float | None = None,
    storage: str | Path | None = None,
) -> StudyResult:
    """Runs the trials of a study that are not finished yet, then measures what its networks cost.

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
        measure: Whether to measure latency and memory of all networks side by side, once no trial
            is left: some seconds per network. Figures that are there are kept, unless a network
            was added or ``"again"`` asks for new ones.
        pictures: Whether to draw what the networks of the first seed look at; classifiers only.
        executor: ``"local"`` trains on this machine, ``"ray"`` on those of a Ray cluster: then
            ``threads`` is also the number of CPUs that a trial takes, and ``workers`` is by default
            as many as there is room for. This process alone writes the record.
        address: For Ray: ``HOST:PORT`` of the head node; by default the cluster that this machine
            belongs to (``"auto"``).
        gpus: For Ray: what a trial takes. By default as many as the recipe has ``devices``, where
            it may use them and the cluster has some; a trial on a single one may share it with
            others (0 to 1).
        storage: For Ray: a path or a URL of fsspec where trials keep their checkpoints, if the
            machines do not all see ``folder``.

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
    if measure not in _WHEN:
        raise StudyError(f"study: measure must be True, False or 'again', got {measure!r}.")
    check_threads(study, threads)
    check_wishes(executor, workers, address=address, gpus=gpus, storage=storage)
    study = Store.resolve(folder, study)
    costs = partial(measure_costs, when=_WHEN[measure], in_process=workers == 0, progress=progress)
    try:
        known = Store.find(folder)
        if known and _is_finished(known, study):
            store = Store.prepare(folder, study)
            costs(store)
            return StudyResult(folder, store.trials())
        if executor == "local":
            check_devices(study)
        wishes = RayWishes(address or "auto", gpus, storage)
        with wishes.connected(study, threads) if executor == "ray" else nullcontext() as places:
            study, data = _examine(known, study, progress)
            store = Store.prepare(folder, study)
            reopen(store)
            check_images(store, study.recipe, data)
            store.settle("macs_of", macs_of(study.recipe, data))
            runner: Executor
            if places:
                threads = _settle_threads(store, threads, places.usual_threads)
                runner = places.executor(threads, data.fingerprint, workers)
                lanes = runner.room()
            else:
                threads, lanes = _shares(store, study, workers, threads)
                runner = _executor(workers, lanes, threads, study.recipe.devices)
                _warn_of_another_environment(store)
            with StudyProgress(store, lanes, threads, enabled=progress) as display:
                runner.run(store, display.update)
        costs(store)
        if pictures:
            draw_pictures(store, data)
    except KeyboardInterrupt:
        if known := Store.find(folder):
            sweep(known, blame=False)
        raise StudyInterrupted(
            f"The study in {folder} was stopped; run the same command again to go on."
        ) from None
    return StudyResult(folder, store.trials())


def _is_finished(store: Store, study: Study) -> bool:
    """Tells whether no trial of a study is left."""
    finished = {(t.variant, t.seed) for t in store.trials() if t.status == "finished"}
    return all((spec.variant, spec.seed) in finished for spec in trials(study))


def _examine(known: Store | None, study: Study, progress: bool) -> tuple[Study, RunData]:
    """Finds what keeps a study from running, before anything is written.

    Args:
        known: What its folder holds.
        study: The widths of its controls may be missing.
        progress: Whether to show a bar while images are read.

    Returns:
        The study with all widths, and its images.

    Raises:
        StudyError: It cannot run.
        DataError: Nor can its images be used.
    """
    data = load_images(study.recipe, progress)
    if known and any(trial.attempts for trial in known.trials()):
        check_images(known, study.recipe, data)
    check_metric(study, data)
    if any(control.is_open for control in study.controls.values()):
        study = find_widths(study, data)
    preflight(study, data)
    return study, data


def _executor(workers: int | None, lanes: int, threads: int, devices: int) -> Executor:
    if workers != 0:
        return LocalExecutor(lanes, threads, devices)
    from visgraft.study.in_process import InProcessExecutor  # imports Lightning

    return InProcessExecutor(threads)


def _shares(
    store: Store, study: Study, workers: int | None, threads: int | None
) -> tuple[int, int]:
    """Returns the threads per trial, which stay for the life of the study, and trials at a time."""
    cores = available_cores()
    if workers == 0:
        usual = max(study.recipe.devices, torch.get_num_threads())
    else:
        usual = max(study.recipe.devices, cores // (workers or most_workers(study, cores)))
    threads = _settle_threads(store, threads, usual)
    if workers is None:
        workers = min(most_workers(study, cores), max(1, cores // threads))
    return threads, max(workers, 1)


def _settle_threads(store: Store, threads: int | None, usual: int) -> int:
    """Returns the threads per trial: those asked for, or those of the study's first run."""
    settled = int(store.settle("threads", str(threads or usual)))
    if threads is not None and threads != settled:
        warnings.warn(
            f"study: its trials so far ran with {settled} threads, now with {threads}: the last "
            "digits of sums, and so the results, may differ between them.",
            stacklevel=3,
        )
    return threads or settled


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
