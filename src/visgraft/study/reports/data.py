"""What a report is made of: the facts of a study, and what follows from them.

`StudyData` holds facts only and is filled from a store (or by hand); `summarise` draws the
conclusions once, for all forms of the report.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import yaml

from visgraft.study.measuring.cost import MeasuredCost
from visgraft.study.measuring.record import read_costs, unmeasured
from visgraft.study.reports.checks import Check, check_fairness
from visgraft.study.reports.others import Other, other_metrics
from visgraft.study.reports.pictures import Pictures, read_pictures
from visgraft.study.statistics import Comparison, compare, compare_each, headline
from visgraft.tasks.metric_names import Metric, TaskMetrics, task_metrics

if TYPE_CHECKING:
    from visgraft.study.control import Control
    from visgraft.study.plan import Variant
    from visgraft.study.store import Store

__all__ = ["Metric", "Row", "StudyData", "Summary", "Trial", "from_store", "summarise"]


@dataclass(frozen=True)
class Trial:
    """One training run, as far as it has come.

    Attributes:
        variant: Name of the variant or of the baseline.
        seed: Its seed.
        status: ``"waiting"``, ``"running"``, ``"finished"`` or ``"failed"``.
        value: The metric that decides, after the last epoch of a finished trial.
        epochs: Epochs done.
        seconds: Time spent on it.
        params: Parameters of the network.
        macs: Multiplications with addition for one image.
        error: Traceback of a failed trial.
        init_digest: Digest of the initial weights outside the grafts.
        order_digest: Digest of the order of the training images.
        metrics: All metrics after the last epoch of a finished trial, by name.
    """

    variant: str
    seed: int
    status: str = "waiting"
    value: float | None = None
    epochs: int = 0
    seconds: float | None = None
    params: int | None = None
    macs: int | None = None
    error: str | None = None
    init_digest: str | None = None
    order_digest: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyData:
    """All facts that a report shows.

    Attributes:
        name: Title.
        baseline: Name of the network without change.
        variants: What each variant changes, in words, by name; without the baseline.
        controls: The same of each control.
        matched: The widened controls: name of the variant that each was made as large as.
        frozen: The identity controls: name of the variant whose blocks they have.
        task: What the networks learn to do.
        macs_of: What the MACs were counted on.
        measured: Latency and memory of each network, by name, where they were measured.
        unmeasured: Why a network has none, by its name, where others have.
        measured_on: The machine and its versions.
        measured_of: What was measured, in words.
        measured_share: Of that time, in which the machine computed for it; None where not known.
        pictures: What the networks look at, where it was drawn.
        seeds: All seeds.
        trials: All trials, begun or not.
        metric: The metric that decides.
        curves: (variant, seed, epoch, metrics by name) of every epoch.
        other_networks: Variants whose network is not the baseline's with grafts, so that their
            initial weights cannot be its.
        recipe: Fields of the recipe that all trials share.
        environments: Every distinct environment that trials ran in.
        fingerprint: Digest of the data set and its split.
        study_file: The study as YAML text, enough to repeat it.
        folder: Where it lives, as the reader would write it.
    """

    name: str
    baseline: str
    variants: Mapping[str, str]
    seeds: tuple[int, ...]
    trials: tuple[Trial, ...] = ()
    metric: str = "top1"
    curves: Sequence[tuple[str, int, int, Mapping[str, float]]] = ()
    other_networks: frozenset[str] = frozenset()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    environments: Sequence[Mapping[str, Any]] = ()
    fingerprint: str | None = None
    study_file: str = ""
    folder: str = "study"
    controls: Mapping[str, str] = field(default_factory=dict)
    matched: Mapping[str, str] = field(default_factory=dict)
    frozen: Mapping[str, str] = field(default_factory=dict)
    task: str = "classification"
    macs_of: str = "one image"
    measured: Mapping[str, MeasuredCost] = field(default_factory=dict)
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    measured_on: Mapping[str, Any] = field(default_factory=dict)
    measured_of: str = ""
    measured_share: float | None = None
    pictures: Pictures | None = None

    @property
    def known_metrics(self) -> TaskMetrics:
        """The metrics of the task."""
        return task_metrics(self.task)

    @property
    def values(self) -> dict[tuple[str, int], float]:
        """The metric of every finished trial, by (variant, seed)."""
        return {(t.variant, t.seed): t.value for t in self.trials if t.value is not None}


@dataclass(frozen=True)
class Row:
    """The baseline or a variant, over its finished trials; ``None`` where nothing is known."""

    name: str
    changes: str
    values: Mapping[int, float]
    mean: float | None
    sd: float | None
    params: int | None
    macs: int | None
    seconds: float | None
    comparison: Comparison | None
    measured: MeasuredCost | None = None


@dataclass(frozen=True)
class Summary:
    """A study with its conclusions.

    Attributes:
        data: The facts.
        metric: How to read the metric.
        others: The metrics that do not decide, by their name and that of the network.
        rows: The baseline, then the variants in the study's order.
        comparisons: One per variant, then one per control; the controls are a family of their own
            in Holm's correction.
        against: Each variant against its widened control, the control's name first; a third family.
        headline: The outcome in one sentence.
        checks: Whether the comparison was fair.
        counts: Number of trials by status.
        troubles: Trials that are not finished, or whose value is not a number.
    """

    data: StudyData
    metric: Metric
    others: Mapping[str, Mapping[str, Other]]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    against: tuple[tuple[str, Comparison], ...]
    headline: str
    checks: tuple[Check, ...]
    counts: Mapping[str, int]
    troubles: tuple[Trial, ...]

    @property
    def unfair(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(c for c in self.checks if c.passed is False)

    @property
    def progress(self) -> str:
        """How far the study is, a sentence."""
        total, finished = len(self.data.trials), self.counts.get("finished", 0)
        if total and finished == total:
            return f"All {total} trials finished."
        rest = ", ".join(
            f"{self.counts[status]} {status}"
            for status in ("failed", "running", "waiting")
            if status in self.counts
        )
        words = f"{finished} of {total} trials finished{f' ({rest})' if rest else ''}"
        going_on = "running" in self.counts or "waiting" in self.counts
        return f"{words}: the numbers are preliminary." if going_on else f"{words}."


def summarise(data: StudyData) -> Summary:
    """Draws the conclusions from the facts."""
    metric = data.known_metrics.metrics.get(data.metric, Metric(data.metric))
    how: dict[str, Any] = {"higher_is_better": metric.higher_is_better, "unit": metric.unit}
    pairs = ((names, data.baseline) for names in (list(data.variants), list(data.controls)))
    variants, controls = (compare(n, b, data.seeds, data.values, **how) for n, b in pairs)
    against = compare_each(data.matched, data.seeds, data.values, **how)
    comparisons = [*variants, *controls]
    words = {**data.variants, **data.controls}
    trials: dict[str, list[Trial]] = {}
    for trial in data.trials:
        trials.setdefault(trial.variant, []).append(trial)
    costs = data.measured
    plain = data.baseline
    rows = [_row(plain, "the network as it is", trials, None, costs.get(plain))]
    for comparison in comparisons:
        name = comparison.variant
        rows.append(_row(name, words[name], trials, comparison, costs.get(name)))
    counts: dict[str, int] = {}
    for trial in data.trials:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    return Summary(
        data=data,
        metric=metric,
        others=other_metrics(data),
        rows=tuple(rows),
        comparisons=tuple(comparisons),
        against=tuple(against),
        headline=headline(variants, unit=metric.unit),
        checks=check_fairness(data),
        counts=counts,
        troubles=tuple(t for t in data.trials if not _is_usable(t)),
    )


def from_store(store: "Store") -> StudyData:
    """Reads the facts from a study's folder, finished or not."""
    study, costs = store.study, read_costs(store)
    values = store.final(study.metric)
    return StudyData(
        name=study.name,
        baseline=study.baseline,
        variants={name: _in_words(variant) for name, variant in study.variants.items()},
        seeds=study.seeds,
        trials=tuple(
            Trial(
                variant=record.variant,
                seed=record.seed,
                status=record.status,
                value=values.get((record.variant, record.seed)),
                epochs=record.epochs,
                seconds=record.seconds,
                params=record.params,
                macs=record.macs,
                error=record.error,
                init_digest=record.init_digest,
                order_digest=record.order_digest,
                metrics=(record.result or {}) if record.status == "finished" else {},
            )
            for record in store.trials()
        ),
        metric=study.metric,
        curves=store.curves(),
        other_networks=frozenset(
            (
                *(name for name, v in study.variants.items() if v.model or v.model_args),
                *(name for name, c in study.controls.items() if c.kind == "widened"),
            )
        ),
        recipe=study.recipe.model_dump(mode="json", exclude={"grafts", "seed"}),
        environments=store.environments(),
        fingerprint=_settled(store, "data"),
        study_file=yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False),
        folder=str(store.folder),
        controls={
            name: _control_in_words(control, study.recipe.model)
            for name, control in study.controls.items()
        },
        matched={n: c.of for n, c in study.controls.items() if c.kind == "widened"},
        frozen={n: c.of for n, c in study.controls.items() if c.kind == "identity"},
        task=study.recipe.task,
        macs_of=_settled(store, "macs_of") or "one image",
        measured=costs.costs,
        unmeasured=unmeasured(costs, study, store.trials()),
        measured_on=costs.environment,
        measured_of=costs.of,
        measured_share=costs.share,
        pictures=read_pictures(store.folder),
    )


def _settled(store: "Store", key: str) -> str | None:
    with store.transaction() as connection:
        row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return row[0] if row else None


def _row(
    name: str,
    changes: str,
    trials: Mapping[str, Sequence[Trial]],
    comparison: Comparison | None,
    measured: MeasuredCost | None,
) -> Row:
    own = trials.get(name, ())
    finished = [t for t in own if t.status == "finished"]
    values = {t.seed: t.value for t in finished if t.value is not None and _is_usable(t)}
    seconds = [t.seconds for t in finished if t.seconds is not None]
    return Row(
        name=name,
        changes=changes,
        values=values,
        mean=fmean(values.values()) if values else None,
        sd=stdev(values.values()) if len(values) > 1 else None,
        params=next((t.params for t in own if t.params is not None), None),
        macs=next((t.macs for t in own if t.macs is not None), None),
        seconds=fmean(seconds) if seconds else None,
        comparison=comparison,
        measured=measured,
    )


def _is_usable(trial: Trial) -> bool:
    return trial.status == "finished" and trial.value is not None and math.isfinite(trial.value)


def _in_words(variant: "Variant") -> str:
    """What a variant changes: "cot replaces stage4/conv3x3 (reduction=8)"."""
    parts = []
    if variant.model:
        parts.append(f"network {variant.model}")
    if variant.model_args:
        parts.append(_options(variant.model_args))
    for graft in variant.grafts:
        how = f"{graft.how} " if graft.how else ""
        start = f", start {graft.start}" if graft.start != "identity" else ""
        options = f" ({_options(graft.options)})" if graft.options else ""
        parts.append(f"{graft.block} {how}at {', '.join(graft.at)}{options}{start}")
    return "; ".join(parts) or "no change"


def _control_in_words(control: "Control", model: str) -> str:
    """What a control is: "resnet18 widened to the parameters of cot: channels=[72, 136]"."""
    if control.kind == "identity":
        return f"the blocks of {control.of}, which cannot learn"
    unit = "parameters" if control.measure == "parameters" else "MACs"
    found = _options(control.model_args) if control.model_args else "width not found yet"
    return f"{model} widened to the {unit} of {control.of}: {found}"


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={json.dumps(option, default=str)}" for name, option in options.items()
    )
