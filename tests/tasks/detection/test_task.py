"""Runs of detectors: what they leave, what they repeat, and what they refuse."""

import csv
import dataclasses
import json
import math

import pytest
import torch
from torch import nn

import visgraft
from tests.tasks.detection.tiny_run import tiny_recipe
from visgraft.data import load_data
from visgraft.data.detection import DetectionParts, load_detection
from visgraft.tasks import evaluate, load_trained
from visgraft.tasks.building import build_base, build_model, network_of, weights_digest
from visgraft.tasks.checkpoint import read_checkpoint, read_weights
from visgraft.tasks.detection.task import DetectionTask, leave_size, to_predictions
from visgraft.tasks.errors import TrainingError, TrainingInterrupted
from visgraft.tasks.recipe import Recipe
from visgraft.tasks.training import train

GATE = {"block": "coord_attention", "at": "layer4.*.conv2", "how": "after"}
ROUGH = {"scale_jitter": [0.6, 1.6], "color_jitter": 0.2, "ema_decay": 0.9, "drop_path_rate": 0.1}


@pytest.fixture(scope="module")
def scenes() -> DetectionParts:
    return load_detection("fashion_scenes", train_limit=4, val_limit=2)


@pytest.fixture
def run(tmp_path, scenes):
    def run(folder="run", *, on_epoch=None, progress=False, data=None, **changes):
        return train(
            tiny_recipe(**changes),
            tmp_path / folder,
            progress=progress,
            on_epoch=on_epoch,
            data=data or scenes,
        )

    return run


def weights(path):
    return read_weights(read_checkpoint(path), path)


def same(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_a_run_leaves_metrics_that_a_json_and_a_table_can_hold(run, tmp_path):
    result = run(grafts=[GATE])
    parts = ("classifier", "box_reg", "mask", "objectness", "rpn_box_reg")
    for row in result.metrics:
        assert row["train_loss"] == pytest.approx(sum(row[f"train_loss_{n}"] for n in parts))
        assert {"AP", "AP50", "AP_M", "mask_AP", "mask_AP75"} <= row.keys()
        assert "AP_L" not in row, "no garment is larger than 96 x 96"
        json.dumps(row, allow_nan=False)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        written = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert written == list(result.metrics)
    assert all(math.isfinite(value) for row in written for value in row.values())
    assert result.metric == "mask_AP"
    assert result.best["mask_AP"] == max(row["mask_AP"] for row in result.metrics)


def test_the_checkpoint_rebuilds_the_grafted_detector(run, scenes):
    result = run(grafts=[GATE], epochs=1, ema_decay=0.9)
    trained = load_trained(result.checkpoint)
    assert trained.record.classes == scenes.classes
    assert trained.record.category_ids == tuple(range(1, 11))
    network = network_of(trained.model, trained.recipe)
    assert "graft.scale" in " ".join(network.layer4.state_dict())
    assert any(
        name.startswith("backbone.network.layer4.0.conv2.graft")
        for name in trained.model.state_dict()
    )
    image = [torch.rand(3, 70, 90)]
    with torch.no_grad():
        found, again = trained.model(image)[0], visgraft.load(result.checkpoint)(image)[0]
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert len(found["boxes"])


@pytest.mark.parametrize(
    "changes",
    [
        {"grafts": [GATE], "ema_decay": 0.9},
        {"task": "detection", "precision": "bf16"},
        {"task": "detection", "detector": "retinanet"},
        {"task": "detection", "detector": "fcos"},
    ],
    ids=["mask_rcnn", "faster_rcnn", "retinanet", "fcos"],
)
def test_evaluation_equals_the_last_epoch(run, scenes, changes):
    result = run(epochs=1, train_limit=None, **changes)
    told = []
    measured = evaluate(result.checkpoint, data=scenes, progress=False, tell=told.append)
    assert measured == {name: result.final[name] for name in measured}
    assert measured.keys() >= {"AP", "AP50", "AP75", "AP_S", "AP_M"}
    assert ("mask_AP" in measured) == ("task" not in changes)
    assert told == ["the 2 validation images of fashion_scenes"]


def test_its_own_scenes_are_found_again_and_others_are_refused(run, tmp_path, scenes):
    result = run(epochs=1)
    assert evaluate(result.checkpoint, progress=False)["AP"] == result.final["AP"]
    other = dataclasses.replace(scenes.val, classes=("cat",), name="pets")
    with pytest.raises(ValueError, match=r"knows the classes T-shirt.*, but pets has cat"):
        evaluate(result.checkpoint, data=other, progress=False)
    with pytest.raises(ValueError, match=r"other.* are not those that the run in|choose another f"):
        run(data=load_detection("fashion_scenes", train_limit=3, val_limit=2), epochs=1, seed=1)


@pytest.mark.parametrize("changes", [{}, ROUGH | {"grafts": [GATE]}], ids=["plain", "rough"])
def test_stopped_after_an_epoch_it_goes_on_exactly(run, changes):
    whole = run("whole", **changes)

    def interrupt(row):
        raise KeyboardInterrupt

    with pytest.raises(TrainingInterrupted, match="1 of 2 epochs are in"):
        run("stopped", on_epoch=interrupt, **changes)
    resumed = run("stopped", **changes)
    assert same(resumed.checkpoint, whole.checkpoint)
    unlike = {"seconds"}
    for row, expected in zip(resumed.metrics, whole.metrics, strict=True):
        assert all(row[name] == expected[name] for name in row.keys() - unlike)


def test_each_random_choice_has_an_effect_on_the_weights(run):
    plain = run("plain", epochs=1).checkpoint
    changes = {"scale_jitter": [0.6, 1.6], "color_jitter": 0.2, "hflip": 1, "min_size": 64}
    for name, value in changes.items():
        assert not same(run(name, epochs=1, **{name: value}).checkpoint, plain), name


def test_other_scenes_are_refused_by_an_unfinished_run(run):
    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(on_epoch=stop)
    with pytest.raises(TrainingError, match="images of fashion_scenes are not those that the run"):
        run(data=load_detection("fashion_scenes", train_limit=3, val_limit=2))


def test_weights_that_break_are_not_kept(run, tmp_path):
    with pytest.raises(TrainingError, match=r"not finite in step 2 of epoch 1; .*no epoch was"):
        run(epochs=1, lr=1e38, optimizer="sgd")
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_weights_that_break_in_the_last_step_are_not_measured(scenes):
    detector = Listening()
    task = DetectionTask(detector, data=scenes.val, build_optimizer=None, build_schedule=None)
    task.on_validation_start()
    detector.weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="weights are not finite after epoch 1; lower lr"):
        task.on_validation_start()


def test_progress_speaks_of_average_precision(run, capfd):
    run(progress=True, epochs=1)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("epoch 1/1  train loss ")
    assert "  AP 0." in line
    assert "  mask AP 0." in line
    assert "top1" not in line


class Listening(nn.Module):
    """Takes the place of a detector and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.transform = nn.Identity()

    def forward(self, images, targets):
        self.seen = (images, targets)
        return {"loss_classifier": 2 * self.weight, "bbox_regression": 3 * self.weight}


def test_a_step_counts_labels_from_one_and_sums_the_losses(scenes):
    detector = Listening()
    task = DetectionTask(detector, data=scenes.val, build_optimizer=None, build_schedule=None)
    target = {
        "boxes": torch.tensor([[1.0, 2, 3, 4]]),
        "labels": torch.tensor([0]),
        "area": torch.ones(1),
        "image_id": 7,
    }
    loss = task.training_step(([torch.zeros(3, 8, 8)], [target]), 0)["loss"]
    assert loss.item() == 5
    (given,) = detector.seen[1]
    assert given.keys() == {"boxes", "labels"}
    assert given["labels"].tolist() == [1]
    assert target["labels"].tolist() == [0]
    result = task.epoch_result()
    losses = {name: value for name, value in result.items() if name.startswith("train")}
    assert losses == {
        "train_loss": 5.0,
        "train_loss_classifier": 2.0,
        "train_loss_bbox_regression": 3.0,
    }


def test_what_is_found_counts_from_zero_with_bitmaps():
    masks = torch.tensor([[[[0.2, 0.7]]], [[[0.5, 0.51]]]])
    (found,) = to_predictions(
        [{"boxes": torch.ones(2, 4), "labels": torch.tensor([1, 10]), "masks": masks}]
    )
    assert found["labels"].tolist() == [0, 9]
    assert found["masks"].tolist() == [[[False, True]], [[False, True]]]


def test_the_detector_takes_training_images_in_the_size_they_come_in(scenes):
    detector = build_base(tiny_recipe(), scenes)
    leave_size(detector)
    images = [torch.rand(3, 40, 90)]
    target = {"boxes": torch.tensor([[1.0, 2, 30, 40]])}
    seen, targets = detector.train().transform(images, [target])
    assert seen.image_sizes == [(40, 90)]
    assert torch.equal(targets[0]["boxes"], target["boxes"])
    assert detector.eval().transform(images)[0].image_sizes == [(42, 96)]


@pytest.mark.parametrize("detector", ["mask_rcnn", "faster_rcnn", "retinanet", "fcos"])
def test_images_without_objects_are_learned_from(run, scenes, detector):
    empty = [dataclasses.replace(image, objects=()) for image in scenes.train.images]
    data = dataclasses.replace(scenes, train=dataclasses.replace(scenes.train, images=empty))
    changes = {} if detector == "mask_rcnn" else {"task": "detection", "detector": detector}
    assert run(data=data, epochs=1, **changes).final["train_loss"] > 0


def test_variants_start_alike_and_see_the_same(run):
    plain, grafted = run("plain", epochs=1), run("grafted", epochs=1, grafts=[GATE])
    other = run("other", epochs=1, seed=1)
    assert plain.initial_weights == grafted.initial_weights != other.initial_weights
    assert plain.data_order == grafted.data_order != other.data_order


def test_grafts_leave_the_rest_of_the_detector_bit_equal(scenes):
    plain, _ = build_model(tiny_recipe(), scenes)
    model, (done,) = build_model(tiny_recipe(grafts=[GATE]), scenes)
    assert [site.path for site in done.sites] == ["layer4.0.conv2"]
    state = model.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in plain.state_dict().items())
    assert len(state) > len(plain.state_dict())
    assert weights_digest(model) == weights_digest(plain)


def test_starts_from_a_classifier_with_its_grafts(scenes, tmp_path, caplog):
    images = load_data("fashion_mini", train_limit=10, val_limit=10)
    images = dataclasses.replace(images, in_chans=3, classes=("cat", "dog", "owl"))
    recipe = Recipe(
        data="fashion_mini",
        model="resnet10_small",
        model_args={"channels": [4, 8, 8, 8]},
        grafts=[GATE],
    )
    source, _ = build_model(recipe, images)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.uniform_(-1, 1)
    torch.save(source.state_dict(), tmp_path / "classifier.pth")
    detector, _ = build_model(
        tiny_recipe(grafts=[GATE], checkpoint=tmp_path / "classifier.pth"), scenes
    )
    state, expected = detector.backbone.network.state_dict(), source.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    assert expected.keys() - state.keys() == {"fc.weight", "fc.bias"}
    assert "left out" not in caplog.text
    with pytest.raises(ValueError, match=r"the network has no place for layer4\.0\.conv2\.graft"):
        build_model(tiny_recipe(checkpoint=tmp_path / "classifier.pth"), scenes)


def test_starts_from_a_detector_but_for_heads_of_other_classes(run, scenes, caplog):
    path = run(epochs=1, grafts=[GATE]).checkpoint
    source = weights(path)
    again, _ = build_model(tiny_recipe(checkpoint=path, grafts=[GATE], seed=5), scenes)
    assert all(torch.equal(t, source[n]) for n, t in again.state_dict().items())
    fewer = dataclasses.replace(scenes)
    object.__setattr__(fewer, "train", dataclasses.replace(scenes.train, classes=("cat", "dog")))
    other, _ = build_model(tiny_recipe(checkpoint=path, grafts=[GATE]), fewer)
    state = other.state_dict()
    unlike = {name for name in source if not torch.equal(state[name], source[name])}
    assert {name.rsplit(".", 1)[0] for name in unlike} == {
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
        "roi_heads.mask_predictor.mask_fcn_logits",
    }
    assert "roi_heads.box_predictor.bbox_pred.bias" in caplog.text


def test_frozen_stages_do_not_learn_but_grafts_in_them_do(run, scenes):
    gate = GATE | {"at": "layer1.*.conv2"}
    before, _ = build_model(tiny_recipe(grafts=[gate], frozen_stages=1), scenes)
    state = before.backbone.network.state_dict()
    after = weights(run(grafts=[gate], frozen_stages=1, frozen_norm=True).checkpoint)
    prefix = "backbone.network."
    moved = {n for n, t in state.items() if not torch.equal(t, after[prefix + n])}
    frozen = {n for n in state if n.startswith(("conv1", "bn1", "layer1"))}
    assert {n for n in moved & frozen if "graft" not in n} == set()
    assert any("graft" in n for n in moved & frozen)
    assert "layer3.0.conv1.weight" in moved
    assert not any("running" in n or ".bn" in n for n in moved if "graft" not in n)
