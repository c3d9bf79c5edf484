"""What is measured is what was called, and nothing of the model or the process has changed."""

import copy
import random
import time

import pytest
import torch
from torch import nn

import visgraft as vg
from visgraft.inspect import Run, _clock, measure

MIB = 2**20


class Recorder(nn.Module):
    """Notes how it is called, and takes the given seconds in turn."""

    def __init__(self, time=None, seconds=(0,)):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.time, self.seconds, self.shapes, self.modes = time, seconds, [], []

    def forward(self, x):
        if self.time is not None:
            self.time.wait(self.seconds[len(self.shapes) % len(self.seconds)])
        self.shapes.append(tuple(x.shape))
        self.modes.append((self.training, torch.is_grad_enabled()))
        return x * self.weight


def test_percentiles_are_of_the_calls_after_the_warm_up(made_up_time):
    model = Recorder(made_up_time, [1000.0, *range(21), 500.0])
    run = measure(model, (4, 1), warmup=1, rounds=21).at()
    assert (run.latency_p50, run.latency_p95, run.throughput) == (10, 19, 0.4)
    assert (run.batch_size, run.rounds, run.backward) == (4, 21, False)
    assert len(model.shapes) == 1 + 21 + 1  # one more for the memory


def test_the_clock_is_the_one_asked_for(made_up_time, monkeypatch):
    monkeypatch.setitem(_clock._CLOCKS, "cpu", lambda: 5 * made_up_time.now)
    model = Recorder(made_up_time, [2.0])
    assert measure(model, (1, 1), rounds=1).at().latency_p50 == 2
    assert measure(model, (1, 1), rounds=1, clock="cpu").at().latency_p50 == 10


def test_batch_sizes_and_steps():
    model = Recorder()
    done = measure(model, torch.rand(2, 3), batch_sizes=(1, 5), backward=True, warmup=0, rounds=1)
    runs = [(r.batch_size, r.backward) for r in done.runs]
    assert runs == [(1, False), (1, True), (5, False), (5, True)]
    assert model.shapes == [(1, 3)] * 4 + [(5, 3)] * 4
    assert model.modes == ([(False, False)] * 2 + [(True, True)] * 2) * 2
    assert done.at(5, backward=True) is done.runs[3]
    with pytest.raises(ValueError, match=r"batch size 3 was not measured, only 1, 1 with backward"):
        done.at(3)


def test_the_real_clocks_differ():
    wall, cpu = (_clock._CLOCKS[name] for name in ("wall", "cpu"))
    assert (wall, cpu) == (time.perf_counter, time.process_time)


def test_only_tensors_of_the_batch_are_resized():
    class Pair(nn.Module):
        def forward(self, x, *, table, count):
            shapes.append((tuple(x.shape), tuple(table.shape), count))
            return x

    shapes = []
    example = {"x": torch.rand(2, 3), "table": torch.rand(7, 3), "count": 2}
    measure(Pair(), example, batch_sizes=3, warmup=0, rounds=1)
    assert set(shapes) == {((3, 3), (7, 3), 2)}


def test_peak_memory_is_that_of_the_tensors():
    class Wasteful(nn.Module):
        def forward(self, x):
            return (x.repeat(8, 1) + 1).sum(0, keepdim=True)

    x = torch.zeros(1, MIB // 4)  # 1 MiB
    peak = measure(Wasteful(), x, rounds=1).at().peak_memory
    assert 16 * MIB <= peak < 17.5 * MIB  # eight copies and their sums

    class Frugal(nn.Module):
        def forward(self, x):
            return sum(x.repeat(8, 1).sum() for _ in range(3))

    peak = measure(Frugal(), x, rounds=1).at().peak_memory
    assert 8 * MIB <= peak < 9 * MIB  # one after the other


def test_memory_of_a_training_step_holds_the_gradients():
    model = nn.Linear(512, 512, bias=False)
    done = measure(model, (1, 512), backward=True, rounds=1)
    assert done.at().peak_memory < 0.1 * MIB
    assert MIB <= done.at(backward=True).peak_memory < 1.1 * MIB


def test_leaves_everything_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten())
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    buffer = model[1].running_mean
    before = copy.deepcopy(model.state_dict())
    state, other, threads = torch.get_rng_state(), random.getstate(), torch.get_num_threads()
    measure(model, (4, 3, 6, 6), backward=True, rounds=2, threads=threads + 1)
    assert [module.training for module in model] == [True, False, True, True]
    assert model.training
    assert model[1].running_mean is buffer
    assert all(torch.equal(model.state_dict()[name], t) for name, t in before.items())
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[0].bias.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == other
    assert torch.get_num_threads() == threads


def test_a_failure_leaves_everything_as_it_was():
    class Breaks(nn.Module):
        def forward(self, x):
            torch.rand(1)
            raise RuntimeError("no luck")

    model, state, threads = Breaks(), torch.get_rng_state(), torch.get_num_threads()
    with pytest.raises(ValueError, match=r"^measure: Breaks does not run on the example \(Runtime"):
        measure(model, (1, 3), threads=threads + 1)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_says_what_it_was_measured_with(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.top_pad=1")
    done = vg.measure(nn.Linear(2, 2).double(), (1, 2), rounds=1, threads=1)
    assert (done.device, done.dtype, done.threads, done.clock) == ("cpu", "float64", 1, "wall")
    assert done.allocator == {"GLIBC_TUNABLES": "glibc.malloc.top_pad=1"}
    assert done.as_dict()["runs"][0].keys() == Run.__dataclass_fields__.keys()
    assert str(done).splitlines()[0] == "cpu, float64, 1 threads, wall clock"
    assert str(done).splitlines()[1].startswith("batch 1, forward: p50 ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": (1, 0)}, r"measure: batch_sizes must be an integer >= 1, got 0"),
        ({"batch_sizes": ()}, r"measure: batch_sizes is empty"),
        ({"rounds": 0}, r"measure: rounds must be an integer >= 1, got 0"),
        ({"warmup": -1}, r"measure: warmup must be an integer >= 0, got -1"),
        ({"threads": 0}, r"measure: threads must be an integer >= 1, got 0"),
        ({"clock": "sun"}, r"measure: clock must be 'wall' or 'cpu', got 'sun'"),
    ],
)
def test_refuses_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        measure(nn.Linear(2, 2), (1, 2), **options)


def test_refuses_models_without_values_and_without_gradients():
    with pytest.raises(ValueError, match=r"^measure: the model is on the meta device"):
        measure(nn.Linear(2, 2, device="meta"), (1, 2))
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match=r"no parameter requires a gradient"):
        measure(frozen, (1, 2), backward=True, rounds=1)
    with pytest.raises(ValueError, match=r"measure: example must be a tensor"):
        measure(frozen, "x")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda():
    model = nn.Linear(1024, 1024, bias=False)
    done = measure(model, (8, 1024), device="cuda", backward=True, rounds=3)
    assert done.device.startswith("cuda")
    assert model.weight.device.type == "cpu"
    assert 4 * MIB <= done.at(backward=True).peak_memory < 40 * MIB
    with pytest.raises(ValueError, match="the CPU clock does not see work on cuda"):
        measure(model, (8, 1024), device="cuda", clock="cpu")
