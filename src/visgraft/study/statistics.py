"""Paired statistics of a study: does a variant differ from the baseline, and what could be seen?

The sampling unit is the seed: variant and baseline of one seed share initial weights and data
order, so their difference is one observation. The verdict follows from the numbers by one rule:

1. The two-sided paired t-test over the common seeds gives a p-value per variant. Where all
   differences are equal the t-test does not exist, and the exact sign-flip p-value takes its place.
2. Holm's procedure corrects the p-values over all variants of the study. A variant that has no
   p-value yet counts as 1, so that a running study is not judged by a milder rule.
3. Corrected p <= 0.05: "better" or "worse", by the sign of the mean difference. Else "no evidence
   of a difference", with the difference that would have been seen. Fewer than two pairs:
   "no statement possible".

The chance of a single false "better" or "worse" in a study is therefore at most 5 % (as far as
the differences are normal; the sign-flip p-value beside it does not need that, but cannot fall
under 0.05 with fewer than six seeds).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache, lru_cache
from typing import Any

import numpy as np
from scipy import optimize, stats

from visgraft.study.wording import listed, number, size

__all__ = [
    "Comparison",
    "Verdict",
    "compare",
    "compare_each",
    "detectable_difference",
    "headline",
    "holm",
    "paired_power",
    "seeds_needed",
    "sign_flip_p",
]

LEVEL = 0.05
POWER = 0.8
MAX_EXACT = 20
MAX_SEEDS = 1_000_000


class Verdict(StrEnum):
    """What a study says about a variant."""

    BETTER = "better"
    WORSE = "worse"
    NO_EVIDENCE = "no evidence of a difference"
    NO_STATEMENT = "no statement possible"


@dataclass(frozen=True)
class Comparison:
    """A variant against the baseline, paired by seed; ``None`` where a number does not exist.

    Attributes:
        variant: Its name.
        seeds: Those with a number for both, ascending.
        missing: Seeds of the study without such a pair.
        differences: Variant minus baseline, per seed of ``seeds``.
        mean: Of the differences.
        sd: Their sample standard deviation.
        low: Lower end of the 95 % t interval of the mean difference.
        high: Upper end.
        p_t: Two-sided paired t-test.
        p_permutation: Two-sided sign-flip permutation test.
        p_holm: Corrected over the variants; the verdict's p-value.
        effect: Standardised effect d_z, ``mean / sd``.
        detectable: The true difference this verdict would have seen with 80 % power, given
            ``sd`` and the correction over the variants.
        verdict: By the rule in the module's header.
        statement: The verdict in words, with its numbers.
    """

    variant: str
    seeds: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    differences: tuple[float, ...] = ()
    mean: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    p_t: float | None = None
    p_permutation: float | None = None
    p_holm: float | None = None
    effect: float | None = None
    detectable: float | None = None
    verdict: Verdict = Verdict.NO_STATEMENT
    statement: str = ""


def compare(
    variants: Sequence[str],
    baseline: str,
    seeds: Sequence[int],
    values: Mapping[tuple[str, int], float],
    *,
    higher_is_better: bool = True,
    unit: str = "points",
) -> list[Comparison]:
    """Compares every variant with the baseline.

    Args:
        variants: All variants of the study, without the baseline: the family of Holm's correction.
        baseline: Its name.
        seeds: All seeds of the study.
        values: Final metric by (name, seed). A pair with an absent or non-finite value is missing.
        higher_is_better: The direction of the metric.
        unit: Of the metric, used in the statements.

    Returns:
        One comparison per variant, in the order of ``variants``.

    Raises:
        ValueError: The baseline is among the variants, or a variant is named twice.
    """
    if baseline in variants:
        raise ValueError(f"compare: the baseline {baseline!r} must not be among the variants")
    if len(set(variants)) != len(variants):
        raise ValueError(f"compare: every variant must be named once, got {list(variants)}")
    found = [_describe(v, baseline, seeds, values, len(variants)) for v in variants]
    return _judge_all(found, higher_is_better, unit)


def compare_each(
    controls: Mapping[str, str],
    seeds: Sequence[int],
    values: Mapping[tuple[str, int], float],
    *,
    higher_is_better: bool = True,
    unit: str = "points",
) -> list[tuple[str, Comparison]]:
    """Compares variants with a control of their own each: variant minus control, paired by seed.

    Args:
        controls: Name of the variant by name of its control; the family of Holm's correction.
        seeds: All seeds of the study.
        values: As `compare` takes them.
        higher_is_better: The direction of the metric.
        unit: Of the metric.

    Returns:
        Control and comparison, in the order of ``controls``.
    """
    found = [
        _describe(variant, control, seeds, values, len(controls))
        for control, variant in controls.items()
    ]
    return list(zip(controls, _judge_all(found, higher_is_better, unit), strict=True))


def _judge_all(found: Sequence[Comparison], higher_is_better: bool, unit: str) -> list[Comparison]:
    """Corrects the p-values of a family, and judges by them."""
    raw = [c.p_permutation if c.p_t is None else c.p_t for c in found]
    corrected = holm([1.0 if p is None else p for p in raw])
    return [
        _judge(c, None if p is None else p_holm, len(found), higher_is_better, unit)
        for c, p, p_holm in zip(found, raw, corrected, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns Holm's step-down corrected p-values, in the order given.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected.tolist()


def sign_flip_p(differences: Sequence[float], *, resamples: int = 100_000, seed: int = 0) -> float:
    """Returns the two-sided p-value of "each difference could as well have the other sign".

    Exact (all sign patterns) for up to 20 differences; beyond, ``resamples`` patterns drawn with
    ``seed``, the observed one counted among them.
    """
    d = np.asarray(differences, dtype=float)
    if d.size == 0 or not np.isfinite(d).all():
        raise ValueError(f"sign_flip_p: needs at least one finite difference, got {d.tolist()}")
    observed = abs(d.sum()) - 1e-9 * np.abs(d).sum()  # ties that rounding has split still count
    if d.size <= MAX_EXACT:
        sums = d[:1]  # the first sign is fixed: the other half of the patterns is its mirror image
        for value in d[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= observed))
    return _resampled_p(tuple(d.tolist()), observed, resamples, seed)


def paired_power(difference: float, sd: float, n: int, *, level: float = LEVEL) -> float:
    """Returns the power of the two-sided paired t-test by the noncentral t distribution.

    Args:
        difference: The true mean difference.
        sd: Standard deviation of the paired differences, above 0.
        n: Number of pairs, at least 2.
        level: Of the test.
    """
    if not (sd > 0 and n >= 2 and 0 < level < 1):
        raise ValueError(
            f"paired_power: needs sd > 0, n >= 2 and 0 < level < 1, got {sd=}, {n=}, {level=}"
        )
    critical = stats.t.isf(level / 2, n - 1)
    shift = abs(difference) * math.sqrt(n) / sd
    upper = stats.nct.sf(critical, n - 1, shift)
    lower = stats.nct.cdf(-critical, n - 1, shift) if shift < 8 else 0.0  # under 1e-15 beyond
    return float(upper + np.nan_to_num(lower))  # scipy gives NaN where it underflows


def detectable_difference(
    sd: float, n: int, *, level: float = LEVEL, power: float = POWER
) -> float:
    """Returns the smallest true difference that ``n`` pairs show with ``power`` at ``level``."""
    return sd * _detectable_effect(n, level, power)


def seeds_needed(
    sd: float, difference: float, *, level: float = LEVEL, power: float = POWER
) -> int:
    """Returns how many paired seeds show a true ``difference`` with ``power`` at ``level``.

    Args:
        sd: Standard deviation of the paired differences, from a pilot.
        difference: To be seen, not 0.
        level: Of the test; with m variants corrected by Holm, ``0.05 / m`` is on the safe side.
        power: Wanted probability to see it.

    Raises:
        ValueError: ``difference`` is 0, or more than a million seeds would be needed.
    """
    if difference == 0:
        raise ValueError("seeds_needed: a difference of 0 cannot be seen with any number of seeds")
    high = 2
    while paired_power(difference, sd, high, level=level) < power:
        high *= 2
        if high > MAX_SEEDS:
            raise ValueError(
                f"seeds_needed: a difference of {difference} with {sd=} needs more than "
                f"{MAX_SEEDS} seeds; ask for a larger difference"
            )
    low = max(2, high // 2)
    while low < high:
        middle = (low + high) // 2
        if paired_power(difference, sd, middle, level=level) < power:
            low = middle + 1
        else:
            high = middle
    return high


def headline(comparisons: Sequence[Comparison], *, unit: str = "points") -> str:
    """Returns the outcome of the study in one sentence."""
    if not comparisons:
        return "The study has no variant to compare with the baseline."
    if len(comparisons) == 1:
        (only,) = comparisons
        return f"{only.variant}: {only.statement}."
    parts = []
    for verdict in (Verdict.BETTER, Verdict.WORSE):
        group = [c for c in comparisons if c.verdict is verdict]
        if group:
            group.sort(key=lambda c: abs(c.mean or 0.0), reverse=True)
            named = ", ".join(f"{c.variant} ({_interval(c, unit)})" for c in group[:3])
            rest = f" and {len(group) - 3} more" if len(group) > 3 else ""
            parts.append(f"{verdict} than the baseline: {named}{rest}")
    unclear = [c for c in comparisons if c.verdict is Verdict.NO_EVIDENCE]
    if unclear:
        seen = [c.detectable for c in unclear if c.detectable is not None]
        limit = f" ({size(seen, unit)} would have been seen with 80 % power)" if seen else ""
        parts.append(f"no evidence of a difference for {_names(unclear)}{limit}")
    silent = [c for c in comparisons if c.verdict is Verdict.NO_STATEMENT]
    if silent:
        parts.append(f"no statement possible yet for {_names(silent)}")
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}."


@lru_cache(maxsize=4096)  # a report judges the same differences several times
def _resampled_p(
    differences: tuple[float, ...], observed: float, resamples: int, seed: int
) -> float:
    d = np.array(differences)
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, size=(resamples, d.size), dtype=np.int8) * 2 - 1
    parts = np.array_split(signs, 50)  # the product turns each into numbers of 64 bits
    extreme = sum(np.count_nonzero(np.abs(part @ d) >= observed) for part in parts)
    return float((extreme + 1) / (resamples + 1))


@cache
def _detectable_effect(n: int, level: float, power: float) -> float:
    """The same in units of the standard deviation."""

    def gap(effect: float) -> float:
        return paired_power(effect, 1.0, n, level=level) - power

    upper = 1.0
    while gap(upper) < 0:
        upper *= 2
    return float(optimize.root_scalar(gap, bracket=(0.0, upper), rtol=1e-9).root)


def _describe(
    variant: str,
    baseline: str,
    seeds: Sequence[int],
    values: Mapping[tuple[str, int], float],
    family: int,
) -> Comparison:
    """Everything about one variant that does not depend on the others."""
    pairs = {
        seed: (values.get((variant, seed), math.nan), values.get((baseline, seed), math.nan))
        for seed in sorted(set(seeds))
    }
    paired = {s: pair for s, pair in pairs.items() if all(map(math.isfinite, pair))}
    d = np.array([a - b for a, b in paired.values()])
    result = Comparison(
        variant,
        seeds=tuple(paired),
        missing=tuple(s for s in pairs if s not in paired),
        differences=tuple(d.tolist()),
        mean=float(d.mean()) if d.size else None,
    )
    if d.size < 2:
        return result
    result = replace(result, p_permutation=sign_flip_p(d.tolist()))
    scale = max(abs(v) for pair in paired.values() for v in pair)
    if np.ptp(d) <= 1e-9 * scale:
        return replace(result, sd=0.0)
    test: Any = stats.ttest_1samp(d, 0.0)  # scipy's result class is untyped
    interval = test.confidence_interval(0.95)
    sd = float(d.std(ddof=1))
    return replace(
        result,
        sd=sd,
        low=float(interval.low),
        high=float(interval.high),
        p_t=float(test.pvalue),
        effect=float(d.mean() / sd),
        detectable=detectable_difference(sd, d.size, level=LEVEL / family),
    )


def _judge(
    c: Comparison, p_holm: float | None, family: int, higher_is_better: bool, unit: str
) -> Comparison:
    """Adds the verdict and its words."""
    n = len(c.seeds)
    if p_holm is None or c.mean is None:
        verdict = Verdict.NO_STATEMENT
        words = "no pair of finished trials yet: no statement possible"
        if n == 1:
            words = f"one seed: no statement possible ({number(c.mean or 0.0, unit)} in this one)"
    elif p_holm <= LEVEL:
        verdict = Verdict.BETTER if (c.mean > 0) is higher_is_better else Verdict.WORSE
        words = f"{verdict}: {_interval(c, unit)} over {n} seeds, p = {p_holm:.2g} after Holm"
    elif c.detectable is None:
        verdict = Verdict.NO_EVIDENCE
        words = (
            f"{verdict}; all {n} differences are {number(c.mean, unit)}, "
            "so what these seeds would have shown cannot be said"
        )
    else:
        verdict = Verdict.NO_EVIDENCE
        words = (
            f"{verdict}; with these {n} seeds {size([c.detectable], unit)} "
            "would have been seen with 80 % power"
        )
        if c.p_t is not None and c.p_t <= LEVEL:
            words += (
                f"; its own p = {c.p_t:.2g} does not survive the correction over {family} variants"
            )
    if c.missing and n:
        which = "seed" if len(c.missing) == 1 else "seeds"
        words += f"; {which} {listed(c.missing)} missing from the pairs"
    return replace(c, p_holm=p_holm, verdict=verdict, statement=words)


def _interval(c: Comparison, unit: str) -> str:
    text = number(c.mean or 0.0, unit)
    return text if c.low is None else f"{text} [{c.low:+.2f}, {c.high:+.2f}]"


def _names(comparisons: Sequence[Comparison]) -> str:
    if len(comparisons) > 4:
        return f"{len(comparisons)} variants"
    return ", ".join(c.variant for c in comparisons)
