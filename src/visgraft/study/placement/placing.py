"""Where in a network should a block go? Screens the places cheaply, then compares the best fairly.

Each rung of the screening and the final study is an ordinary study in a folder of its own; all that
a placement adds is the choice of what comes next, which is written into the rung's store once.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from visgraft.study.errors import StudyError
from visgraft.study.execution import run_study
from visgraft.study.placement.halving import Rung, rank
from visgraft.study.placement.plan import PlacementPlan, plan_placement
from visgraft.study.placement.settings import keep_settings
from visgraft.study.plan import Study
from visgraft.study.reports.data import Summary, summarise
from visgraft.study.reports.writing import report, study_data
from visgraft.study.statistics import Comparison
from visgraft.study.store import Store

__all__ = ["FINAL", "Placement", "RungResult", "place"]

FINAL = "final"
_SURVIVORS = "survivors"


@dataclass(frozen=True)
class RungResult:
    """A round of screening that is over.

    Attributes:
        rung: What was planned.
        summary: Of its study; its verdicts mean nothing here.
        survivors: Names of the places that went on, best first.
    """

    rung: Rung
    summary: Summary
    survivors: tuple[str, ...]

    @property
    def comparisons(self) -> dict[str, Comparison]:
        """The differences to the baseline, by name of the place."""
        return {c.variant: c for c in self.summary.comparisons}


@dataclass(frozen=True)
class Placement:
    """What a placement has found so far.

    Attributes:
        folder: Where everything is.
        plan: What was asked.
        rungs: Those that are over.
        final: The study of the survivors; None as long as it has not ended.
    """

    folder: Path
    plan: PlacementPlan
    rungs: tuple[RungResult, ...] = ()
    final: Summary | None = None

    @property
    def report(self) -> Path:
        """The page with the map of the network."""
        return self.folder / "place.html"

    @property
    def remaining(self) -> tuple[str, ...]:
        """Names of the places that are still in, best first where they were screened."""
        if self.rungs:
            return self.rungs[-1].survivors
        return tuple(candidate.name for candidate in self.plan.candidates.usable)

    @property
    def failed(self) -> int:
        """Training runs that failed, in the screening and in the final study."""
        summaries = [*(rung.summary for rung in self.rungs), *([self.final] if self.final else ())]
        return sum(summary.counts.get("failed", 0) for summary in summaries)

    @property
    def headline(self) -> str:
        """The outcome in one sentence."""
        what = f"{self.plan.wish.block} in {self.plan.recipe.model}"
        if self.final is not None:
            outcome = self.final.headline
            return f"{what}: {outcome[0].lower()}{outcome[1:]}"
        rungs = len(self.plan.rungs)
        return (
            f"{what}: {len(self.rungs)} of {rungs} {'rung' if rungs == 1 else 'rungs'} of the "
            f"screening done, {len(self.remaining)} places left ({', '.join(self.remaining)}); no "
            "statement yet."
        )


def place(
    block: str | PlacementPlan,
    *,
    folder: str | Path | None = None,
    workers: int | None = None,
    threads: int | None = None,
    progress: bool = True,
    measure: bool = True,
    executor: Literal["local", "ray"] = "local",
    address: str | None = None,
    gpus: float | None = None,
    storage: str | None = None,
    **wishes: Any,
) -> Placement:
    """Finds out where in a network a block should go, or goes on with it.

    May be killed at any time and called again with the same arguments: finished trials are kept,
    and who survived a rung stands in that rung's store.

    Args:
        block: Name in the catalogue, or what `plan_placement` has made of it.
        folder: Where everything is written; by default ``runs/place_BLOCK_MODEL``.
        workers: As `run_study` takes them.
        threads: The same.
        progress: Whether to show how far each study is.
        measure: Whether to measure what the networks of the final study cost.
        executor: As `run_study` takes it.
        address: The same.
        gpus: The same.
        storage: The same; each rung and the final study have a folder in it.
        wishes: What else `plan_placement` takes: ``model``, ``data``, ``recipe``, ``seeds`` ...

    Raises:
        StudyError: The question makes no sense, the folder holds another placement, or a rung has
            nothing to go by.
        StudyInterrupted: Ctrl-C; call it again to go on.

    Example:
        >>> place("cot", model="resnet10_small", data="fashion_mini", seeds=1)
        Traceback (most recent call last):
            ...
        visgraft.study.errors.StudyError: place: seeds must be 2 to 1000, got 1; a verdict rests \
on the spread over seeds.
    """
    from visgraft.study.placement.report import write_report

    if isinstance(block, PlacementPlan) and wishes:
        raise StudyError(f"place: {', '.join(wishes)} belong to the plan, which is there already.")
    plan = block if isinstance(block, PlacementPlan) else plan_placement(block, **wishes)
    default = f"place_{plan.wish.block}_{plan.recipe.model.replace('/', '_')}"
    folder = Path("runs") / default if folder is None else Path(folder)
    keep_settings(folder, plan)

    def run(study: Study, name: str, *, measure: bool, pictures: bool) -> None:
        run_study(
            study,
            folder / name,
            workers=workers,
            threads=threads,
            progress=progress,
            measure=measure,
            pictures=pictures,
            executor=executor,
            address=address,
            gpus=gpus,
            storage=storage and f"{storage.rstrip('/')}/{name}",
        )

    state = Placement(folder, plan)
    for rung in plan.rungs:
        screen = partial(run, measure=False, pictures=False)
        done = _screen(plan, rung, state.remaining, folder / rung.name, screen)
        state = Placement(folder, plan, (*state.rungs, done))
        write_report(state)
    ordered = [c.name for c in plan.candidates.usable if c.name in state.remaining]
    run(plan.final_study(ordered), FINAL, measure=measure, pictures=True)
    report(folder / FINAL)
    state = Placement(folder, plan, state.rungs, summarise(study_data(folder / FINAL)))
    write_report(state)
    return state


def _screen(
    plan: PlacementPlan,
    rung: Rung,
    names: Sequence[str],
    folder: Path,
    run: Callable[[Study, str], None],
) -> RungResult:
    """Runs a rung, or reads what became of it.

    Who survives is settled in the store the first time: a trial that failed then and would succeed
    now does not change what later rungs are built on, and two processes choose the same.

    Raises:
        StudyError: No candidate has a number.
    """
    order = [c.name for c in plan.candidates.usable if c.name in names]
    store = Store.find(folder)
    chosen = _chosen(store) if store else None
    if chosen is None:
        run(plan.screening_study(rung, order), rung.name)
        summary = summarise(study_data(folder))
        differences = {c.variant: c.mean for c in summary.comparisons}
        if all(difference is None for difference in differences.values()):
            raise StudyError(
                f"place: no training run in {folder} can be compared with the baseline, so no "
                f"place survives; `visgraft study report {folder}` tells why they failed."
            )
        params = {name: plan.by_name[name].params for name in differences}
        ranked = rank(differences, params, higher_is_better=summary.metric.higher_is_better)
        settled = Store.open(folder).settle(_SURVIVORS, json.dumps(ranked[: rung.survivors]))
        chosen = json.loads(settled)
    return RungResult(rung, summarise(study_data(folder)), tuple(chosen))


def _chosen(store: Store) -> list[str] | None:
    """Returns who survived a rung, if that is settled."""
    with store.transaction() as connection:
        query = "SELECT value FROM meta WHERE key = ?"
        row = connection.execute(query, (_SURVIVORS,)).fetchone()
    return None if row is None else json.loads(row[0])
