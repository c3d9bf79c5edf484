import dataclasses
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from visgraft.tasks.building import build_model
from visgraft.tasks.errors import CheckpointError
from visgraft.tasks.evaluation import evaluate, load_trained
from visgraft.tasks.training import train

QUIET = {"progress": False}
GRAFTS = [
    {"block": "coord_attention", "at": "block_end", "options": {"reduction": 4}},
    {"block": "cot", "at": "layer4.*.conv2", "start": "paper"},
]


@pytest.mark.parametrize(
    "changes", [{}, {"grafts": GRAFTS}, {"ema_decay": 0.9}, {"precision": "bf16"}]
)
def test_evaluation_equals_the_last_epoch(make_recipe, images, tmp_path, changes):
    result = train(make_recipe(**changes), tmp_path, data=images, **QUIET)
    measured = evaluate(result.checkpoint, **QUIET)
    assert measured == {name: result.final[name] for name in ("loss", "top1", "top5")}
    best = evaluate(result.best_checkpoint, data=images, **QUIET)
    assert best["top1"] == result.best["top1"]


def test_trained_network_is_rebuilt_with_its_grafts(make_recipe, images, tmp_path):
    recipe = make_recipe(grafts=GRAFTS, epochs=1)
    trained = load_trained(train(recipe, tmp_path, data=images, **QUIET).checkpoint)
    assert trained.recipe == recipe
    assert trained.record.classes == images.classes
    assert not trained.model.training
    built = build_model(recipe, images)[0].eval()
    built.load_state_dict(trained.model.state_dict())
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(trained.model(x), built(x))


def test_batch_size_and_workers_do_not_matter(make_recipe, images, tmp_path):
    path = train(make_recipe(epochs=1), tmp_path, data=images, **QUIET).checkpoint
    one = evaluate(path, data=images, **QUIET)
    other = evaluate(path, data=images, batch_size=7, **QUIET)
    assert other["top1"] == one["top1"]
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_images_of_other_classes_are_refused(make_recipe, images, tmp_path):
    path = train(make_recipe(epochs=1), tmp_path, data=images, **QUIET).checkpoint
    cats = dataclasses.replace(images, name="pets", classes=("cat", "dog"))
    with pytest.raises(CheckpointError, match=r"knows the classes .*\(10\), but pets has cat, dog"):
        evaluate(path, data=cats, **QUIET)
    rgb = dataclasses.replace(images, in_chans=3)
    with pytest.raises(CheckpointError, match=r"takes images of 1 channels, but .* have 3"):
        evaluate(path, data=rgb, **QUIET)
    with pytest.raises(CheckpointError, match="names its network itself; leave model out"):
        evaluate(path, model="resnet18", **QUIET)


def test_changed_images_are_mentioned(make_recipe, images, tmp_path, caplog):
    other = dataclasses.replace(images, fingerprint="of yesterday")
    path = train(make_recipe(epochs=1), tmp_path, data=other, **QUIET).checkpoint
    with caplog.at_level(logging.WARNING, logger="visgraft"):
        evaluate(path, **QUIET)
    assert "images of fashion_mini have changed since the training" in caplog.text


def test_weights_of_others(make_recipe, images, tmp_path):
    model = build_model(make_recipe(), images)[0].eval()
    path = tmp_path / "theirs.pth"
    torch.save(model.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"say what network it is of \(model\) and what to"):
        evaluate(path, **QUIET)
    args = {"channels": [4, 8, 8, 16]}
    measured = evaluate(
        path, model="resnet10_small", model_args=args, data=images, image_size=28, **QUIET
    )
    assert 0 <= measured["top1"] <= measured["top5"] <= 100
    with pytest.raises(CheckpointError, match="does not fit the network: the file lacks"):
        evaluate(path, model="resnet18_small", data=images, **QUIET)


def test_a_folder_of_colour_images_goes_the_same_way(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for shade, name in ((60, "dark"), (190, "light")):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for index in range(12):
                pixels = random.integers(shade - 50, shade + 50, (40, 36 + index, 3))
                Image.fromarray(pixels.astype("uint8")).save(folder / f"{index}.png")
    recipe = make_recipe(
        data=tmp_path / "photos",
        image_size=32,
        train_limit=None,
        val_limit=None,
        batch_size=6,
        epochs=4,
        hflip=0,
        lr=0.02,
    )
    result = train(recipe, tmp_path / "run", **QUIET)
    assert result.final["top1"] > 80
    assert result.final["top5"] == 100
    assert evaluate(result.checkpoint, **QUIET)["top1"] == result.final["top1"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Makes folders of 12 dark and 12 light pictures, in parts or not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(name, parts=("",), count=12):
        for part in parts:
            for shade, label in ((60, "dark"), (190, "light")):
                folder = tmp_path / name / part / label
                folder.mkdir(parents=True)
                for index in range(count):
                    pixels = np.full((20, 20 + index, 3), shade + index, "uint8")
                    Image.fromarray(pixels).save(folder / f"{index}.png")
        return tmp_path / name

    return make


def test_of_other_images_all_are_measured_unless_they_have_parts(make_recipe, tmp_path, photos):
    own = photos("own")
    fields = {"train_limit": None, "val_limit": None, "image_size": 20, "batch_size": 4}
    recipe = make_recipe(data=own, val_fraction=0.25, epochs=1, **fields)
    path = train(recipe, tmp_path / "run", **QUIET).checkpoint

    def measured_on(**options):
        told = []
        evaluate(path, tell=told.append, **QUIET, **options)
        return told

    assert measured_on() == ["the 6 validation images of own"]
    assert measured_on(data=own) == measured_on(), "the rest of them was learned from"
    moved = own.rename(tmp_path / "moved")
    assert measured_on(data=moved) == ["the 6 validation images of moved"]
    assert measured_on(data=photos("more", count=5)) == ["all 10 images of more"]
    parts = photos("parts", ["train", "val"], count=3)
    assert measured_on(data=parts) == ["the 6 validation images of parts"]


def test_all_images_of_a_folder_count(make_recipe, tmp_path, photos):
    path = train(make_recipe(data="fashion_mini", epochs=1), tmp_path / "run", **QUIET).checkpoint
    with pytest.raises(CheckpointError, match=r"knows the classes .*, but other has dark, light"):
        evaluate(path, data=photos("other"), **QUIET)
    with pytest.raises(
        CheckpointError, match="images is the folder of the pictures of another COCO"
    ):
        evaluate(path, images=tmp_path, **QUIET)
    from visgraft.data.detection import load_detection

    scenes = load_detection("fashion_scenes", train_limit=1, val_limit=1)
    with pytest.raises(
        CheckpointError, match="is of task classification, and fashion_scenes is data"
    ):
        evaluate(path, data=scenes, **QUIET)
