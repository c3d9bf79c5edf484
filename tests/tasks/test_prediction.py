import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tasks.conftest import TINY
from visgraft.data import DataError, load_data
from visgraft.tasks.errors import CheckpointError
from visgraft.tasks.evaluation import evaluate, load_trained
from visgraft.tasks.images import load_images
from visgraft.tasks.prediction import predict
from visgraft.tasks.recipe import Recipe
from visgraft.tasks.training import train

QUIET = {"progress": False}


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a checkpoint of a network for gray images of garments."""
    folder = tmp_path_factory.mktemp("garments")
    recipe = Recipe(**TINY | {"epochs": 8, "lr": 0.02})
    return train(recipe, folder, data=load_images(recipe, progress=False), **QUIET).checkpoint


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the images that the network is measured on, as ``0007_label.png``."""
    folder = tmp_path_factory.mktemp("pictures")
    data = load_data("fashion_mini", train_limit=120, val_limit=60)
    for index, (image, label) in enumerate(data.val):
        image.save(folder / f"{index:04}_{label}.png")
    return folder


def shades(root: Path, side: int) -> Path:
    """Makes colour pictures that differ from the middle to the border."""
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 12)):
        for shade, name in ((70, "dark"), (180, "light")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                width = side if side <= 64 else side + index
                pixels = random.integers(shade - 60, shade + 60, (side, width, 3))
                pixels[side // 16 : -side // 16, side // 16 : -side // 16] //= 2
                Image.fromarray(pixels.astype("uint8")).save(folder / f"{index}.png")
    return root


def test_as_good_as_evaluation_says(garments, pictures):
    results = predict(garments, pictures, **QUIET)
    labels = [int(one.path.stem.split("_")[1]) for one in results]
    classes = load_trained(garments).record.classes
    measured = evaluate(garments, **QUIET)
    assert 15 < measured["top1"] < measured["top5"] < 100
    right = [classes[label] == one.classes[0] for one, label in zip(results, labels, strict=True)]
    named = [classes[label] in one.classes for one, label in zip(results, labels, strict=True)]
    assert 100 * np.mean(right) == pytest.approx(measured["top1"], abs=1e-3)
    assert 100 * np.mean(named) == pytest.approx(measured["top5"], abs=1e-3)
    chances = predict(garments, pictures, top=10, **QUIET)
    losses = [
        -np.log(dict(zip(one.classes, one.probabilities, strict=True))[classes[label]])
        for one, label in zip(chances, labels, strict=True)
    ]
    assert np.mean(losses) == pytest.approx(measured["loss"], rel=1e-5)


@pytest.mark.parametrize("side", [40, 100])
def test_pictures_are_cut_as_in_evaluation(tmp_path, side):
    """A small picture is seen whole, of a large one the border is cut off."""
    data = shades(tmp_path / "shades", side)
    changes = {"data": data, "image_size": 72, "train_limit": None, "val_limit": None, "hflip": 0.0}
    recipe = Recipe(**TINY | changes | {"batch_size": 6, "epochs": 1})
    path = train(recipe, tmp_path / "run", **QUIET).checkpoint
    results = predict(path, data / "val", top=2, **QUIET)
    assert [one.name for one in results] == sorted(
        f"{name}/{index}.png" for name in ("dark", "light") for index in range(12)
    )
    losses = [
        -np.log(one.probabilities[one.classes.index(one.path.parent.name)]) for one in results
    ]
    assert np.mean(losses) == pytest.approx(evaluate(path, **QUIET)["loss"], rel=1e-4)


def test_batches_workers_and_order_do_not_matter(garments, pictures):
    files = sorted(pictures.iterdir())[:7]
    want = predict(garments, files, top=3, **QUIET)
    assert [one.path for one in want] == files
    assert [len(one.classes) for one in want] == [3] * 7
    other = predict(garments, files[::-1], top=3, batch_size=2, **QUIET)[::-1]
    for one, same in zip(want, other, strict=True):
        assert one.classes == same.classes
        assert one.probabilities == pytest.approx(same.probabilities, abs=1e-6)
    assert predict(garments, str(files[0]), top=3, batch_size=1, **QUIET)[0].path == files[0]


def test_the_average_of_the_weights_and_half_precision_are_taken(tmp_path):
    recipe = Recipe(**TINY | {"precision": "bf16", "ema_decay": 0.5, "epochs": 1})
    data = load_images(recipe, progress=False)
    path = train(recipe, tmp_path / "run", data=data, **QUIET).checkpoint
    data.val[0][0].save(tmp_path / "one.png")
    (found,) = predict(path, tmp_path / "one.png", top=10, **QUIET)
    trained = load_trained(path)
    pixels = torch.from_numpy(np.array(data.val[0][0], np.float32))[None, None] / 255
    (mean,), (std,) = trained.record.input.mean, trained.record.input.std
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        want = trained.model((pixels - mean) / std).float().softmax(-1)[0].sort(descending=True)
    assert found.probabilities == pytest.approx(want.values.tolist(), abs=1e-6)
    assert found.classes == tuple(trained.record.classes[i] for i in want.indices)


def test_written_files_hold_what_is_returned(garments, pictures, tmp_path):
    results = predict(garments, pictures, top=2, output=tmp_path / "all.json", **QUIET)
    assert json.loads((tmp_path / "all.json").read_text()) == [
        {
            "image": one.name,
            "predictions": [
                {"class": name, "probability": value}
                for name, value in zip(one.classes, one.probabilities, strict=True)
            ],
        }
        for one in results
    ]
    predict(garments, pictures, top=2, output=tmp_path / "all.csv", **QUIET)
    with (tmp_path / "all.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image", "rank", "class", "probability"]
    assert len(rows) == 1 + 2 * len(results)
    one = results[1]
    assert rows[3:5] == [
        [one.name, str(rank + 1), one.classes[rank], str(one.probabilities[rank])]
        for rank in range(2)
    ]
    assert sorted(os.listdir(tmp_path)) == ["all.csv", "all.json", "cache"]


def test_unreadable_files_are_all_named_before_anything_is_computed(
    garments, pictures, tmp_path, monkeypatch, caplog
):
    folder = tmp_path / "mixed"
    (folder / "deep" / "er").mkdir(parents=True)
    source = next(pictures.iterdir())
    for name in ("b.png", "deep/er/a.jpg", ".hidden.png"):
        (folder / name).write_bytes(source.read_bytes())
    (folder / "notes.txt").write_text("no picture")
    (folder / "deep" / "cut.png").write_bytes(source.read_bytes()[:200])
    with monkeypatch.context() as patch:
        patch.setattr("visgraft.tasks.prediction._classify", None)
        with pytest.raises(DataError, match=r"2 of 4 files cannot be read as images") as error:
            predict(garments, folder, **QUIET)
    assert f"{folder}/deep/cut.png: " in str(error.value)
    assert f"{folder}/notes.txt: not an image of a known format" in str(error.value)
    results = predict(garments, folder, on_bad_image="skip", **QUIET)
    assert [one.name for one in results] == ["b.png", "deep/er/a.jpg"]
    assert f"skipped {folder}/notes.txt: not an image" in caplog.text
    with pytest.raises(DataError, match="there is no picture to read"):
        predict(garments, folder / "notes.txt", on_bad_image="skip", **QUIET)


def test_what_is_not_there_is_named(garments, tmp_path):
    (tmp_path / "empty").mkdir()
    for source, text in [
        (tmp_path / "none.png", f"there is no file or folder {tmp_path}/none.png"),
        (tmp_path / "empty", f"folder {tmp_path}/empty holds no files"),
        ([], "there is no picture to read; name files or folders"),
    ]:
        with pytest.raises(DataError, match=text):
            predict(garments, source, **QUIET)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pictures": "out"}, "is of a classifier, which has no pictures; leave it out"),
        ({"score": 0.5}, "is of a classifier, which has no score; leave it out"),
        ({"output": "all.txt"}, r"output of a classifier must end with .json or .csv, got all.txt"),
        ({"output": "no/such/all.csv"}, "there is no folder .*/no/such for the output; make it"),
        ({"top": 0}, "top must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"on_bad_image": "ignore"}, "on_bad_image must be one of error, skip, got 'ignore'"),
    ],
)
def test_unfit_arguments_are_refused(garments, pictures, monkeypatch, options, text):
    monkeypatch.setattr("visgraft.tasks.prediction._classify", None)
    with pytest.raises(DataError, match=text):
        predict(garments, pictures, **QUIET, **options)


def test_weights_of_others_are_refused(pictures, tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match="was not written by visgraft"):
        predict(tmp_path / "theirs.pth", pictures, **QUIET)


def test_a_picture_that_changes_meanwhile_is_named(garments, pictures, tmp_path, monkeypatch):
    path = tmp_path / "one.png"
    path.write_bytes(next(pictures.iterdir()).read_bytes())
    from visgraft.tasks import prediction

    def spoil(content):
        original = prediction.find_pictures

        def find(*args, **options):
            files = original(*args, **options)
            path.write_bytes(content)
            return files

        return find

    with monkeypatch.context() as patch:
        patch.setattr(prediction, "find_pictures", spoil(b"no picture"))
        with pytest.raises(DataError, match="could be read when it was checked and cannot now"):
            predict(garments, path, **QUIET)
    Image.new("L", (5, 6)).save(tmp_path / "other.png")
    content = (tmp_path / "other.png").read_bytes()
    path.write_bytes(next(pictures.iterdir()).read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "find_pictures", spoil(content))
        with pytest.raises(DataError, match="has 5 x 6 pixels and had 28 x 28 when it was checked"):
            predict(garments, path, **QUIET)


def test_turned_and_gray_pictures_come_as_a_viewer_shows_them(garments, pictures, tmp_path):
    source = sorted(pictures.iterdir())[3]
    (want,) = predict(garments, source, **QUIET)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(source).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "t.png", exif=exif)
    Image.open(source).convert("RGB").save(tmp_path / "rgb.png")
    for name in ("t.png", "rgb.png"):
        (found,) = predict(garments, tmp_path / name, **QUIET)
        assert found.classes == want.classes
        assert found.probabilities == pytest.approx(want.probabilities, abs=1e-6)
