"""`visgraft predict`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tasks.conftest import TINY
from visgraft.cli.main import main
from visgraft.tasks.detection.finding import FoundObjects
from visgraft.tasks.detection.predictions import check_prediction
from visgraft.tasks.images import load_images
from visgraft.tasks.prediction import PredictedClasses
from visgraft.tasks.recipe import Recipe
from visgraft.tasks.training import train


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(3):
        pixels = random.integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    recipe = Recipe(**TINY | {"epochs": 1})
    data = load_images(recipe, progress=False)
    return train(recipe, tmp_path / "run", data=data, progress=False).checkpoint


def test_classes_are_shown_and_written(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "found.json"
    argv = ["predict", str(checkpoint), str(pictures), "--top", "2", "--output", str(output)]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", "class", "%", "then"]
    assert lines[-1] == f"written: {output}"
    content = json.loads(output.read_text())
    assert [entry["image"] for entry in content] == ["0.png", "1.png", "2.png"]
    for line, entry in zip(lines[2:5], content, strict=True):
        first, second = entry["predictions"]
        percent = [f"{100 * one['probability']:.1f}" for one in (first, second)]
        shown = [first["class"], percent[0], second["class"], percent[1]]
        assert line.split() == [str(pictures / entry["image"]), *" ".join(shown).split()]
    assert main([*argv, "--quiet"]) == 0
    assert capsys.readouterr() == (f"written: {output}\n", "")


def test_a_bad_request_is_one_sentence(
    checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "notes.txt").write_text("no picture")
    assert main(["predict", str(checkpoint), str(pictures)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("visgraft: find_pictures: 1 of 4 files cannot be read as images")
    assert f"{pictures}/notes.txt: not an image of a known format" in error
    assert main(["predict", str(checkpoint), str(pictures), "--pictures", "out"]) == 2
    assert "is of a classifier, which has no pictures; leave it out" in capsys.readouterr().err


def test_all_options_reach_the_library(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def record(*args, **options):
        calls.append((args, options))
        return [PredictedClasses(Path("a.png"), "a.png", ("cat",), (1.0,))]

    monkeypatch.setattr("visgraft.tasks.prediction.predict", record)
    argv = "predict a.ckpt a.png b --output o.csv --top 3 --pictures p --score 0.25 --batch-size 7"
    argv += " --workers 2 --device cpu --on-bad-image skip --quiet"
    assert main(argv.split()) == 0
    assert calls == [
        (
            ("a.ckpt", ["a.png", "b"]),
            {
                "top": 3,
                "output": "o.csv",
                "pictures": "p",
                "score": 0.25,
                "batch_size": 7,
                "workers": 2,
                "device": "cpu",
                "on_bad_image": "skip",
                "progress": False,
            },
        )
    ]
    assert capsys.readouterr().out == "written: o.csv\nwritten: p\n"
    assert main(["predict", "a.ckpt", "a.png"]) == 0
    defaults = {"workers": 0, "device": "auto", "on_bad_image": "error", "progress": True}
    assert calls[1] == (("a.ckpt", ["a.png"]), defaults)


def test_of_many_images_the_first_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    many = [PredictedClasses(Path(f"{i}.png"), f"{i}.png", ("cat",), (1.0,)) for i in range(60)]
    monkeypatch.setattr("visgraft.tasks.prediction.predict", lambda *_, **__: many)
    assert main(["predict", "a.ckpt", "b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 50 + 1
    assert lines[-2].split() == ["49.png", "cat", "100.0"]
    assert lines[-1] == "... and 10 more images (--output writes all)"
    assert main(["predict", "a.ckpt", "b", "--output", "o.csv"]) == 0
    assert "... and 10 more images\nwritten: o.csv\n" in capsys.readouterr().out


def test_objects_are_counted_by_class(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prediction = {
        "boxes": [[0, 0, 5, 5]] * 4,
        "labels": [1, 0, 1, 0],
        "scores": [0.9, 0.8, 0.7, 0.2],
    }
    objects = check_prediction(prediction, "test", num_classes=2, size=(9, 9), masks=False)
    found = FoundObjects(Path("a.png"), "a.png", 1, ("dog", "cat", "dog", "cat"), objects)
    monkeypatch.setattr("visgraft.tasks.prediction.predict", lambda *_, **__: [found])
    for options, header, counted in [
        ([], "0.5", "3 dog 2, cat 1"),
        (["--score", "0.75"], "0.75", "2 dog 1, cat 1"),
        (["--score", "0.1"], "0.1", "4 dog 2, cat 2"),
    ]:
        assert main(["predict", "a.ckpt", "a.png", *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].endswith(f"found with a score from {header}")
        assert lines[2].split() == ["a.png", *counted.split()]


def test_the_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    assert "example: visgraft predict runs/photos/best.ckpt holiday/" in capsys.readouterr().out
