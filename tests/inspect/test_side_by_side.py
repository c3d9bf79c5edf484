"""Calls take turns, ratios are taken within a round, limits are those of the machine."""

import json
import random

import pytest
import torch

from visgraft.inspect import describe_machine, machine_limits, measure_side_by_side
from visgraft.inspect.machine import TUNED_ALLOCATOR, tuned_environment


def test_calls_take_turns_and_the_order_moves_on():
    seen = []
    calls = {name: lambda name=name: seen.append(name) for name in "abc"}
    done = measure_side_by_side(calls, rounds=3, warmup=0, least_seconds=0, memory=False)
    assert seen[3:] == [*"abc", *"bca", *"cab"]
    assert done.rounds == 3


def test_ratios_are_those_of_the_calls(made_up_time):
    def wait(seconds):
        return lambda: made_up_time.wait(seconds)

    calls = {"slow": wait(4.0), "fast": wait(1.0)}
    done = measure_side_by_side(calls, rounds=3, clock="wall", memory=False)
    assert (done["slow"].ratio, done["slow"].seconds) == (1, 4)
    assert (done["fast"].ratio, done["fast"].seconds) == (0.25, 1)
    assert done["fast"].repeats == 1
    other = measure_side_by_side(calls, rounds=1, clock="wall", baseline="fast", memory=False)
    assert other["slow"].ratio == other.ratio("slow", "fast") == 4
    assert other.ratio("fast", "slow") == 0.25
    assert other.baseline == "fast"


def test_a_slow_moment_does_not_move_the_ratio(made_up_time):
    """Each round is slower than the one before; only ratios within a round do not see it."""
    turns = []

    def call(share):
        def run():
            turns.append(1)
            made_up_time.wait(share * 2 ** (len(turns) // 2))

        return run

    calls = {"one": call(1.0), "two": call(2.0)}
    done = measure_side_by_side(calls, rounds=8, clock="wall", warmup=0, memory=False)
    assert done["two"].ratio_low >= 1
    assert done["two"].ratio_high <= 4
    assert done["two"].seconds > 10 * 2


def test_medians_and_quartiles(made_up_time):
    base, other = iter([7.0, 2, 2, 2, 2, 2]), iter([7.0, 1, 2, 3, 4, 100])  # the first calibrates
    calls = {
        "base": lambda: made_up_time.wait(next(base)),
        "other": lambda: made_up_time.wait(next(other)),
    }
    done = measure_side_by_side(calls, rounds=5, clock="wall", warmup=0, memory=False)["other"]
    assert (done.seconds, done.ratio, done.ratio_low, done.ratio_high) == (3, 1.5, 1, 2)
    assert done.readings == (1, 2, 3, 4, 100)


def test_short_calls_are_repeated():
    calls = []
    done = measure_side_by_side({"n": lambda: calls.append(1)}, rounds=2, memory=False)
    assert done["n"].repeats > 100
    assert len(calls) >= 2 * done["n"].repeats


def test_budget_stops_after_three_rounds():
    calls = {"nothing": lambda: None}
    done = measure_side_by_side(calls, rounds=50, budget=0.0, memory=False)
    assert done.rounds == 3


def test_memory_of_each_call():
    x = torch.zeros(2**18)
    calls = {"one": lambda: x + 1, "two": lambda: (x + 1, x + 2), "none": lambda: x.sum()}
    done = measure_side_by_side(calls, rounds=1, least_seconds=0)
    assert done["one"].peak_memory == pytest.approx(2**20, abs=100)
    assert done["two"].peak_memory == pytest.approx(2**21, abs=100)
    assert done["none"].peak_memory < 1000
    assert "2.0" in str(done)


def test_leaves_threads_and_random_states():
    state, other, threads = torch.get_rng_state(), random.getstate(), torch.get_num_threads()
    done = measure_side_by_side(
        {"draw": lambda: (torch.rand(3), random.random())}, rounds=1, threads=threads + 1
    )
    assert done.threads == threads + 1
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == other


def test_as_dict_is_json(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "x")
    plain = measure_side_by_side({"a": lambda: None}, rounds=1, least_seconds=0).as_dict()
    back = json.loads(json.dumps(plain))
    assert back == plain
    assert (back["clock"], back["device"], back["baseline"]) == ("cpu", "cpu", "a")
    assert back["allocator"] == {"GLIBC_TUNABLES": "x"}
    assert back["timings"]["a"].keys() == {
        "seconds",
        "ratio",
        "ratio_low",
        "ratio_high",
        "peak_memory",
        "repeats",
        "readings",
    }


@pytest.mark.parametrize(
    ("calls", "options", "message"),
    [
        ({}, {}, r"measure_side_by_side: calls is empty"),
        ({"a": list}, {"baseline": "b"}, r"baseline 'b' is none of a"),
        ({"a": list}, {"rounds": 0}, r"rounds must be an integer >= 1, got 0"),
        ({"a": list}, {"threads": 0}, r"threads must be an integer >= 1 or None, got 0"),
        ({"a": list}, {"budget": -1.0}, r"at least 0 seconds, got 0.005 and -1.0"),
        ({"a": list}, {"clock": "sun"}, r"clock must be 'wall' or 'cpu', got 'sun'"),
        ({"a": list}, {"device": "cuda"}, r"the CPU clock does not see work on cuda"),
    ],
)
def test_refuses(calls, options, message):
    with pytest.raises(ValueError, match=message):
        measure_side_by_side(calls, **options)


def test_limits_are_plausible():
    limits = machine_limits(rounds=2, small=1 << 20, large=1 << 22, size=128)
    assert 1e8 < limits.copy_small < 1e13
    assert 1e8 < limits.copy_large < 1e13
    assert 1e8 < limits.multiply < 1e13
    assert limits.as_dict()["dtype"] == "float32"


def test_machine_is_described():
    facts = describe_machine()
    assert facts["torch"] == str(torch.__version__)
    assert json.loads(json.dumps(facts)) == facts


def test_environment_of_a_child():
    assert tuned_environment({"A": "1"}) == {"A": "1", "GLIBC_TUNABLES": TUNED_ALLOCATOR}
    kept = {"GLIBC_TUNABLES": "mine"}
    assert tuned_environment(kept) == kept
    assert tuned_environment({"LD_PRELOAD": "jemalloc.so"}) == {"LD_PRELOAD": "jemalloc.so"}
    child = tuned_environment({}, threads=1)
    assert (child["OMP_NUM_THREADS"], child["OMP_WAIT_POLICY"]) == ("1", "PASSIVE")
