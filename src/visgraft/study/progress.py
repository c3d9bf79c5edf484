"""What a running study looks like in a terminal: a table, and the time that is left."""

import heapq
import statistics
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from visgraft.study.store import Store, TrialRecord

__all__ = ["StudyProgress", "seconds_left"]

SHARE = 0.02
"""Of the time of a processor, so much at most is spent on showing how far a study is."""


class StudyProgress:
    """Shows a study as it goes on; where there is no terminal, a line per trial that ends.

    Args:
        store: The study.
        workers: How many trials run at a time.
        threads: CPU threads of each, for the headline.
        enabled: ``False`` shows nothing.
    """

    def __init__(self, store: Store, workers: int, threads: int, *, enabled: bool = True) -> None:
        self._store = store
        self._study = store.study
        self._workers = workers
        self._threads = threads
        self._enabled = enabled
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False)
        self._ended = {_key(trial) for trial in store.trials() if _has_ended(trial)}
        self._began = time.monotonic()
        self._due = self._began

    def __enter__(self) -> "StudyProgress":
        if self._enabled and self._console.is_terminal:
            self._live.start()
        elif self._enabled:
            self._console.print(self._headline(self._store.trials()), style="none", soft_wrap=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._show()
        self._live.stop()

    def update(self) -> None:
        """Shows the state of the store as it is now, or a little later if that is much work."""
        if time.monotonic() >= self._due:
            began = time.thread_time()
            self._show()
            self._due = time.monotonic() + (time.thread_time() - began) / SHARE

    def _show(self) -> None:
        if not self._enabled:
            return
        trials = self._store.trials()
        if self._live.is_started:
            self._live.update(self._screen(trials), refresh=True)
            return
        for trial in trials:
            if _has_ended(trial) and _key(trial) not in self._ended:
                self._ended.add(_key(trial))
                self._console.print(self._line(trial, trials), soft_wrap=True)

    def _headline(self, trials: Sequence[TrialRecord]) -> str:
        finished = sum(trial.status == "finished" for trial in trials)
        threads = f"{self._threads} thread{'s' if self._threads > 1 else ''}"
        return (
            f"{self._study.name}: {finished} of {len(trials)} trials finished, "
            f"{self._workers} at a time, {threads} each"
        )

    def _line(self, trial: TrialRecord, trials: Sequence[TrialRecord]) -> str:
        what = f"{trial.variant} seed {trial.seed} {trial.status} after {trial.seconds:.0f} s"
        if trial.result and self._study.metric in trial.result:
            what += f", {self._study.metric} {trial.result[self._study.metric]:.2f}"
        if trial.error:
            what += f": {trial.error.strip().splitlines()[-1]}"
        ended = sum(map(_has_ended, trials))
        return f"{what} ({ended} of {len(trials)}, {self._clock(trials)})"

    def _clock(self, trials: Sequence[TrialRecord]) -> str:
        left = seconds_left(trials, self._study.recipe.epochs, self._workers)
        return "time left unknown" if left is None else f"{_duration(left)} left"

    def _screen(self, trials: Sequence[TrialRecord]) -> RenderableType:
        epochs = self._study.recipe.epochs
        total = epochs * len(trials)
        done = sum(epochs if _has_ended(trial) else trial.epochs for trial in trials)
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total, done, width=40),
            f"{100 * done // total} %",
            f"{_duration(time.monotonic() - self._began)} so far,",
            self._clock(trials),
        )
        return Group(Text(self._headline(trials)), self._table(trials), bar)

    def _table(self, trials: Sequence[TrialRecord]) -> Table:
        metric = self._study.metric
        table = Table("variant", "finished", "now", f"{metric} so far", box=None)
        by_name = _by_name(trials)
        for name in (self._study.baseline, *self._study.variants, *self._study.controls):
            own = by_name.get(name, [])
            finished = [trial for trial in own if trial.status == "finished"]
            failed = sum(trial.status == "failed" for trial in own)
            values = [t.result[metric] for t in finished if t.result and metric in t.result]
            now = [
                f"seed {trial.seed}: epoch {trial.epochs + 1} of {self._study.recipe.epochs}"
                for trial in own
                if trial.status == "running"
            ]
            table.add_row(
                name,
                f"{len(finished)} of {len(own)}" + (f", {failed} failed" if failed else ""),
                ", ".join(now),
                f"{statistics.fmean(values):.2f}" if values else "",
            )
        return table


def seconds_left(trials: Sequence[TrialRecord], epochs: int, workers: int) -> float | None:
    """Returns how long the rest of a study takes; None as long as no epoch was measured.

    Args:
        trials: All trials of the study.
        epochs: Of each.
        workers: Trials that run at a time.
    """
    paces: dict[str, float] = {}
    for variant, own in _by_name(trials).items():
        measured = [trial for trial in own if trial.epochs]
        if measured:
            paces[variant] = sum(t.seconds for t in measured) / sum(t.epochs for t in measured)
    if not paces:
        return None
    usual = statistics.fmean(paces.values())
    lanes = [0.0] * max(workers, 1)
    for trial in sorted(trials, key=lambda t: t.status != "running"):  # those first, then in order
        if not _has_ended(trial):
            rest = paces.get(trial.variant, usual) * max(epochs - trial.epochs, 0)
            heapq.heapreplace(lanes, lanes[0] + rest)
    return max(lanes)


def _by_name(trials: Sequence[TrialRecord]) -> dict[str, list[TrialRecord]]:
    """Returns the trials of each network."""
    found: dict[str, list[TrialRecord]] = {}
    for trial in trials:
        found.setdefault(trial.variant, []).append(trial)
    return found


def _key(trial: TrialRecord) -> tuple[str, int]:
    """Returns what names a trial within its study."""
    return trial.variant, trial.seed


def _has_ended(trial: TrialRecord) -> bool:
    return trial.status in ("finished", "failed")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
