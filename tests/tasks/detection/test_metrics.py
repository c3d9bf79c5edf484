import dataclasses
import multiprocessing
import socket
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed

from tests.tasks.detection.random_cases import (
    NAMES,
    random_data,
    random_predictions,
    reference,
    to_coco,
)
from visgraft.data import DataError
from visgraft.data.detection import DetectionDataset, fashion_scenes
from visgraft.tasks.detection.metrics import DetectionMetrics

BOTH = ("bbox", "segm")


def measured(data, predictions, kinds=BOTH):
    metrics = DetectionMetrics(data, kinds)
    metrics.update(predictions.values(), predictions.keys())
    return metrics.result()


def expected(data, predictions):
    truth = to_coco(data)
    both = (reference(truth, predictions, data.category_ids, kind) for kind in BOTH)
    return {name: value for numbers in both for name, value in numbers.items()}


def near(numbers):
    return pytest.approx(numbers, rel=0, abs=1e-6, nan_ok=True)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 6),
    classes=st.integers(1, 4),
    most_objects=st.integers(0, 8),
    crowds=st.sampled_from([0.0, 0.3, 1.0]),
    most=st.integers(0, 6),
    noise=st.integers(0, 12),
)
def test_equal_to_pycocotools(seed, images, classes, most_objects, crowds, most, noise):
    data = random_data(
        seed, images=images, classes=classes, most_objects=most_objects, crowds=crowds
    )
    predictions = random_predictions(data, seed + 1, most=most, noise=noise)
    assert measured(data, predictions) == near(expected(data, predictions))


def test_of_more_than_a_hundred_detections_the_best_hundred_count():
    data = random_data(3, images=2, classes=2, most_objects=8, crowds=0.1)
    predictions = random_predictions(data, 4, most=70, noise=9)
    assert max(np.bincount(found["labels"]).max() for found in predictions.values()) > 100
    want = expected(data, predictions)
    assert measured(data, predictions) == near(want)
    assert 0 < want["AP"] < 100


def test_numbers_by_hand():
    """One object found exactly, one missed, one found at an overlap of 0.6, one false alarm."""
    data = random_data(0, images=1, classes=2, most_objects=0)
    box, other = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 30.0, 30.0)
    image = data.images[0]
    item = dataclasses.replace(random_data(1).images[0].objects[0], is_crowd=False, area=100.0)
    items = tuple(
        dataclasses.replace(item, box=b, label=label, id=key)
        for key, (b, label) in enumerate([(box, 0), (other, 0), (box, 1)])
    )
    data = dataclasses.replace(data, images=[dataclasses.replace(image, objects=items)])
    found = {
        "boxes": [box, (0, 0, 10, 6), (20, 0, 30, 10)],
        "labels": [0, 1, 1],
        "scores": [0.9, 0.8, 0.95],
    }
    metrics = DetectionMetrics(data)
    metrics.update([found], [image.id])
    result = metrics.result()
    first = 100 * 51 / 101  # recall 0.5 at precision 1: 51 of 101 places
    second = 100 / 2  # behind a false alarm: precision 0.5 at each recall
    assert result["AP50"] == pytest.approx((first + second) / 2)
    assert result["AP75"] == pytest.approx(first / 2)
    assert result["AP"] == pytest.approx((first + second * 3 / 10) / 2)  # 0.5, 0.55 and 0.6
    assert result["AP_S"] == result["AP"]
    assert np.isnan(result["AP_M"])
    assert np.isnan(result["AP_L"])
    rows = metrics.per_class()
    assert [row["AP50"] for row in rows] == [pytest.approx(first), pytest.approx(second)]
    assert "mask_AP" not in result


def test_an_object_numbered_zero_counts():
    """pycocotools takes the id 0 of what was found for "not found"."""
    train, _ = fashion_scenes(train_images=2, val_images=1)
    data = dataclasses.replace(
        train,
        images=[
            dataclasses.replace(
                image,
                objects=tuple(dataclasses.replace(o, id=i) for i, o in enumerate(image.objects)),
            )
            for image in train.images[:1]
        ],
    )
    targets = DetectionDataset(data)
    found = targets[0][1]
    found["scores"] = torch.ones(len(found["labels"]))
    assert measured(data, {data.images[0].id: found})["mask_AP"] == pytest.approx(100)


def test_tensors_run_lengths_and_arrays_are_the_same():
    data = random_data(5)
    arrays = random_predictions(data, 6)
    want = measured(data, arrays)
    tensors = {
        key: {name: torch.from_numpy(value) for name, value in found.items()}
        for key, found in arrays.items()
    }
    assert measured(data, tensors) == near(want)
    for found in tensors.values():
        found["masks"] = found["masks"].to(torch.uint8) * 255
    assert measured(data, tensors) == near(want)
    from pycocotools import mask as coco_masks

    for key, found in arrays.items():
        runs = [
            coco_masks.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in found["masks"]
        ]
        if key % 2:
            runs = [{**run, "counts": run["counts"].decode()} for run in runs]
        arrays[key] = {**found, "masks": runs}
    assert measured(data, arrays) == near(want)


def test_in_parts_and_in_any_order_as_at_once():
    data = random_data(8, images=6)
    predictions = random_predictions(data, 9)
    metrics = DetectionMetrics(data)
    for key in reversed(predictions):
        metrics.update([predictions[key]], torch.tensor([key]))
    assert metrics.result() == measured(data, predictions, ("bbox",))


def test_an_image_seen_twice_counts_once_and_a_result_starts_anew():
    data = random_data(8, images=4)
    predictions = random_predictions(data, 9)
    nothing = random_predictions(data, 9, most=0)
    metrics = DetectionMetrics(data, BOTH)
    metrics.update(nothing.values(), nothing.keys())
    metrics.update(predictions.values(), predictions.keys())
    first = metrics.result()
    assert first == near(expected(data, predictions))
    assert all(np.isnan(value) for value in metrics.result().values())
    metrics.update(nothing.values(), nothing.keys())
    assert metrics.result()["AP"] == 0
    some = {key: predictions[key] for key in list(predictions)[:2]}
    metrics.update(some.values(), some.keys())
    seen = dataclasses.replace(data, images=[i for i in data.images if i.id in some])
    assert metrics.result() == near(expected(seen, some))


def test_classes_one_by_one():
    data = random_data(10, classes=4, most_objects=8)
    predictions = random_predictions(data, 11)
    metrics = DetectionMetrics(data, BOTH)
    metrics.update(predictions.values(), predictions.keys())
    with pytest.raises(DataError, match="call result first"):
        metrics.per_class()
    metrics.result()
    rows = metrics.per_class()
    for label, row in enumerate(rows):
        for kind in BOTH:
            alone = to_coco(data)
            alone.dataset["categories"] = [{"id": data.category_ids[label]}]
            want = reference(alone, predictions, data.category_ids, kind)
            assert {name: row[name] for name in want} == near(want)
    assert np.isnan(rows[-1]["AP"])
    assert set(rows[0]) == {*NAMES, *(f"mask_{name}" for name in NAMES)}


def test_nothing_is_printed(capfd, caplog):
    data = random_data(1)
    predictions = random_predictions(data, 2)
    with caplog.at_level("DEBUG"):
        measured(data, predictions)
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


GOOD = {"boxes": [[0, 0, 5, 5]], "labels": [0], "scores": [0.5]}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"labels": None},
            "a prediction must have boxes, labels, scores, and this one has no labels",
        ),
        ({"boxes": [[0, 0, 5]]}, r"boxes must be \(n, 4\), got \(1, 3\)"),
        ({"scores": [0.5, 0.1]}, r"scores must be \(1,\), one for each box, got \(2,\)"),
        ({"labels": [3]}, "labels must be 0 to 2, got 3; torchvision's detectors count from 1"),
        ({"labels": [-1]}, "labels must be 0 to 2, got -1"),
        ({"labels": [0.5]}, "labels must be whole numbers, got float64"),
        ({"boxes": [[0, 0, np.nan, 5]]}, "detection 0 must have a finite box"),
        ({"scores": [np.inf]}, "detection 0 must have a finite box .* and inf"),
        (
            {"boxes": [[6, 0, 5, 5]]},
            r"detection 0 .* x1 <= x2, y1 <= y2 .* got \[6.0, 0.0, 5.0, 5.0\]",
        ),
    ],
)
def test_wrong_predictions_are_named_and_not_counted(changes, text):
    data = random_data(1)
    first, second = (image.id for image in data.images[:2])
    metrics = DetectionMetrics(data)
    with pytest.raises(DataError, match=f"DetectionMetrics: image {second}: {text}"):
        metrics.update([GOOD, GOOD | changes], [first, second])
    assert np.isnan(metrics.result()["AP"])


def test_wrong_masks_are_named():
    data = random_data(1)
    image = data.images[0]
    size = (image.height, image.width)
    metrics = DetectionMetrics(data, BOTH)
    for masks, text in [
        (None, "this one has no masks"),
        (np.zeros((1, *size), np.float32), "got float32; compare them with a threshold"),
        (np.zeros((1, 4, 4), bool), r"masks must be \(1, \d+, \d+\), got \(1, 4, 4\)"),
        (np.zeros((2, *size), bool), r"masks must be \(1, \d+, \d+\), got \(2, \d+, \d+\)"),
        ([], "there must be 1 masks, one for each box, got 0"),
        (["abc"], "mask 0 must be an array, run lengths, or a dict of size and counts, got str"),
        ([{"size": [4, 4], "counts": "0"}], "mask 0 must have the size"),
        ([{"size": list(size), "counts": [3, 4]}], "compressed counts, got size .* and list"),
    ]:
        with pytest.raises(DataError, match=text):
            metrics.update([GOOD | {"masks": masks}], [image.id])


def test_unknown_images_kinds_and_missing_masks_are_refused():
    data = random_data(1)
    with pytest.raises(DataError, match="image 999: is not among the 5 of random 1"):
        DetectionMetrics(data).update([GOOD], [999])
    with pytest.raises(DataError, match="got 1 predictions for 2 images"):
        DetectionMetrics(data).update([GOOD], [data.images[0].id] * 2)
    with pytest.raises(DataError, match=r"kinds must be some of bbox, segm, got \('masks',\)"):
        DetectionMetrics(data, ("masks",))  # pyright: ignore[reportArgumentType]
    image = next(image for image in data.images if image.objects)
    bare = dataclasses.replace(image, objects=(dataclasses.replace(image.objects[0], mask=None),))
    lacking = dataclasses.replace(data, images=[bare])
    with pytest.raises(DataError, match=r"object \d+ of \d.png has none; leave 'segm' out"):
        DetectionMetrics(lacking, BOTH)
    DetectionMetrics(lacking)


def _rank(rank: int, address: str, path: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(minutes=2)
    )
    try:
        data = random_data(20, images=6)
        predictions = random_predictions(data, 21)
        metrics = DetectionMetrics(data, BOTH)
        keys = list(predictions)[rank::2] + list(predictions)[:1]  # a sampler's padding
        metrics.update([predictions[key] for key in keys], keys)
        torch.save(metrics.result(), path)
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    paths = [tmp_path / "0.pt", tmp_path / "1.pt"]
    other = multiprocessing.get_context("spawn").Process(target=_rank, args=(1, address, paths[1]))
    other.start()
    _rank(0, address, paths[0])
    other.join()
    data = random_data(20, images=6)
    want = measured(data, random_predictions(data, 21))
    for path in paths:
        assert torch.load(path) == near(want)
