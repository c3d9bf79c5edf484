"""Two studies beside each other: what differs between them, and the networks that both have.

Numbers of one seed belong together only where everything that decides is the same in both studies:
the data, the recipe, the initial weights and the order of the images. Only then the statistics are
paired; else Welch's interval and test take the seeds of the two studies as two samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from visgraft.study.errors import StudyError
from visgraft.study.reports.data import Row, StudyData, Summary, summarise
from visgraft.study.reports.writing import study_data
from visgraft.study.statistics import LEVEL, compare_each, holm
from visgraft.study.wording import listed, number
from visgraft.tasks.metric_names import Metric

__all__ = ["Differing", "SharedNetwork", "StudyComparison", "compare_studies"]

_INDIFFERENT = frozenset({"workers", "loggers"})
"""Fields of a recipe that do not touch the numbers."""
_PLACES = frozenset({"data", "val_data", "images", "val_images"})
"""Fields that say where the data are; what they are is in the fingerprint."""
_FEWEST = 2


@dataclass(frozen=True)
class Differing:
    """One thing that is not the same in both studies.

    Attributes:
        what: Such as ``recipe.lr`` or ``environment.torch``.
        a: In the first study, as text.
        b: In the second one.
        decides: Whether numbers of one seed do not belong together because of it.
    """

    what: str
    a: str
    b: str
    decides: bool


@dataclass(frozen=True)
class SharedNetwork:
    """A network that both studies have; ``None`` where a number does not exist.

    Attributes:
        a: It in the first study.
        b: It in the second one, where it may have another name.
        seeds: Of the pairs; empty where the studies are not paired.
        difference: Mean of ``b`` minus mean of ``a``; if paired, over the pairs alone.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Of the paired t-test or of Welch's test, two-sided.
        p_holm: Corrected over the networks that both studies have.
        words: What follows.
    """

    a: Row
    b: Row
    seeds: tuple[int, ...] = ()
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    words: str = ""


@dataclass(frozen=True)
class StudyComparison:
    """Two studies beside each other.

    Attributes:
        a: The first study; its metric decides.
        b: The second one.
        differing: What is not the same.
        paired: Whether the statistics are paired by seed.
        reason: Why, or why not, and what that means.
        networks: Those that both have, in the order of the first study.
        only_a: Those that only the first one has.
        only_b: Those that only the second one has.
    """

    a: Summary
    b: Summary
    differing: tuple[Differing, ...]
    paired: bool
    reason: str
    networks: tuple[SharedNetwork, ...]
    only_a: tuple[Row, ...]
    only_b: tuple[Row, ...]

    @property
    def metric(self) -> Metric:
        """The metric whose numbers are compared."""
        return self.a.metric


def compare_studies(a: str | Path | StudyData, b: str | Path | StudyData) -> StudyComparison:
    """Compares two studies, finished or not.

    A network is in both studies if it changes the same there; the one of the same name is taken
    first. The metric is that which decides in the first study.

    Args:
        a: Folder of a study, or its facts.
        b: The other one.

    Raises:
        StudyError: A folder holds no study, or the studies have different tasks.
    """
    one, other = (x if isinstance(x, StudyData) else study_data(x) for x in (a, b))
    if one.task != other.task:
        raise StudyError(
            f"compare: {one.folder} is a study of {one.task} and {other.folder} of {other.task}; "
            "compare studies of one task."
        )
    differing = _differing(one, other)
    first, second = summarise(one), summarise(_measured_by(other, one.metric))
    matched = _match(first.rows, second.rows)
    networks = [SharedNetwork(x, y) for x, y in matched]
    obstacle = _obstacle(one, other, networks, differing)
    if obstacle:
        reason = _why_unpaired(obstacle, one, other)
        networks = _unpaired(networks, first.metric)
    else:
        reason = _why_paired(one, other, differing)
        networks = _paired(networks, first.metric)
    known_a, known_b = {x.name for x, _ in matched}, {y.name for _, y in matched}
    return StudyComparison(
        a=first,
        b=second,
        differing=differing,
        paired=not obstacle,
        reason=reason,
        networks=tuple(networks),
        only_a=tuple(row for row in first.rows if row.name not in known_a),
        only_b=tuple(row for row in second.rows if row.name not in known_b),
    )


def _measured_by(data: StudyData, metric: str) -> StudyData:
    """Returns the facts of a study with another metric's numbers as the values of its trials."""
    if data.metric == metric:
        return data
    trials = tuple(replace(t, value=t.metrics.get(metric)) for t in data.trials)
    return replace(data, metric=metric, trials=trials)


def _differing(a: StudyData, b: StudyData) -> tuple[Differing, ...]:
    found = []
    if a.fingerprint != b.fingerprint or a.fingerprint is None:
        found.append(Differing("data", _short(a.fingerprint), _short(b.fingerprint), True))
    for field in dict.fromkeys((*a.recipe, *b.recipe)):
        was, now = a.recipe.get(field), b.recipe.get(field)
        if was != now and field not in _INDIFFERENT:
            found.append(Differing(f"recipe.{field}", str(was), str(now), field not in _PLACES))
    if a.metric != b.metric:
        found.append(Differing("metric", a.metric, b.metric, False))
    if set(a.seeds) != set(b.seeds):
        found.append(Differing("seeds", listed(a.seeds), listed(b.seeds), False))
    first, second = _environment(a), _environment(b)
    for fact in dict.fromkeys((*first, *second)):
        was, now = first.get(fact, "not recorded"), second.get(fact, "not recorded")
        if was != now:
            found.append(Differing(f"environment.{fact}", was, now, False))
    return tuple(found)


def _short(fingerprint: str | None) -> str:
    return fingerprint[:12] if fingerprint else "not recorded"


def _environment(data: StudyData) -> dict[str, str]:
    """Returns each fact of the environments, with all the values that trials ran with."""
    facts: dict[str, dict[str, None]] = {}
    for environment in data.environments:
        for name, fact in environment.items():
            facts.setdefault(name, {})[str(fact)] = None
    return {name: ", ".join(values) for name, values in facts.items()}


def _match(a: Sequence[Row], b: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Returns the networks that change the same, those of the same name first."""
    free = list(b[1:])
    partner: dict[str, Row] = {a[0].name: b[0]}  # the baselines
    for same_name in (True, False):
        for row in a[1:]:
            if row.name in partner:
                continue
            for candidate in free:
                if candidate.changes == row.changes and (
                    candidate.name == row.name or not same_name
                ):
                    partner[row.name] = candidate
                    free.remove(candidate)
                    break
    return [(row, partner[row.name]) for row in a if row.name in partner]


def _obstacle(
    a: StudyData,
    b: StudyData,
    networks: Sequence[SharedNetwork],
    differing: Sequence[Differing],
) -> str:
    """Returns why numbers of one seed do not belong together; empty if they do."""
    decisive = [d.what for d in differing if d.decides]
    if decisive:
        rest = f" and {len(decisive) - 4} more" if len(decisive) > 4 else ""
        return f"{', '.join(decisive[:4])}{rest} {'differs' if len(decisive) == 1 else 'differ'}"
    common = sorted(set(a.seeds) & set(b.seeds))
    if len(common) < _FEWEST:
        return f"the studies share {'one seed' if common else 'no seed'}"
    for what, digest in (("initial weights", "init_digest"), ("order of images", "order_digest")):
        first, second = (
            {(t.variant, t.seed): getattr(t, digest) for t in data.trials} for data in (a, b)
        )
        for network in networks:
            for seed in common:
                was = first.get((network.a.name, seed))
                now = second.get((network.b.name, seed))
                if was and now and was != now:
                    return f"the {what} of {network.a.name} differ for seed {seed}"
    return ""


def _why_unpaired(obstacle: str, a: StudyData, b: StudyData) -> str:
    words = (
        f"Not paired: {obstacle}. So the numbers of one seed do not belong together: Welch's "
        "interval takes the seeds of each study as a sample of its own, which is wider than a "
        "paired one where seeds differ much."
    )
    if a.fingerprint != b.fingerprint:
        words += (
            " The validation images are not the same, so a difference says nothing about which "
            "network is better."
        )
    return words


def _why_paired(a: StudyData, b: StudyData, differing: Sequence[Differing]) -> str:
    common = sorted(set(a.seeds) & set(b.seeds))
    words = (
        "Paired by seed: data, recipe, initial weights and order of the images are the same in "
        f"both studies for seeds {listed(common)}."
    )
    around = [d.what for d in differing if d.what.startswith("environment.")]
    if around:
        return f"{words} A difference comes from {', '.join(around[:6])}, or from chance."
    return f"{words} Nothing that was recorded explains a difference."


def _paired(networks: Sequence[SharedNetwork], metric: Metric) -> list[SharedNetwork]:
    values = {}
    for index, network in enumerate(networks):
        values |= {(f"a{index}", seed): number for seed, number in network.a.values.items()}
        values |= {(f"b{index}", seed): number for seed, number in network.b.values.items()}
    seeds = sorted({seed for _, seed in values})
    found = compare_each(
        {f"a{index}": f"b{index}" for index in range(len(networks))},
        seeds,
        values,
        higher_is_better=metric.higher_is_better,
        unit=metric.unit,
    )
    results = []
    for network, (_, c) in zip(networks, found, strict=True):
        p = c.p_permutation if c.p_t is None else c.p_t
        statistics: dict[str, Any] = {"p": p, "p_holm": c.p_holm, "low": c.low, "high": c.high}
        pair = replace(network, seeds=c.seeds, difference=c.mean, **statistics)
        words = _words(pair, metric)
        if c.differences and not any(c.differences):
            words = f"equal to the last digit, {len(c.seeds)} seed{'s' * (len(c.seeds) > 1)}"
        results.append(replace(pair, words=words))
    return results


def _unpaired(networks: Sequence[SharedNetwork], metric: Metric) -> list[SharedNetwork]:
    found = [_welch(network) for network in networks]
    corrected = holm([1.0 if network.p is None else network.p for network in found])
    results = []
    for network, p_holm in zip(found, corrected, strict=True):
        judged = replace(network, p_holm=None if network.p is None else p_holm)
        results.append(replace(judged, words=_words(judged, metric)))
    return results


def _welch(network: SharedNetwork) -> SharedNetwork:
    a, b = (np.array(list(row.values.values())) for row in (network.a, network.b))
    if not (a.size and b.size):
        return network
    known = replace(network, difference=float(b.mean() - a.mean()))
    if min(a.size, b.size) < _FEWEST or np.ptp(a) == np.ptp(b) == 0:
        return known
    test: Any = stats.ttest_ind(b, a, equal_var=False)  # scipy's result class is untyped
    interval = test.confidence_interval(0.95)
    low, high = float(interval.low), float(interval.high)
    return replace(known, low=low, high=high, p=float(test.pvalue))


def _words(network: SharedNetwork, metric: Metric) -> str:
    if network.difference is None:
        return "no numbers in both studies yet"
    if network.p_holm is None:
        return f"no statement possible ({number(network.difference, metric.unit)})"
    if network.p_holm > LEVEL:
        return "no evidence of a difference"
    better = (network.difference > 0) is metric.higher_is_better
    return f"{'better' if better else 'worse'} in B, p = {network.p_holm:.2g} after Holm"
