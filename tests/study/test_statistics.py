import math
import re
from itertools import pairwise, product

import numpy as np
import pytest
from scipy import integrate, stats

from visgraft.study.statistics import (
    Comparison,
    Verdict,
    compare,
    detectable_difference,
    headline,
    holm,
    paired_power,
    seeds_needed,
    sign_flip_p,
)


def values_of(**names):
    """{("cot", 0): 90.1, ...} from cot=[90.1, ...]."""
    return {(name, s): v for name, column in names.items() for s, v in enumerate(column)}


def compare_one(base, variant, *, seeds=None, **options):
    values = values_of(base=base, cot=variant)
    seeds = range(len(base)) if seeds is None else seeds
    return compare(["cot"], "base", seeds, values, **options)[0]


def test_numbers_by_hand():
    """Differences 1, 2, 3: mean 2, sd 1, t = 2 sqrt(3) with 2 degrees of freedom."""
    c = compare_one([90, 90, 90], [91, 92, 93])
    assert c.differences == (1, 2, 3)
    assert (c.mean, c.sd, c.effect) == pytest.approx((2, 1, 2))
    half = 4.302652729911275 / math.sqrt(3)  # t(0.975, 2) from the table
    assert (c.low, c.high) == pytest.approx((2 - half, 2 + half))
    assert c.p_t == pytest.approx(0.07417990022744856)
    assert c.p_permutation == 2 / 8
    assert c.p_holm == c.p_t


def test_against_scipy():
    rng = np.random.default_rng(1)
    base, variant = rng.normal(90, 1, 7), rng.normal(90.5, 1, 7)
    c = compare_one(base, variant)
    test = stats.ttest_rel(variant, base)
    assert c.p_t == pytest.approx(test.pvalue)
    assert (c.low, c.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    exact = stats.permutation_test(
        (variant - base,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert c.p_permutation == pytest.approx(exact.pvalue)


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_sign_flip_equals_enumeration(n):
    d = np.random.default_rng(n).integers(-3, 5, n) / 10  # with ties and zeros
    sums = [
        abs(sum(s * x for s, x in zip(signs, d, strict=True)))
        for signs in product((1, -1), repeat=n)
    ]
    expected = sum(s >= abs(d.sum()) - 1e-12 for s in sums) / 2**n
    assert sign_flip_p(d) == pytest.approx(expected)


def test_sign_flip_exact_and_drawn_agree():
    d = np.random.default_rng(0).normal(0.4, 1, 21)
    drawn = sign_flip_p(d, resamples=50_000)
    assert drawn == sign_flip_p(d, resamples=50_000)  # seeded
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    exact = np.mean(np.abs(sums) >= abs(d.sum()) - 1e-12)
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact / 50_000))


def test_sign_flip_never_reports_zero():
    assert sign_flip_p([1.0] * 30, resamples=999) == 1 / 1000


@pytest.mark.parametrize("differences", [[], [1.0, math.nan]])
def test_sign_flip_rejects(differences):
    with pytest.raises(ValueError, match=r"sign_flip_p: needs at least one finite difference"):
        sign_flip_p(differences)


@pytest.mark.parametrize(
    ("raw", "corrected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # R: p.adjust(p, "holm")
        ([0.01, 0.02, 0.03], [0.03, 0.04, 0.04]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm_reference_values(raw, corrected):
    assert holm(raw) == pytest.approx(corrected)


@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed_reference_values(effect, n):
    """The table of the paired t-test at 5 % and 80 % (Cohen; G*Power prints the same)."""
    assert seeds_needed(sd=2.0, difference=2.0 * effect) == n


def test_seeds_needed_is_the_smallest():
    n = seeds_needed(0.3, 0.2, level=0.01, power=0.9)
    assert paired_power(0.2, 0.3, n, level=0.01) >= 0.9
    assert paired_power(0.2, 0.3, n - 1, level=0.01) < 0.9


@pytest.mark.parametrize(
    ("difference", "message"),
    [(0, r"a difference of 0 cannot be seen"), (1e-6, r"needs more than 1000000 seeds")],
)
def test_seeds_needed_rejects(difference, message):
    with pytest.raises(ValueError, match=message):
        seeds_needed(1.0, difference)


@pytest.mark.parametrize("n", [2, 3, 5, 20, 200])
@pytest.mark.parametrize("level", [0.05, 0.05 / 3, 0.05 / 100])
def test_detectable_difference_has_the_power(n, level):
    d = detectable_difference(0.37, n, level=level)
    assert paired_power(d, 0.37, n, level=level) == pytest.approx(0.8, abs=1e-5)


def test_power_agrees_with_simulation():
    rng = np.random.default_rng(0)
    draws = rng.normal(0.8, 1.0, size=(20_000, 5))
    share = np.mean(stats.ttest_1samp(draws, 0.0, axis=1).pvalue <= 0.05)
    assert paired_power(0.8, 1.0, 5) == pytest.approx(share, abs=0.012)


@pytest.mark.parametrize("n", [2, 5, 50])
@pytest.mark.parametrize("difference", [0.0, 0.5, 2.0, 20.0, 1000.0])
def test_power_against_integration(n, difference):
    shift, critical = difference * math.sqrt(n) / 2, stats.t.isf(0.005, n - 1)

    def beyond(u):
        """The noncentral t by its definition, given the u-quantile of the observed variance."""
        spread = critical * np.sqrt(stats.chi2.ppf(u, n - 1) / (n - 1))
        return stats.norm.cdf(shift - spread) + stats.norm.cdf(-shift - spread)

    expected, _ = integrate.quad(beyond, 0, 1, limit=200)
    assert paired_power(-difference, 2.0, n, level=0.01) == pytest.approx(expected, abs=2e-5)
    assert paired_power(0.0, 2.0, n, level=0.01) == pytest.approx(0.01)


@pytest.mark.parametrize(("sd", "n", "level"), [(0.0, 5, 0.05), (1.0, 1, 0.05), (1.0, 5, 1.5)])
def test_power_rejects(sd, n, level):
    with pytest.raises(ValueError, match=r"paired_power: needs sd > 0, n >= 2 and 0 < level < 1"):
        paired_power(1.0, sd, n, level=level)


def test_verdict_better_and_worse():
    base, up = [90, 91, 92, 90, 91], [92, 93.1, 93.9, 92, 93]
    better = compare_one(base, up)
    assert better.verdict is Verdict.BETTER
    assert better.statement.startswith("better: +2.00 points [+1.91, +2.09] over 5 seeds, p = ")
    assert compare_one(up, base).verdict is Verdict.WORSE
    assert compare_one(up, base, higher_is_better=False).verdict is Verdict.BETTER


def test_verdict_no_evidence_names_what_would_have_been_seen():
    c = compare_one([90, 91, 92], [90.3, 90.8, 92.1])
    assert c.verdict is Verdict.NO_EVIDENCE
    assert c.detectable == pytest.approx(detectable_difference(c.sd, 3))
    assert c.statement == (
        "no evidence of a difference; with these 3 seeds a difference of "
        f"{c.detectable:.2f} points would have been seen with 80 % power"
    )


def test_what_would_have_been_seen_knows_the_correction():
    """The verdict shares its 5 % among the variants, so the power stated must do so, too."""
    values = values_of(base=[90, 91, 92], a=[90.3, 90.8, 92.1], b=[90, 91.5, 92.2])
    a, _ = compare(["a", "b"], "base", [0, 1, 2], values)
    assert a.detectable == pytest.approx(detectable_difference(a.sd, 3, level=0.025))


def test_one_seed():
    c = compare_one([90], [90.5])
    assert c.verdict is Verdict.NO_STATEMENT
    assert c.statement == "one seed: no statement possible (+0.50 points in this one)"
    assert (c.mean, c.sd, c.p_t, c.p_holm) == (0.5, None, None, None)


def test_no_pair():
    c = compare(["cot"], "base", [0, 1], {("base", 0): 90.0, ("cot", 1): 91.0})[0]
    assert c == Comparison(
        "cot",
        missing=(0, 1),
        statement="no pair of finished trials yet: no statement possible",
    )


def test_missing_pair_and_nan_are_named():
    c = compare_one([90, 91, math.nan, 92, 90], [90.5, 91.4, 92, math.inf, 90.1], seeds=range(6))
    assert c.seeds == (0, 1, 4)
    assert c.missing == (2, 3, 5)
    assert c.differences == pytest.approx((0.5, 0.4, 0.1))
    assert c.statement.endswith("; seeds 2, 3, 5 missing from the pairs")


def test_equal_differences_fall_back_to_the_exact_test():
    """0.1 and 0.3 are not exact in binary: the guard must not take rounding for spread."""
    few = compare_one([90.1, 91.2, 92.3], [90.4, 91.5, 92.6])
    assert (few.sd, few.p_t, few.effect, few.detectable) == (0, None, None, None)
    assert few.p_holm == few.p_permutation == 0.25
    assert few.verdict is Verdict.NO_EVIDENCE
    assert "all 3 differences are +0.30 points" in few.statement
    many = compare_one([90.0] * 6, [90.5] * 6)
    assert many.p_holm == 2 / 64
    assert many.verdict is Verdict.BETTER


def test_identical_numbers_are_no_evidence():
    c = compare_one([90, 91, 92], [90, 91, 92])
    assert (c.mean, c.p_permutation, c.verdict) == (0, 1, Verdict.NO_EVIDENCE)


def test_variant_without_numbers_still_counts_in_the_correction():
    values = values_of(base=[90, 91, 92], a=[91, 92.1, 93.2])
    alone, (a, _) = (
        compare(["a"], "base", [0, 1, 2], values)[0],
        compare(["a", "b"], "base", [0, 1, 2], values),
    )
    assert a.p_holm == pytest.approx(2 * alone.p_holm)


@pytest.mark.parametrize(
    ("variants", "message"),
    [(["base"], r"'base' must not be among"), (["a", "a"], r"named once, got \['a', 'a'\]")],
)
def test_compare_rejects(variants, message):
    with pytest.raises(ValueError, match=message):
        compare(variants, "base", [0], {})


def simulate(families, effects, n, seed):
    """Verdicts of many made-up studies; the seed moves all, the differences have an sd of 0.3."""
    rng = np.random.default_rng(seed)
    names = [f"v{i}" for i in range(len(effects))]
    for _ in range(families):
        noise = rng.normal([0, *effects], 0.3 / 2**0.5, (n, 1 + len(effects)))
        columns = rng.normal(90, 0.5, (n, 1)) + noise
        values = values_of(**dict(zip(["base", *names], columns.T.tolist(), strict=True)))
        yield compare(names, "base", range(n), values)


def is_decided(c):
    return c.verdict in (Verdict.BETTER, Verdict.WORSE)


@pytest.mark.parametrize("n", [3, 5])
def test_false_verdicts_stay_under_five_percent(n):
    """A/A studies with four variants: a single false verdict in one of them counts."""
    families = 600
    false = sum(any(map(is_decided, study)) for study in simulate(families, [0] * 4, n, seed=n))
    assert false / families >= 0.02  # the simulation can show a false verdict
    assert stats.binomtest(false, families, 0.05, alternative="greater").pvalue > 0.05


def test_planted_effect_is_found_with_the_power_stated():
    effect, families = detectable_difference(0.3, 5, level=0.05 / 3), 500
    studies = simulate(families, [effect, 0, 0], 5, seed=7)
    found = sum(study[0].verdict is Verdict.BETTER for study in studies)
    assert found / families == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / families) + 0.02)


@pytest.mark.parametrize(
    ("variants", "sentence"),
    [
        ({}, "The study has no variant to compare with the baseline."),
        ({"cot": [90.5]}, "cot: one seed: no statement possible (+0.50 points in this one)."),
        (
            {
                "up": [92, 93.1, 93.9, 92.0],
                "down": [88, 89.1, 89.9, 88],
                "same": [90.1, 90.9, 92, 90],
            },
            "Better than the baseline: up (+2.00 points [+1.87, +2.13]); "
            "worse than the baseline: down (-2.00 points [-2.13, -1.87]); "
            "no evidence of a difference for same "
            "(a difference of 0.26 points would have been seen with 80 % power).",
        ),
    ],
)
def test_headline(variants, sentence):
    base = [90, 91, 92, 90]
    n = len(next(iter(variants.values()), base))
    values = values_of(base=base[:n], **variants)
    assert headline(compare(list(variants), "base", range(n), values)) == sentence


def test_headline_counts_what_it_cannot_name():
    variants = {f"v{i}": [92 + i, 93.1 + i, 93.9 + i, 92.0 + i] for i in range(5)}
    values = values_of(base=[90, 91, 92, 90], **variants)
    text = headline(compare(list(variants), "base", range(4), values))
    assert re.findall(r"v\d", text) == ["v4", "v3", "v2"]  # the largest first
    assert text.endswith("and 2 more.")


def test_detectable_falls_with_seeds():
    found = [detectable_difference(1.0, n) for n in (2, 3, 5, 10, 40)]
    assert all(a > b for a, b in pairwise(found))
