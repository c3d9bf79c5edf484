"""Training on several devices: who sees which image, equal numbers, and what a kill leaves."""

import math
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.tasks.conftest import TINY
from visgraft.tasks import distributed
from visgraft.tasks.building import resolve_input
from visgraft.tasks.checkpoint import read_checkpoint, read_record, read_weights
from visgraft.tasks.devices import check_devices, share_of_batch
from visgraft.tasks.distributed import RankTracebackError
from visgraft.tasks.errors import RecipeError, TrainingError
from visgraft.tasks.loaders import ImageLoaders
from visgraft.tasks.run_folder import RunFolder
from visgraft.tasks.training import train

AUGMENTED = {"crop_padding": 4, "color_jitter": 0.2, "random_erase": 0.5}
WITHOUT_BATCH_NORM = {"model_args": {"channels": [4, 8, 8, 16], "norm_layer": "layernorm2d"}}
IN_FULL = AUGMENTED | {"mixup": 0.3, "drop_rate": 0.2, "ema_decay": 0.9, "workers": 1}


# The recipe.


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"devices": 5}, r"devices: must divide batch_size \(24\) without a remainder, got 5"),
        ({"devices": 0}, "devices: must be greater than 0, got 0"),
        ({"devices": 8, "mixup": 0.2}, r"an even part of batch_size \(24\), since mixup .* got 8"),
        (
            {"task": "detection", "data": "fashion_scenes", "model_args": {}, "devices": 2},
            "devices: is for task classification; leave it out, got 2",
        ),
    ],
)
def test_recipes_that_cannot_be_shared(make_recipe, changes, text):
    with pytest.raises(RecipeError, match=text):
        make_recipe(**changes)


def test_images_that_cannot_be_shared(make_recipe):
    assert share_of_batch(make_recipe(devices=2), 120) == 12
    assert share_of_batch(make_recipe(devices=2), 21) == 10
    with pytest.raises(TrainingError, match="21 training images make one batch of 20, which 3 "):
        share_of_batch(make_recipe(devices=3), 21)
    check_devices(make_recipe(devices=3), 120, 3)
    with pytest.raises(TrainingError, match="devices is 3, but there are 2 images to validate on"):
        check_devices(make_recipe(devices=3), 120, 2)


def test_too_few_gpus(make_recipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(TrainingError, match="devices is 2, but torch sees 1 GPU; lower devices"):
        check_devices(make_recipe(devices=2), 120, 60)
    check_devices(make_recipe(devices=2, device="cpu"), 120, 60)


def test_another_number_of_devices_is_another_run(tmp_path, make_recipe):
    run = RunFolder(tmp_path)
    run.claim(make_recipe(devices=2))
    with pytest.raises(TrainingError, match=r"another recipe \(devices was 2 and is 1"):
        run.check(make_recipe())


# Who sees what.


def loaders(images, recipe, rank=None):
    result = ImageLoaders(images, recipe, resolve_input(recipe, images), first_epoch=3)
    if rank is not None:
        place = {"world_size": recipe.devices, "global_rank": rank}
        device = SimpleNamespace(root_device=torch.device("cpu"))
        result.trainer = SimpleNamespace(**place, strategy=device)
    return result


@pytest.mark.parametrize(("devices", "batch_size"), [(2, 18), (3, 18), (7, 42)])
def test_devices_share_each_batch(images, make_recipe, devices, batch_size):
    recipe = make_recipe(batch_size=batch_size, devices=devices, **AUGMENTED)
    alone = list(loaders(images, recipe.model_copy(update={"devices": 1})).train_dataloader())
    assert len(alone) == 120 // batch_size
    shares = [list(loaders(images, recipe, r).train_dataloader()) for r in range(devices)]
    for (pictures, labels), *parts in zip(alone, *shares, strict=True):
        for rank, (own_pictures, own_labels) in enumerate(parts):
            assert torch.equal(own_pictures, pictures[rank::devices])
            assert torch.equal(own_labels, labels[rank::devices])


def test_each_image_is_validated_once(images, make_recipe):
    recipe = make_recipe(batch_size=21, devices=7)
    ((everything, _),) = loaders(
        images, recipe.model_copy(update={"batch_size": 60, "devices": 1})
    ).val_dataloader()
    shares = [list(loaders(images, recipe, rank).val_dataloader()) for rank in range(7)]
    assert {len(batch[1]) for share in shares for batch in share[:-1]} == {3}
    for rank, share in enumerate(shares):
        assert torch.equal(torch.cat([pictures for pictures, _ in share]), everything[rank::7])


# What went wrong.


def failed(number, *, code=None, error=None):
    process = SimpleNamespace(poll=lambda: code, returncode=code)
    told = (error, "Traceback of its own") if error else None
    return distributed._Rank(number, process, None, error=told)


LOST_CONNECTION = RuntimeError("Connection closed by peer")
MEMORY = torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("ranks", "kind", "text"),
    [
        ([failed(0, error=LOST_CONNECTION), failed(1, code=-9)], TrainingError, "1 was killed by "),
        ([failed(0, error=LOST_CONNECTION), failed(1, code=3)], TrainingError, "exit code 3"),
        (
            [failed(0, error=LOST_CONNECTION), failed(1, error=TrainingError("the loss"))],
            TrainingError,
            "^the loss$",
        ),
        ([failed(0, error=OSError(28, "No space left")), failed(1, code=-9)], OSError, "No space"),
        ([failed(0, code=-6), failed(1, error=MEMORY)], torch.OutOfMemoryError, "CUDA out of mem"),
        ([failed(0, code=-6)], TrainingError, "device 0 was killed by SIGABRT"),
    ],
)
def test_the_cause_is_told_and_not_what_follows(ranks, kind, text):
    with pytest.raises(kind, match=text) as raised:
        distributed._raise_cause(ranks, is_over=True)
    if not isinstance(raised.value, distributed.LostDeviceError):
        assert "Traceback of its own" in str(raised.value.__cause__)
        assert isinstance(raised.value.__cause__, RankTracebackError)


def test_a_lost_connection_waits_for_its_cause():
    distributed._raise_cause([failed(0, error=LOST_CONNECTION)], is_over=False)
    with pytest.raises(RuntimeError, match="Connection closed"):
        distributed._raise_cause([failed(0, error=LOST_CONNECTION)], is_over=True)


# Real processes.


def weights(path):
    return read_weights(read_checkpoint(path), path)


@pytest.fixture
def processes(monkeypatch, tmp_path):
    """Notes the processes that are started, also by a fork of this one."""
    start, noted = distributed._start, tmp_path / "processes"

    def start_and_note(*arguments):
        rank = start(*arguments)
        with noted.open("a") as file:
            print(rank.process.pid, file=file)
        return rank

    monkeypatch.setattr(distributed, "_start", start_and_note)
    noted.touch()
    return lambda: [int(line) for line in noted.read_text().split()]


def is_running(process):
    with suppress(FileNotFoundError, ProcessLookupError):
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


@pytest.mark.slow
def test_the_numbers_are_those_of_one_device(tmp_path):
    recipe = TINY | WITHOUT_BATCH_NORM | AUGMENTED
    recipe |= {"optimizer": "sgd", "lr": 0.3, "train_limit": 203, "val_limit": 61}
    rows = []
    one = train(recipe, tmp_path / "one", progress=False)

    def note(row):
        time.sleep(2 if row["epoch"] == 1 else 0)  # in which an epoch would pass, did nobody wait
        last = tmp_path / "two" / "last.ckpt"
        assert len(read_record(read_checkpoint(last), last).history) == row["epoch"]
        rows.append(row)

    two = train(recipe | {"devices": 2}, tmp_path / "two", progress=False, on_epoch=note)
    assert (two.data_order, two.initial_weights) == (one.data_order, one.initial_weights)
    assert rows == list(two.metrics)
    for ours, expected in zip(two.metrics, one.metrics, strict=True):
        for name in ("train_loss", "loss"):
            assert math.isclose(ours[name], expected[name], rel_tol=1e-5)
        assert all(ours[name] == expected[name] for name in ("epoch", "top1", "top5", "lr"))
    ours, expected = weights(two.checkpoint), weights(one.checkpoint)
    assert ours.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-4, atol=1e-5)
    assert one.metrics[0]["train_loss"] - one.metrics[1]["train_loss"] > 0.02  # it learned


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_whoever_is_killed_it_ends_with_the_same_weights(tmp_path, processes):
    recipe = TINY | IN_FULL | {"epochs": 3, "devices": 2}
    whole = train(recipe, tmp_path / "whole", progress=False)
    assert len(processes()) == 2
    folder, seen = tmp_path / "killed", []

    def kill_the_second(row):
        seen.append(row["epoch"])
        os.kill(processes()[-1], signal.SIGKILL)

    text = "device 1 was killed by SIGKILL .*; 1 of 3 epochs are in .*last.ckpt"
    with pytest.raises(TrainingError, match=text):
        train(recipe, folder, progress=False, on_epoch=kill_the_second)
    assert seen == [1]
    assert not any(map(is_running, processes()))

    caller = multiprocessing.get_context("fork").Process(
        target=train, args=(recipe, folder), kwargs={"progress": False}
    )
    caller.start()
    wait_until(lambda: len(processes()) == 6)
    os.kill(caller.pid, signal.SIGKILL)
    caller.join()
    wait_until(lambda: not any(map(is_running, processes())))

    resumed = train(recipe, folder, progress=False, on_epoch=lambda row: seen.append(row["epoch"]))
    assert seen == [1, 2, 3]
    for path, expected in [
        (resumed.checkpoint, whole.checkpoint),
        (resumed.best_checkpoint, whole.best_checkpoint),
    ]:
        state, wanted = weights(path), weights(expected)
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    for row, wanted in zip(resumed.metrics, whole.metrics, strict=True):
        assert row | {"seconds": 0} == wanted | {"seconds": 0}
    lines = (folder / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "1", "2", "3"]


def wait_until(holds):
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
