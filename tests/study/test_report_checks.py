from dataclasses import replace

import pytest

from tests.study.made_up_study import changed, made_up
from visgraft.study.reports import numbers
from visgraft.study.reports.checks import check_fairness


@pytest.mark.parametrize(
    ("write", "number", "text"),
    [
        (numbers.value, 93.4, "93.40"),
        (numbers.value, None, "–"),  # noqa: RUF001
        (numbers.signed, 0.418, "+0.42"),
        (numbers.signed, -0.0001, "+0.00"),
        (numbers.signed, -12.3, "-12.30"),
        (numbers.p_value, 0.0004, "< 0.001"),
        (numbers.p_value, 0.0006, "0.001"),
        (numbers.p_value, 1.0, "1.000"),
        (numbers.quantity, 1_234_567, "1.23 M"),
        (numbers.quantity, 12_340_000, "12.3 M"),
        (numbers.quantity, 1_200_000, "1.20 M"),
        (numbers.quantity, 123_456, "123 k"),
        (numbers.quantity, 999_600, "1.00 M"),
        (numbers.quantity, 99_960, "100 k"),
        (numbers.quantity, 4.1e9, "4.10 G"),
        (numbers.quantity, 640, "640"),
        (numbers.quantity, 0, "0"),
        (numbers.duration, 74.23, "74.2 s"),
        (numbers.duration, 738, "12.3 min"),
        (numbers.duration, 9000, "2.5 h"),
    ],
)
def test_numbers(write, number, text):
    assert write(number) == text


def test_numbers_with_two_parts():
    assert numbers.interval(0.42, -0.1, 0.94) == "+0.42 [-0.10, +0.94]"
    assert numbers.interval(0.42, None, None) == "+0.42"
    assert numbers.versus(1041, 1000) == "+4.1 %"
    assert numbers.versus(99_999, 100_000) == "+0.0 %"
    assert numbers.versus(1, None) == ""


def states(data):
    return {check.name: check.passed for check in check_fairness(data)}


def finding(data, name):
    return next(check.finding for check in check_fairness(data) if check.name == name)


def test_fair_study_passes_all_checks():
    assert states(made_up()) == dict.fromkeys(
        ("Same start", "Same data order", "Seeds differ", "Same budget", "Same environment"), True
    )
    text = finding(made_up(), "Same start")
    assert text.startswith("Within each of 4 seeds, all variants have the same initial weights")
    assert "weights-0" in text


def test_nothing_can_be_said_before_the_start():
    assert set(states(made_up(0, environments=[])).values()) == {None}


@pytest.mark.parametrize(
    ("fields", "name", "text"),
    [
        ({"init_digest": "x"}, "Same start", "differ between variants of seed 1"),
        ({"order_digest": "x"}, "Same data order", "order of the training images differ"),
        ({"epochs": 3}, "Same budget", "Finished trials have 2, 3 epochs"),
    ],
)
def test_unfair_trial_is_found(fields, name, text):
    data = changed(made_up(), "up", 1, **fields)
    assert [n for n, passed in states(data).items() if passed is False] == [name]
    assert text in finding(data, name)


def test_other_network_may_start_elsewhere():
    data = changed(made_up(), "up", 1, init_digest="x")
    assert states(replace(data, other_networks=frozenset({"up"})))["Same start"] is True


def test_repeated_seeds_are_found_but_pretrained_weights_may_be_equal():
    same_start = made_up()
    same_start = replace(
        same_start, trials=tuple(replace(t, init_digest="file") for t in same_start.trials)
    )
    assert states(same_start)["Seeds differ"] is True
    assert finding(same_start, "Seeds differ") == "All 4 seeds differ in data order."
    same = replace(
        same_start, trials=tuple(replace(t, order_digest="x") for t in same_start.trials)
    )
    assert states(same)["Seeds differ"] is False


def test_environments_that_move_numbers_are_told_from_those_that_do_not():
    here = {"torch": "2.15.0", "cores": 2}
    assert states(made_up(environments=[here, here | {"cores": 8}]))["Same environment"] is True
    other = made_up(environments=[here, here | {"torch": "2.14.0"}])
    assert finding(other, "Same environment") == "Trials ran in 2 environments, by torch."
