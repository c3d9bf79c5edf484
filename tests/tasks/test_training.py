import csv
import errno
import logging
import os
import random
import signal
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from visgraft.tasks import files
from visgraft.tasks.checkpoint import read_checkpoint, read_weights
from visgraft.tasks.errors import CheckpointError, TrainingError, TrainingInterrupted
from visgraft.tasks.files import locked
from visgraft.tasks.training import train

ROUGH = {"mixup": 0.3, "cutmix": 0.5, "drop_rate": 0.2, "random_erase": 0.5, "ema_decay": 0.9}


def weights(path):
    return read_weights(read_checkpoint(path), path)


def same(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.fixture
def run(make_recipe, images, tmp_path):
    """Trains the tiny recipe, changed, in a folder of this test."""

    def run(folder="run", *, on_epoch=None, keep="all", progress=False, **changes):
        return train(
            make_recipe(**changes),
            tmp_path / folder,
            progress=progress,
            on_epoch=on_epoch,
            keep=keep,
            data=images,
        )

    return run


def test_a_run_leaves_recipe_metrics_and_checkpoints(run, tmp_path):
    rows = []
    result = run(on_epoch=rows.append, epochs=3)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        ".lock",
        "best.ckpt",
        "last.ckpt",
        "metrics.csv",
        "recipe.yaml",
    ]
    assert list(result.metrics) == rows
    with (tmp_path / "run" / "metrics.csv").open() as file:
        written = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert written == rows
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[0]["lr"] > rows[1]["lr"] > rows[2]["lr"] > 0
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert result.final == rows[-1]
    assert result.best["top1"] == max(row["top1"] for row in rows)
    assert result.seconds == pytest.approx(sum(row["seconds"] for row in rows))
    assert "optimizer_states" not in read_checkpoint(result.checkpoint)


def test_best_checkpoint_is_that_of_the_best_epoch(run, tmp_path):
    kept = {}

    def copy(row):
        kept[row["epoch"]] = weights(tmp_path / "run" / "last.ckpt")

    result = run(on_epoch=copy, epochs=4, lr=0.1)
    best = weights(result.best_checkpoint)
    assert all(torch.equal(best[n], t) for n, t in kept[result.best["epoch"]].items())


def test_keep_last_writes_no_best(run):
    assert run(keep="last", epochs=1).best_checkpoint is None


def test_a_finished_run_is_not_trained_again(run, images):
    first = run()
    written = first.checkpoint.stat().st_mtime_ns
    again = run(on_epoch=lambda row: pytest.fail("trained again"), workers=2)
    assert again == first
    assert first.checkpoint.stat().st_mtime_ns == written


def test_the_learning_is_real(run):
    result = run(epochs=10, batch_size=12, model_args={"channels": [8, 16, 16, 32]})
    assert result.final["top1"] > 45


@pytest.mark.parametrize("changes", [{}, ROUGH])
def test_stopped_after_any_epoch_it_goes_on_exactly(run, changes):
    whole = run("whole", epochs=3, **changes)
    for stop in (1, 2):

        def interrupt(row, stop=stop):
            if row["epoch"] == stop:
                raise KeyboardInterrupt

        with pytest.raises(TrainingInterrupted, match=rf"goes on later; {stop} of 3 epochs are in"):
            run(f"stopped{stop}", epochs=3, on_epoch=interrupt, **changes)
        rows = []
        resumed = run(f"stopped{stop}", epochs=3, on_epoch=rows.append, **changes)
        assert [row["epoch"] for row in rows] == list(range(stop + 1, 4))
        assert same(resumed.checkpoint, whole.checkpoint)
        assert same(resumed.best_checkpoint, whole.best_checkpoint)
        unlike = {"seconds"}
        for row, expected in zip(resumed.metrics, whole.metrics, strict=True):
            assert all(row[name] == expected[name] for name in row.keys() - unlike)


def test_each_random_choice_has_an_effect_on_the_weights(run):
    plain = run("plain", epochs=1).checkpoint
    for name, value in (ROUGH | {"seed": 1, "label_smoothing": 0.1, "clip_grad": 0.1}).items():
        assert not same(run(name, epochs=1, **{name: value}).checkpoint, plain), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_do_not_change_the_numbers(run):
    alone = run("alone", **ROUGH)
    assert same(run("two", workers=2, **ROUGH).checkpoint, alone.checkpoint)


def test_variants_see_the_same_images_from_the_same_start(run):
    graft = {"block": "coord_attention", "at": "block_end"}
    plain, grafted = run("plain", epochs=1), run("grafted", epochs=1, grafts=[graft])
    other = run("other", epochs=1, seed=1)
    assert plain.initial_weights == grafted.initial_weights != other.initial_weights
    assert plain.data_order == grafted.data_order != other.data_order
    scales = [t for n, t in weights(grafted.checkpoint).items() if n.endswith("graft.scale")]
    assert scales
    assert all(t.abs().max() > 0 for t in scales)


def test_another_recipe_is_refused_with_its_fields(run, tmp_path):
    run(epochs=1)
    with pytest.raises(
        TrainingError,
        match=r"holds a run of another recipe \(epochs was 1 and is 2; lr was 0.01 and is 0.5\); "
        "choose another folder, or delete",
    ):
        run(epochs=2, lr=0.5)
    (tmp_path / "run" / "recipe.yaml").write_text("lr: [")
    with pytest.raises(TrainingError, match=r"recipe\.yaml.*not valid YAML"):
        run(epochs=1)


def test_other_images_are_refused(make_recipe, images, tmp_path):
    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_recipe(), tmp_path, progress=False, on_epoch=stop, data=images)
    import dataclasses

    changed = dataclasses.replace(images, fingerprint="other")
    with pytest.raises(TrainingError, match="images of fashion_mini are not those that the run in"):
        train(make_recipe(), tmp_path, progress=False, data=changed)


def test_a_checkpoint_that_is_not_ours_is_refused(run, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    run(epochs=2)
    last = tmp_path / "run" / "last.ckpt"
    torch.save({"visgraft": Evil()}, last)
    with pytest.raises(CheckpointError, match="would execute code"):
        run(epochs=2)
    assert not (tmp_path / "executed").exists()
    torch.save({"state_dict": {}}, last)
    with pytest.raises(TrainingError, match="was not written by visgraft"):
        run(epochs=2)


class Exploding(nn.Module):
    """Becomes infinite in a chosen training step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.linear = nn.Linear(28 * 28, 10)
        self.at, self.seen = at, 0

    def forward(self, x):
        self.seen += self.training
        y = self.linear(x.flatten(1))
        return y * float("inf") if self.training and self.seen == self.at else y


def test_a_loss_that_is_not_finite_stops_with_the_step(run, tmp_path, monkeypatch):
    from visgraft.tasks import training

    monkeypatch.setattr(training, "build_base", lambda recipe, data: Exploding(at=7))
    with pytest.raises(
        TrainingError,
        match=r"not finite in step 2 of epoch 2; lower lr, .*; 1 of 3 epochs are in .*last\.ckpt",
    ):
        run(epochs=3)
    good = weights(tmp_path / "run" / "last.ckpt")
    assert all(t.isfinite().all() for t in good.values())
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 2


def test_weights_that_break_in_the_last_step_are_not_kept(run, tmp_path):
    with pytest.raises(TrainingError, match=r"not finite after epoch 1; .*no epoch was complete"):
        run(epochs=1, lr=1e38, optimizer="sgd", batch_size=120)
    assert not (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES])
def test_a_file_that_cannot_be_written_leaves_the_last_epoch(run, tmp_path, monkeypatch, error):
    whole = run("whole", epochs=3)
    replace, calls = os.replace, []

    def fail_later(source, target):
        if str(target).endswith("last.ckpt"):
            calls.append(target)
            if len(calls) == 2:
                raise OSError(error, os.strerror(error), str(target))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fail_later)
    with pytest.raises(
        TrainingError,
        match=rf"stopped: {os.strerror(error)} \(.*last\.ckpt\); nothing is half-written",
    ):
        run(epochs=3)
    monkeypatch.undo()
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.endswith(".part")]
    assert same(run(epochs=3).checkpoint, whole.checkpoint)


def test_a_folder_without_permission(make_recipe, images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"stopped: Not a directory|stopped: File exists"):
        train(make_recipe(), tmp_path / "file", progress=False, data=images)


def test_ctrl_c_in_an_epoch_says_how_to_go_on(run, tmp_path):
    handler = signal.getsignal(signal.SIGINT)

    def press(row):
        threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(
        TrainingInterrupted, match=r"The same call goes on later; \d+ of 500 epochs"
    ):
        run(epochs=500, on_epoch=press)
    assert signal.getsignal(signal.SIGINT) is handler


def test_two_processes_do_not_share_a_folder(run, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.0)
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"), pytest.raises(TrainingError, match="another process is train"):
        run()


def test_the_callers_world_is_left_as_it_was(run, capfd):
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    level, filters = logging.getLogger("pytorch_lightning").level, list(warnings.filters)
    run(epochs=1)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected
    assert logging.getLogger("pytorch_lightning").level == level
    assert list(warnings.filters) == filters
    assert torch.is_grad_enabled()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_progress_says_a_line_per_epoch(run, capfd):
    run(progress=True)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]


def test_bf16_and_channels_last(run):
    plain = run("plain", epochs=1)
    for changes in ({"precision": "bf16"}, {"channels_last": True}):
        result = run(next(iter(changes)), epochs=1, **changes)
        assert result.final["loss"] == pytest.approx(plain.final["loss"], rel=0.05)
        assert all(t.dtype != torch.bfloat16 for t in weights(result.checkpoint).values())


def test_tensorboard_holds_a_value_per_epoch(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(loggers=["tensorboard"])
    log = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    log.Reload()
    assert [event.step for event in log.Scalars("top1")] == [1, 2]


def test_a_logger_that_is_not_installed(run, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match="loggers: wandb is not installed; pip install wandb"):
        run(loggers=["wandb"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_no_gpu(run):
    with pytest.raises(TrainingError, match="device is cuda, but torch sees no GPU"):
        run(device="cuda")


def test_a_kill_before_the_last_row_of_the_log_loses_nothing(run, tmp_path, monkeypatch):
    from visgraft.tasks.run_folder import RunFolder

    def killed(self, history):
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "write_metrics", killed)
    with pytest.raises(TrainingInterrupted, match="1 of 1 epochs are in"):
        run(epochs=1)
    monkeypatch.undo()
    result = run(epochs=1, on_epoch=lambda row: pytest.fail("trained again"))
    assert "optimizer_states" not in read_checkpoint(result.checkpoint)
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 2


def test_a_run_that_cannot_start_leaves_no_trace(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder"):
        train({"base": "cpu_small", "data": str(tmp_path / "absent")}, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
