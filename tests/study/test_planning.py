import math

import pytest

from tests.study.made_up_study import made_up
from visgraft.cli.main import main
from visgraft.study import planning
from visgraft.study.errors import StudyError
from visgraft.study.planning import plan_seeds
from visgraft.study.statistics import paired_power


def test_spread_and_correction_decide():
    (one,) = plan_seeds(0.5, spread=0.4)
    (three,) = plan_seeds(-0.5, spread=0.4, variants=3)
    (sure,) = plan_seeds(0.5, spread=0.4, power=0.95)
    assert one.seeds < three.seeds
    assert one.seeds < sure.seeds
    for plan, level, power in ((one, 0.05, 0.8), (three, 0.05 / 3, 0.8), (sure, 0.05, 0.95)):
        assert paired_power(0.5, 0.4, plan.seeds, level=level) >= power
        assert paired_power(0.5, 0.4, plan.seeds - 1, level=level) < power
    assert (one.variant, one.pairs, one.spread_high, one.seeds_high) == (None, None, None, None)


def test_pilot_tells_its_spread_and_how_uncertain_it_is(monkeypatch):
    monkeypatch.setattr(planning, "study_data", lambda _: made_up())
    up, same = plan_seeds(0.1, pilot="runs/pilot")
    assert (up.variant, up.pairs, same.variant, same.pairs) == ("up", 4, "same", 4)
    differences = (2.0, 2.1, 1.9, 2.0)
    spread = math.sqrt(sum((d - 2) ** 2 for d in differences) / 3)
    assert up.spread == pytest.approx(spread)
    assert up.spread_high == pytest.approx(spread * math.sqrt(3 / 1.0051740), rel=1e-6)
    assert up.seeds_high > up.seeds
    for seeds, spread in ((up.seeds, up.spread), (up.seeds_high, up.spread_high)):
        assert paired_power(0.1, spread, seeds, level=0.025) >= 0.8
        assert paired_power(0.1, spread, seeds - 1, level=0.025) < 0.8
    assert plan_seeds(0.1, pilot="runs/pilot", variants=1)[0].seeds < up.seeds


def test_pilot_that_knows_nothing(monkeypatch):
    monkeypatch.setattr(planning, "study_data", lambda _: made_up(3))
    with pytest.raises(StudyError, match="no variant in runs/pilot has two finished seeds"):
        plan_seeds(0.5, pilot="runs/pilot")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"difference": 0.5}, "either a spread or a pilot"),
        ({"difference": 0.5, "spread": 1, "pilot": "x"}, "either a spread or a pilot"),
        ({"difference": 0, "spread": 1}, "other than 0, got 0"),
        ({"difference": math.nan, "spread": 1}, "other than 0, got nan"),
        ({"difference": 1, "spread": -1}, "spread must be above 0, got -1"),
        ({"difference": 1, "spread": 1, "power": 1}, "power must be between 0 and 1, got 1"),
        ({"difference": 1, "spread": 1, "variants": 0}, "variants must be at least 1, got 0"),
        ({"difference": 1e-6, "spread": 1}, "needs more than 1000000 seeds"),
    ],
)
def test_refusals(arguments, text):
    with pytest.raises(StudyError, match=text):
        plan_seeds(**arguments)


def test_command(monkeypatch, capsys):
    monkeypatch.setattr(planning, "study_data", lambda _: made_up())
    assert main(["study", "plan", "--difference", "0.5", "--spread", "0.4"]) == 0
    seeds = plan_seeds(0.5, spread=0.4)[0].seeds
    wanted = f"{seeds} seeds show a difference of 0.5 with 80% power.\n"
    assert capsys.readouterr().out == wanted
    assert main(["study", "plan", "--difference", "0.1", "--pilot", "runs/pilot"]) == 0
    table, words = capsys.readouterr().out.split("\n\n")
    up, same = plan_seeds(0.1, pilot="runs/pilot")
    assert table.splitlines()[2].split()[:4] == ["up", "4", f"{up.spread:.3f}", str(up.seeds)]
    safe = max(up.seeds_high, same.seeds_high)
    assert f"; {safe} are on the safe side" in words
