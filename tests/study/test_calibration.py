"""The simulation behind the table in docs/studies.md, in small."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "calibrate_verdicts.py"
SPEC = importlib.util.spec_from_file_location("calibrate_verdicts", SCRIPT)
calibrate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(calibrate)


@pytest.mark.parametrize(("seeds", "variants"), [(3, 1), (5, 3), (10, 5)])
def test_false_verdicts(seeds, variants):
    studies, rng = 250, np.random.default_rng([seeds, variants])
    share = calibrate.false_share(studies, seeds, variants, calibrate.NOISES["normal"], rng)
    assert share > 0
    test = stats.binomtest(round(share * studies), studies, 0.05, alternative="greater")
    assert test.pvalue > 0.05


@pytest.mark.parametrize(("seeds", "variants"), [(4, 1), (8, 3)])
def test_planted_effect(seeds, variants):
    studies, rng = 200, np.random.default_rng([seeds, variants])
    share = calibrate.found_share(studies, seeds, variants, rng)
    low, high = stats.binom.interval(0.99, studies, 0.8)
    assert low <= share * studies <= high


def test_noises_are_of_one_size():
    rng = np.random.default_rng(0)
    for noise in calibrate.NOISES.values():
        drawn = noise(rng, (20000, 2))
        assert drawn.mean() == pytest.approx(0, abs=0.05)
        assert drawn.std() == pytest.approx(1, rel=0.15)
