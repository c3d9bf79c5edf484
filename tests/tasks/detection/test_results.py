import json
import os

import numpy as np
import pytest
from pycocotools import mask as coco_masks

from tests.tasks.detection.random_cases import (
    measure,
    random_data,
    random_predictions,
    reference,
    to_coco,
)
from visgraft.data import DataError
from visgraft.tasks.detection.metrics import DetectionMetrics
from visgraft.tasks.detection.predictions import check_prediction
from visgraft.tasks.detection.results import coco_results, load_results, save_results

DATA = random_data(1)
IMAGE = next(image for image in DATA.images if image.objects)
SIZE = (IMAGE.height, IMAGE.width)
PREDICTIONS = random_predictions(DATA, 2)


def detections(masks=True):
    return {
        image.id: check_prediction(
            PREDICTIONS[image.id],
            "test",
            num_classes=len(DATA.classes),
            size=(image.height, image.width),
            masks=masks,
        )
        for image in DATA.images
    }


def test_an_entry_by_hand():
    mask = np.zeros((1, 3, 4), bool)
    mask[0, 1:, 2] = True
    prediction = {"boxes": [[2, 1, 3, 3]], "labels": [1], "scores": [0.25], "masks": mask}
    found = check_prediction(prediction, "test", num_classes=2, size=(3, 4), masks=True)
    (entry,) = coco_results(found, 42, (5, 9))
    runs = coco_masks.encode(np.asfortranarray(mask[0].astype(np.uint8)))
    assert entry == {
        "image_id": 42,
        "category_id": 9,
        "bbox": [2.0, 1.0, 1.0, 2.0],
        "score": 0.25,
        "segmentation": {"size": [3, 4], "counts": runs["counts"].decode()},
    }
    assert "bbox" not in coco_results(found, 42, (5, 9), boxes=False)[0]
    boxes = check_prediction(prediction, "test", num_classes=2, size=(3, 4), masks=False)
    assert coco_results(boxes, 42, (5, 9), boxes=False)[0]["bbox"] == [2.0, 1.0, 1.0, 2.0]


@pytest.mark.parametrize("masks", [False, True])
def test_what_is_read_back_is_what_was_written(tmp_path, masks):
    path = tmp_path / "results.json"
    written = detections(masks)
    save_results(path, written, DATA.category_ids)
    read = load_results(path, DATA)
    assert list(read) == list(written)
    for key, found in written.items():
        assert np.array_equal(read[key].boxes, found.boxes)
        assert np.array_equal(read[key].labels, found.labels)
        assert np.array_equal(read[key].scores, found.scores)
        assert read[key].masks == (found.masks if masks else None)
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_pycocotools_measures_the_file_as_we_do(tmp_path, kind):
    path = tmp_path / "results.json"
    save_results(path, detections(kind == "segm"), DATA.category_ids, boxes=kind == "bbox")
    truth = to_coco(DATA)
    theirs = measure(truth, str(path), kind)
    assert theirs == pytest.approx(
        reference(truth, PREDICTIONS, DATA.category_ids, kind), nan_ok=True
    )
    metrics = DetectionMetrics(DATA, (kind,))
    read = load_results(path, DATA)
    metrics.update(read.values(), read)
    assert metrics.result() == pytest.approx(theirs, abs=1e-6, nan_ok=True)


def test_no_detections_are_an_empty_list(tmp_path):
    path = tmp_path / "results.json"
    save_results(path, {}, DATA.category_ids)
    assert json.loads(path.read_text()) == []
    assert {len(found) for found in load_results(path, DATA).values()} == {0}


def test_a_mask_alone_gives_its_box(tmp_path):
    bitmap = np.zeros(SIZE, bool)
    bitmap[3:9, 5:6] = True
    bitmap[7, 2:12] = True
    path = tmp_path / "results.json"
    runs = coco_masks.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    entry = good(segmentation={"size": list(SIZE), "counts": runs["counts"].decode()})
    path.write_text(json.dumps([entry | {"bbox": None}]))
    assert load_results(path, DATA)[IMAGE.id].boxes.tolist() == [[2, 3, 12, 9]]


def good(**changes):
    entry = {
        "image_id": IMAGE.id,
        "category_id": DATA.category_ids[0],
        "bbox": [1, 2, 3, 4],
        "score": 0.5,
    }
    return entry | changes


PIXELS = SIZE[0] * SIZE[1]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (good(image_id=999), "entry 1: image_id 999 is no image of the annotations"),
        (good(image_id="7"), "image_id '7' is no image"),
        (good(category_id=4), "category_id 4 is no category of the annotations"),
        (good(category_id=True), "category_id True is no category"),
        (good(bbox=[1, 2, 3]), r"bbox must be four finite numbers .* got \[1, 2, 3\]"),
        (good(bbox=[1, 2, float("nan"), 3]), r"bbox must be four finite numbers .* nan"),
        (good(bbox=[1, 2, -3, 4]), "bbox must have a width and a height from 0 up"),
        (good(bbox=None), "bbox must be four finite numbers .* got None"),
        (good(score="high"), "score must be a finite number, got 'high'"),
        (good(score=float("inf")), "score must be a finite number, got inf"),
        ([1, 2], "must be a dict, got list"),
    ],
)
def test_wrong_entries_are_named(tmp_path, entry, text):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([good(), entry]))
    with pytest.raises(
        DataError, match=f"1 of 2 entries in {path} do not fit random 1(.|\n)*{text}"
    ):
        load_results(path, DATA)


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        (None, "segmentation must be a dict of size and compressed counts, .* got NoneType"),
        ([[1, 2, 3, 4, 5, 6]], "segmentation must be a dict .* got list"),
        ({"size": [2, 2], "counts": "04"}, r"segmentation has size \[2, 2\], and image"),
        (
            {"size": list(SIZE), "counts": "04"},
            f"run lengths add up to 4 pixels, and image .* has {PIXELS}",
        ),
        ({"size": list(SIZE), "counts": "é"}, "its counts are no compressed run lengths"),
    ],
)
def test_wrong_masks_are_named(tmp_path, runs, text):
    path = tmp_path / "results.json"
    whole = coco_masks.encode(np.asfortranarray(np.ones(SIZE, np.uint8)))
    first = good(segmentation={"size": list(SIZE), "counts": whole["counts"].decode()})
    path.write_text(json.dumps([first, good(segmentation=runs)]))
    with pytest.raises(DataError, match=f"1 of 2 entries(.|\n)*entry 1: {text}"):
        load_results(path, DATA)


def test_an_empty_mask_has_an_empty_box(tmp_path):
    path = tmp_path / "results.json"
    empty = coco_masks.encode(np.asfortranarray(np.zeros(SIZE, np.uint8)))
    runs = {"size": list(SIZE), "counts": empty["counts"].decode()}
    path.write_text(json.dumps([good(segmentation=runs), good(segmentation=runs, bbox=None)]))
    assert load_results(path, DATA)[IMAGE.id].boxes.tolist() == [[1, 2, 4, 6], [0, 0, 0, 0]]


def test_many_problems_are_counted(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([good(score=None)] * 30))
    with pytest.raises(DataError, match=r"30 of 30 entries(.|\n)*entry 19:(.|\n)*and 10 more"):
        load_results(path, DATA)


def test_what_is_no_list_is_refused(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(DataError, match=f"there is no file {path}"):
        load_results(path, DATA)
    path.write_text("{")
    with pytest.raises(DataError, match="is not json"):
        load_results(path, DATA)
    path.write_text("{}")
    with pytest.raises(DataError, match="must hold a list of detections, got a dict"):
        load_results(path, DATA)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    save_results(path, detections(), DATA.category_ids)
    old = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        save_results(path, {}, DATA.category_ids)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["results.json"]
