"""The figures themselves: of what, in which order, and what a failure leaves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.study.test_measuring_driver import finish
from tests.study.tiny import recipe, study
from visgraft.inspect import measure
from visgraft.study.execution import run_study
from visgraft.study.measuring import networks as measuring
from visgraft.study.measuring.networks import measure_networks
from visgraft.study.measuring.record import read_costs
from visgraft.study.plan import trials
from visgraft.study.store import Store
from visgraft.tasks.building import build_model
from visgraft.tasks.images import load_images

ROOT = Path(__file__).parents[2]
PLAN = {"recipe": recipe(batch_size=6), "controls": ["identity"]}
NAMES = ["baseline", "ca", "identity_ca"]


@pytest.fixture(scope="module")
def plan():
    return study(**PLAN)


@pytest.fixture(scope="module")
def data(plan):
    return load_images(plan.recipe, False)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def found(plan, data, told):
    return measure_networks(plan, NAMES, data, threads=1, announce=told.append)


def built(plan, data, name):
    spec = next(spec for spec in trials(plan) if spec.variant == name)
    return build_model(spec.recipe, data)[0]


def test_every_network_has_all_its_figures(found, told):
    assert list(found.costs) == NAMES
    assert found.failures == {}
    for cost in found.costs.values():
        assert [latency.batch_size for latency in cost.latencies] == [1, 6]
        for latency in cost.latencies:
            assert 0 < latency.p50 <= latency.p95 < 60
            assert latency.rounds >= 4
        assert (cost.device, cost.dtype, cost.threads) == ("cpu", "float32", 1)
    assert len({x.rounds for cost in found.costs.values() for x in cost.latencies}) == 1
    assert told == [*NAMES, *NAMES, None]
    assert found.of == "the whole network, images of 28 x 28 pixels"
    assert found.environment["torch"] == torch.__version__
    assert found.environment["threads"] == 1
    assert abs(time.time() - found.time) < 600
    assert 0 < found.share <= 1


def test_waiting_for_a_processor_is_noticed(plan, data, monkeypatch):
    def turns(*_):
        time.sleep(0.3)
        return {}

    monkeypatch.setattr(measuring, "_take_turns", turns)
    assert measure_networks(plan, [], data, threads=1).share < 0.5


def test_memory_is_that_of_the_recipes_batch(found, plan, data):
    for name in ("baseline", "ca"):
        how = {"batch_sizes": 6, "backward": True, "warmup": 0, "rounds": 1}
        wanted = measure(built(plan, data, name), (1, 1, 28, 28), **how)
        cost = found.costs[name]
        assert cost.training_memory == wanted.at(backward=True).peak_memory
        assert cost.inference_memory == wanted.at().peak_memory
    assert found.costs["ca"].training_memory > found.costs["baseline"].training_memory


def test_networks_take_turns(plan, data, monkeypatch):
    seen = []

    def spy(calls, **options):
        seen.append((list(calls), options))
        return side_by_side(calls, **options)

    side_by_side = measuring.measure_side_by_side
    monkeypatch.setattr(measuring, "measure_side_by_side", spy)
    monkeypatch.setattr(measuring, "SLOWEST_CALL", 0.0)
    done = measure_networks(plan, NAMES[:2], data, threads=1)
    (first, options), (second, more) = seen
    assert first == second == ["1 baseline", "1 ca"]  # no batch is quick enough
    assert (options["clock"], options["threads"], options["least_seconds"]) == ("wall", 1, 0.0)
    assert options["rounds"] + more["rounds"] == measuring.MOST_ROUNDS
    assert 0 < more["budget"] <= 2 * measuring.SECONDS
    assert [x.batch_size for x in done.costs["ca"].latencies] == [1]


@pytest.mark.parametrize(
    ("batch_size", "seconds", "batch"),
    [(64, 0.001, 64), (64, 0.1, 4), (64, 3.0, 1), (1, 0.001, 1), (6, 0.1, 3), (5, 0.1, 5)],
)
def test_large_batch_is_halved_until_a_call_is_quick(batch_size, seconds, batch):
    assert measuring._largest_batch(batch_size, seconds) == batch


class Greedy(nn.Module):
    """Runs out of memory in eval mode, where there is more than one image."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        if not self.training and len(x) > 1 and not torch.is_grad_enabled():
            raise torch.OutOfMemoryError("tried to allocate 7.00 GiB\nin a long text")
        return self.network(x)


@pytest.mark.parametrize("where", ["large batch", "build"])
def test_network_that_fails_is_named_and_the_others_are_measured(plan, data, monkeypatch, where):
    whole, build = measuring.counted_part, measuring.build_model

    def part(model, recipe):
        return Greedy(whole(model, recipe)) if recipe.grafts and where != "build" else model

    def fail(recipe, data):
        if recipe.grafts and where == "build":
            raise RuntimeError("no such thing")
        return build(recipe, data)

    def step(network, *args, **options):  # leaves the forward pass of the batch to fail later
        return stepped(getattr(network, "network", network), *args, **options)

    stepped = measuring.measure
    monkeypatch.setattr(measuring, "counted_part", part)
    monkeypatch.setattr(measuring, "build_model", fail)
    monkeypatch.setattr(measuring, "measure", step)
    done = measure_networks(plan, NAMES[:2], data, threads=1)
    assert list(done.costs) == ["baseline"]
    reason = {
        "large batch": "OutOfMemoryError: tried to allocate 7.00 GiB",
        "build": "RuntimeError: no such thing",
    }
    assert done.failures == {"ca": reason[where]}
    assert [x.batch_size for x in done.costs["baseline"].latencies] == [1, 6]


def test_nothing_left_to_time(plan, data, monkeypatch):
    monkeypatch.setattr(measuring, "build_model", None)
    done = measure_networks(plan, NAMES[:1], data, threads=1)
    assert (done.costs, list(done.failures)) == ({}, ["baseline"])


def test_mixed_precision_and_layout_are_those_of_the_recipe(plan, data, monkeypatch):
    half = plan.recipe.model_copy(update={"precision": "bf16", "channels_last": True})
    seen = []

    def spy(calls, **options):
        seen.append(calls["1 baseline"]())
        return side_by_side(calls, **options)

    side_by_side = measuring.measure_side_by_side
    monkeypatch.setattr(measuring, "measure_side_by_side", spy)
    done = measure_networks(plan.model_copy(update={"recipe": half}), NAMES[:1], data, threads=1)
    assert seen[0].dtype == torch.bfloat16
    assert not seen[0].requires_grad
    assert done.costs["baseline"].dtype == "bfloat16, mixed"
    assert done.of == "the whole network, channels last, images of 28 x 28 pixels"


def test_backbone_and_pyramid_of_a_detector_are_measured():
    from tests.study.test_detectors import study as detectors

    plan = detectors()
    data = load_images(plan.recipe, False)
    done = measure_networks(plan, ["baseline"], data, threads=1)
    assert done.failures == {}
    assert done.of == "backbone and pyramid, images of 64 x 64 pixels"
    part = built(plan, data, "baseline").backbone
    size = plan.recipe.batch_size
    wanted = measure(part, (1, 3, 64, 64), batch_sizes=size, warmup=0, rounds=1)
    cost = done.costs["baseline"]
    assert [x.batch_size for x in cost.latencies] == [1, size]
    assert cost.inference_memory == wanted.at().peak_memory


DRIVER = """
import sys
from visgraft.study import load_study, run_study
run_study(load_study(sys.argv[1]), sys.argv[1].rpartition("/")[0], workers=2, progress=False)
"""


def measuring_process(folder):
    """The number of the process that measures a study, if there is one."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"visgraft.study.measuring.worker" in words and str(folder).encode() in words:
            return int(entry.parent.name)
    return None


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks up processes in /proc")
def test_driver_killed_while_it_measures_takes_the_process_along(tmp_path):
    store = Store.prepare(tmp_path / "study", study(**PLAN))
    finish(store)
    store.settle("threads", "2")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", DRIVER, str(store.folder / "study.yaml")]
    with subprocess.Popen(command, env=environment) as driver:
        wait_for(lambda: measuring_process(store.folder))
        driver.send_signal(signal.SIGKILL)
    wait_for(lambda: measuring_process(store.folder) is None)
    assert read_costs(store).costs == {}
    before = store.trials()
    result = run_study(study(**PLAN), store.folder, workers=1, progress=False)
    assert result.trials == before
    found = read_costs(store)
    assert list(found.costs) == NAMES
    assert {cost.threads for cost in found.costs.values()} == {2}
    assert found.environment["threads"] == 2
    rounds = {x.rounds for cost in found.costs.values() for x in cost.latencies}
    assert min(rounds) >= measuring.LEAST_ROUNDS
