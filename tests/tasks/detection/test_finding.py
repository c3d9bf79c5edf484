import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from visgraft.cli.main import main
from visgraft.data import DataError
from visgraft.data.detection import DetectionData, load_coco, write_coco
from visgraft.data.pictures import PictureFile
from visgraft.tasks.building import build_model, resolve_input
from visgraft.tasks.checkpoint import RunRecord, write_checkpoint
from visgraft.tasks.detection.drawing import draw_detections
from visgraft.tasks.detection.finding import number_pictures
from visgraft.tasks.detection.results import load_results
from visgraft.tasks.evaluation import load_trained
from visgraft.tasks.images import load_images
from visgraft.tasks.picture_inputs import plan_pictures
from visgraft.tasks.prediction import predict
from visgraft.tasks.recipe import Recipe

QUIET = {"progress": False}
MOST = 6
CATEGORIES = tuple(range(3, 33, 3))
TINY: dict[str, Any] = {
    "task": "instance_segmentation",
    "data": "fashion_scenes",
    "train_limit": 2,
    "val_limit": 3,
    "model": "resnet10_small",
    "model_args": {"channels": [8, 8, 16, 16]},
    "min_size": 96,
    "max_size": 128,
    "batch_size": 2,
    "detector_args": {"box_detections_per_img": MOST, "rpn_post_nms_top_n_test": 40},
    "loggers": [],
}


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a COCO data set with three pictures to measure on."""
    folder = tmp_path_factory.mktemp("scenes") / "set"
    parts = load_images(Recipe(**TINY), progress=False)
    write_coco(folder, {"val": parts.val})
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a checkpoint of a detector that has learned nothing, and finds much."""
    torch.manual_seed(0)
    recipe = Recipe(**TINY)
    data = load_images(recipe, progress=False)
    record = RunRecord(
        recipe=recipe.model_dump(mode="json"),
        classes=data.classes,
        in_chans=3,
        input=resolve_input(recipe, data),
        plans=(),
        fingerprint="",
        initial_weights="",
        data_order="",
        category_ids=CATEGORIES,
    )
    model, _ = build_model(recipe, data)
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    write_checkpoint({"state_dict": state}, record, path)
    return path


def numbered(scenes: Path) -> DetectionData:
    """Returns the annotations with the category ids of the checkpoint."""
    path = scenes / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["categories"] = [
        {"id": key, "name": entry["name"]}
        for key, entry in zip(CATEGORIES, content["categories"], strict=True)
    ]
    content["annotations"] = []
    path = path.with_name("instances_numbered.json")
    path.write_text(json.dumps(content))
    return load_coco(path, scenes / "val")


def test_objects_are_those_that_the_detector_finds(checkpoint, scenes, tmp_path):
    output, folder = tmp_path / "found.json", tmp_path / "drawn"
    found = predict(checkpoint, scenes / "val", output=output, pictures=folder, score=0.09, **QUIET)
    trained = load_trained(checkpoint)
    assert [one.name for one in found] == ["000001.png", "000002.png", "000003.png"]
    for one in found:
        picture = Image.open(one.path).convert("RGB")
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
        with torch.inference_mode():
            (want,) = trained.model([pixels])
        assert 0 < len(one.objects) <= MOST
        assert np.allclose(one.objects.boxes, want["boxes"], atol=1e-3)
        assert np.array_equal(one.objects.labels, want["labels"] - 1)
        assert np.allclose(one.objects.scores, want["scores"], atol=1e-5)
        names = [trained.record.classes[label] for label in one.objects.labels]
        assert list(one.classes) == names
        with Image.open(folder / one.name.replace(".png", ".jpg")) as seen:
            pixels = np.asarray(seen).astype(float)
        errors = [
            np.abs(
                pixels - draw_detections(picture, one.objects, trained.record.classes, score=least)
            ).mean()
            for least in (0.09, 1.0)
        ]
        assert 3 * errors[0] < errors[1]  # JPEG loses a little
    assert sorted(os.listdir(folder)) == ["000001.jpg", "000002.jpg", "000003.jpg"]
    read = load_results(output, numbered(scenes))
    assert list(read) == [one.image_id for one in found]
    for one in found:
        assert np.allclose(read[one.image_id].boxes, one.objects.boxes)
        assert np.array_equal(read[one.image_id].labels, one.objects.labels)
        assert np.array_equal(read[one.image_id].scores, one.objects.scores)
        assert read[one.image_id].masks == one.objects.masks
    entry = json.loads(output.read_text())[0]
    assert list(entry)[:3] == ["image_id", "file_name", "category_id"]
    assert entry["file_name"] == "000001.png"


def test_masks_are_cut_at_a_half(checkpoint, scenes):
    from faster_coco_eval.core import mask as coco

    (one,) = predict(checkpoint, scenes / "val" / "000002.png", **QUIET)
    pixels = torch.from_numpy(np.array(Image.open(one.path).convert("RGB"))).permute(2, 0, 1) / 255
    with torch.inference_mode():
        (want,) = load_trained(checkpoint).model([pixels])
    for runs, soft in zip(one.objects.masks, want["masks"][:, 0].numpy(), strict=True):
        assert (coco.decode([runs])[:, :, 0] != (soft > 0.5))[np.abs(soft - 0.5) > 1e-4].sum() == 0


def test_the_command_shows_and_writes_objects(checkpoint, scenes, tmp_path, capsys):
    source = scenes / "val" / "000001.png"
    argv = ["predict", str(checkpoint), str(source), "--pictures", str(tmp_path / "drawn")]
    assert main([*argv, "--score", "0.01"]) == 0
    (one,) = predict(checkpoint, source, **QUIET)
    line, written = capsys.readouterr().out.splitlines()[2:]
    assert line.split()[:2] == [str(source), str(len(one.objects))]
    assert written == f"written: {tmp_path / 'drawn'}"
    assert os.listdir(tmp_path / "drawn") == ["000001.jpg"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"top": 3}, "the checkpoint is of a detector, which has no top; leave it out"),
        ({"output": "a.csv"}, "output of a detector must end with .json, got a.csv"),
        ({"score": 1.5}, "score must be 0 to 1, got 1.5"),
        ({"pictures": __file__}, r"test_finding.py is a file; pictures go into a folder"),
    ],
)
def test_unfit_arguments_are_refused(checkpoint, scenes, monkeypatch, options, text):
    monkeypatch.setattr("visgraft.tasks.prediction.find_objects", None)
    with pytest.raises(DataError, match=text):
        predict(checkpoint, scenes / "val", **QUIET, **options)


def test_the_output_is_no_folder(checkpoint, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("visgraft.tasks.prediction.find_objects", None)
    (tmp_path / "a.json").mkdir()
    with pytest.raises(DataError, match=r"a\.json is a folder; name a file for the output"):
        predict(checkpoint, scenes / "val", output=tmp_path / "a.json", **QUIET)


def files(*names: str) -> list[PictureFile]:
    return [PictureFile(Path("in") / name, name, 4, 5) for name in names]


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (("000000000139.jpg", "deep/000000000285.jpg"), [139, 285]),
        (("7.jpg", "cat.jpg"), [1, 2]),
        (("7.jpg", "deep/007.png", "8.jpg"), [1, 2, 3]),
        (("²", "3.jpg"), [1, 2]),
    ],
)
def test_pictures_are_numbered_as_cocos_are(names, numbers):
    assert number_pictures(files(*names)) == numbers


def test_each_picture_has_a_place_of_its_own(tmp_path):
    assert plan_pictures(None, files("a.png"), owner="predict") == {}
    planned = plan_pictures(tmp_path, files("a.png", "deep/a.png", "a.jpg", "a.webp"), owner="x")
    names = [path.relative_to(tmp_path).as_posix() for path in planned.values()]
    assert names == ["a.jpg", "deep/a.jpg", "a_2.jpg", "a_3.jpg"]


def test_no_picture_is_written_over(checkpoint, scenes, tmp_path):
    path = tmp_path / "one.jpg"
    Image.open(scenes / "val" / "000001.png").convert("RGB").save(path)
    before = path.read_bytes()
    with pytest.raises(
        DataError, match=r"one\.jpg is one of the pictures to read and would be wri"
    ):
        predict(checkpoint, path, pictures=tmp_path, **QUIET)
    assert path.read_bytes() == before
