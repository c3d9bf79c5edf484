"""The embedded scenes: exact, the same every time, and whole on disk."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from visgraft.data import DataError
from visgraft.data.detection import DetectionData, fashion_scenes, load_coco, write_coco
from visgraft.data.detection.masks import decode_mask
from visgraft.data.detection.writing import _picture_names


@pytest.fixture(scope="module")
def scenes() -> tuple[DetectionData, DetectionData]:
    return fashion_scenes(train_images=40, val_images=8)


def digest(data: DetectionData) -> str:
    total = hashlib.sha256()
    for image in data.images:
        total.update(np.asarray(data.read(image)).tobytes())
        for item in image.objects:
            assert item.mask is not None
            total.update(repr((item.box, item.label, item.area, item.id)).encode())
            total.update(decode_mask(item.mask, image.height, image.width).tobytes())
    return total.hexdigest()


def test_sizes_classes_and_counts(scenes: tuple[DetectionData, DetectionData]) -> None:
    train, val = scenes
    assert (len(train), len(val)) == (40, 8)
    assert train.classes[9] == "Ankle boot"
    assert train.category_ids == tuple(range(1, 11))
    sides = [side for image in train.images for side in (image.height, image.width)]
    assert 128 <= min(sides) < 150
    assert 230 < max(sides) <= 256
    assert max(len(image.objects) for image in train.images) <= 7
    labels = [item.label for image in train.images for item in image.objects]
    assert set(labels) == set(range(10))
    ids = [item.id for image in train.images for item in image.objects]
    assert ids == list(range(1, len(ids) + 1))


def test_boxes_and_areas_are_those_of_the_masks(
    scenes: tuple[DetectionData, DetectionData],
) -> None:
    for image in scenes[0].images:
        seen = np.zeros((image.height, image.width), int)
        for item in image.objects:
            assert item.mask is not None
            mask = decode_mask(item.mask, image.height, image.width)
            rows, columns = mask.nonzero()
            edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert item.box == edges
            assert item.area == mask.sum() >= 50
            seen += mask
        assert seen.max() <= 1  # modal: a pixel shows one object


def test_objects_lie_on_each_other(scenes: tuple[DetectionData, DetectionData]) -> None:
    def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
        return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

    crowded = [
        image
        for image in scenes[0].images
        if any(overlap(a.box, b.box) for a in image.objects for b in image.objects if a.id < b.id)
    ]
    assert len(crowded) > 20


def test_they_are_the_same_every_time() -> None:
    first, again = (fashion_scenes(train_images=3, val_images=2) for _ in range(2))
    assert [digest(part) for part in first] == [digest(part) for part in again]
    other = fashion_scenes(train_images=3, val_images=2, seed=1)
    assert digest(other[0]) != digest(first[0])
    assert digest(first[0]) != digest(first[1])


def test_a_scene_does_not_depend_on_how_many_there_are(
    scenes: tuple[DetectionData, DetectionData],
) -> None:
    few, _ = fashion_scenes(train_images=2, val_images=1)
    assert few.images[1].objects[0].box == scenes[0].images[1].objects[0].box
    pixels = [np.asarray(data.read(data.images[1])) for data in (few, scenes[0])]
    assert np.array_equal(*pixels)


@pytest.mark.parametrize("name", ["train_images", "val_images", "seed"])
def test_bad_numbers_are_refused(name: str) -> None:
    options: dict[str, int] = {name: -1}
    with pytest.raises(DataError, match=rf"{name} must be at least [01], got -1"):
        fashion_scenes(**options)


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_written_scenes_are_read_back(
    tmp_path: Path, scenes: tuple[DetectionData, DetectionData]
) -> None:
    _, val = scenes
    write_coco(tmp_path / "a", {"val": val})
    write_coco(tmp_path / "b" / "c", {"val": val})
    assert content(tmp_path / "a") == content(tmp_path / "b" / "c")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["a", "b"]
    back = load_coco(tmp_path / "a" / "annotations" / "instances_val.json")
    assert digest(back) == digest(val)
    assert (back.classes, back.category_ids) == (val.classes, val.category_ids)


def test_a_failed_write_leaves_nothing(
    tmp_path: Path, scenes: tuple[DetectionData, DetectionData]
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            assert total == 8
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_coco(tmp_path / "new", {"val": scenes[1]}, progress=stop)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []


def test_a_full_folder_is_left_alone(
    tmp_path: Path, scenes: tuple[DetectionData, DetectionData]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="exists and is not an empty folder; choose another"):
        write_coco(tmp_path, {"val": scenes[1]})
    assert (tmp_path / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    write_coco(tmp_path / "empty", {"val": scenes[1]})
    assert len(content(tmp_path / "empty")) == 9


def test_two_pictures_never_get_one_name(scenes: tuple[DetectionData, DetectionData]) -> None:
    first = scenes[1].images[0]
    twice = DetectionData("x", (), (), [first, first], scenes[1].read)
    with pytest.raises(DataError, match=r"two pictures of x would be written to 000001\.png"):
        _picture_names(twice)
