"""Trials that train on several devices: what they take of a machine."""

import pytest
import torch

from tests.study.tiny import recipe, study
from visgraft.study.child_process import child_environment
from visgraft.study.cluster.machines import Machine, Share, gpus_per_trial
from visgraft.study.devices import check_devices, check_threads, most_workers
from visgraft.study.errors import StudyError
from visgraft.study.execution import run_study


def on_devices(devices, **changes):
    return study(recipe=recipe(devices=devices, **changes))


class Cluster:
    def machines(self):
        return [Machine("n0", "10.0.0.1", 16, 4), Machine("n1", "10.0.0.2", 16, 0)]


@pytest.fixture
def five_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_the_recipe_decides_about_the_gpus_of_a_trial():
    two = on_devices(2, device="auto").recipe
    assert gpus_per_trial(two, None, Cluster()) == 2
    assert gpus_per_trial(two, 2, Cluster()) == 2
    assert gpus_per_trial(two, 0, Cluster()) == 0
    assert gpus_per_trial(on_devices(2, device="cpu").recipe, None, Cluster()) == 0
    for wanted in (1, 0.5, 3):
        with pytest.raises(StudyError, match=rf"2 GPUs .* so gpus must be 2, got {wanted:g}"):
            gpus_per_trial(two, wanted, Cluster())
    with pytest.raises(StudyError, match="got 2; for several GPUs per trial set devices of the"):
        gpus_per_trial(on_devices(1, device="auto").recipe, 2, Cluster())
    assert [machine.room(Share(2, 2)) for machine in Cluster().machines()] == [2, 0]


def test_lanes_have_gpus_of_their_own(five_gpus, monkeypatch):
    seen = [child_environment(1, lane, 2)["CUDA_VISIBLE_DEVICES"] for lane in range(3)]
    assert seen == ["0,1", "2,3", "0,1"]
    assert child_environment(1, 6)["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,6,4,3")
    assert child_environment(1, 1, 2)["CUDA_VISIBLE_DEVICES"] == "6,4"


def test_trials_at_a_time(five_gpus):
    assert most_workers(on_devices(2, device="auto"), 64) == 2
    assert most_workers(on_devices(2, device="cpu"), 3) == 1
    assert most_workers(on_devices(2, device="cpu"), 1) == 1


def test_too_few_gpus_or_threads(five_gpus, tmp_path):
    check_devices(on_devices(5, device="auto", batch_size=20))
    with pytest.raises(StudyError, match=r"trains on 6 GPUs .devices: 6., and this machine has 5"):
        run_study(on_devices(6, device="auto", batch_size=42), tmp_path / "gpus", progress=False)
    check_threads(on_devices(2), 2)
    with pytest.raises(StudyError, match=r"on 2 devices, .* threads must be 2 or more, got 1"):
        run_study(on_devices(2), tmp_path / "threads", threads=1, progress=False)
    assert list(tmp_path.iterdir()) == []
