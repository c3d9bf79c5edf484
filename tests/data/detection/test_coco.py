"""The COCO reader: values of a good file, and every fault named with file and id."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import noise
from tests.data.detection.conftest import Coco, annotation
from visgraft.data import DataError
from visgraft.data.detection import load_coco
from visgraft.data.detection.masks import RunLengths, decode_mask


def test_values_of_a_good_file(coco: Coco) -> None:
    runs = {"size": [20, 30], "counts": [5, 95, 500]}
    coco.annotations.append(annotation(9, 20, iscrowd=1, segmentation=runs, category_id=90))
    data = coco.load()
    assert (data.classes, data.category_ids) == (("dog", "cat", "owl"), (3, 7, 90))
    assert [image.id for image in data.images] == [10, 20]
    first, second = data.images[0].objects
    assert (first.box, first.label, first.area, first.id) == ((2, 3, 12, 11), 1, 41.5, 1)
    assert (second.label, second.is_crowd) == (0, False)
    (crowd,) = data.images[1].objects
    assert (crowd.label, crowd.is_crowd, crowd.id) == (2, True, 9)
    assert isinstance(crowd.mask, RunLengths)
    assert decode_mask(crowd.mask, 20, 30).sum() == 95
    assert data.has_masks
    assert data.num_objects == 3
    assert "85 numbers between the category ids are unused (kept apart)" in data.notes
    expected = Image.open(coco.folder / "10.png")
    assert np.array_equal(np.asarray(data.read(data.images[0])), np.asarray(expected))


def test_an_image_without_objects_is_kept_and_counted(coco: Coco) -> None:
    data = coco.load()
    assert len(data) == 2
    assert data.images[1].objects == ()
    assert "1 images have no objects (kept)" in data.notes


def test_an_object_without_a_mask_is_kept_and_counted(coco: Coco) -> None:
    del coco.annotations[0]["segmentation"]
    data = coco.load()
    assert data.num_objects == 2
    assert not data.has_masks
    assert "1 objects have no mask, only a box" in data.notes


def test_an_object_without_area_has_that_of_its_box(coco: Coco) -> None:
    del coco.annotations[0]["area"]
    assert coco.load().images[0].objects[0].area == 80


BAD_OBJECTS = [
    ({"bbox": [2, 3, 0, 8]}, r"box \(2, 3, 2, 11\) has no area"),
    ({"bbox": [2, 3, 5, -8]}, "has no area"),
    ({"bbox": [2, 3, float("nan"), 8]}, "bbox must be four finite numbers"),
    ({"bbox": [2, 3, 10**400, 8]}, "bbox must be four finite numbers"),
    ({"bbox": [40, 3, 5, 8]}, "lies outside of its image of 30 x 20 pixels"),
    ({"bbox": [25, 3, 10, 8]}, "sticks out of its image of 30 x 20 pixels by 5"),
    ({"bbox": [2, 3, 5]}, r"bbox must be four finite numbers x, y, width, height, got \[2, 3, 5\]"),
    ({"bbox": [2, 3, "5", 8]}, "bbox must be four finite numbers"),
    ({"bbox": None}, "bbox must be four finite numbers"),
    ({"category_id": 8}, "category_id 8 is no usable category"),
    ({"image_id": 99}, "image_id 99 is no usable image"),
    ({"id": 1}, "this id is taken by another one"),
    ({"id": 10**30}, "annotation at place 2: must be a dict with a whole id"),
    ({"id": "x"}, "annotation at place 2: must be a dict with a whole id, got 'x'"),
    ({"iscrowd": 2}, "iscrowd must be 0 or 1, got 2"),
    ({"area": -1}, "area must be a number from 0 up, got -1"),
    ({"segmentation": "runs"}, "segmentation must be a list of polygons or a dict"),
    ({"segmentation": [[1, 2, 3, 4]]}, "at least three points"),
    ({"segmentation": {"size": [30, 20], "counts": [600]}}, "do not fit the image's"),
]


@pytest.mark.parametrize(("changes", "text"), BAD_OBJECTS)
def test_a_bad_object_is_named(coco: Coco, changes: dict[str, object], text: str) -> None:
    coco.annotations.append(annotation(5) | changes)
    with pytest.raises(DataError, match=text) as caught:
        coco.load()
    assert "1 problems in" in str(caught.value)
    assert str(coco.path) in str(caught.value)
    key = changes.get("id", 5)
    assert f"annotation {key}" in str(caught.value) or "at place 2" in str(caught.value)


def test_mending_leaves_out_what_is_bad_and_says_so(
    coco: Coco, caplog: pytest.LogCaptureFixture
) -> None:
    coco.annotations += [annotation(5, bbox=[25, 3, 10, 8]), annotation(6, bbox=[1, 1, 0, 0])]
    coco.images.append({"id": 30, "file_name": "gone.png", "height": 20, "width": 30})
    coco.annotations.append(annotation(7, 30))
    with caplog.at_level(logging.WARNING, "visgraft.data"):
        data = coco.load(on_problem="mend")
    assert [image.id for image in data.images] == [10, 20]
    assert [item.id for item in data.images[0].objects] == [1, 2, 5]
    assert data.images[0].objects[2].box == (25, 3, 30, 11)
    assert len(caplog.records) == 3
    assert "gone.png: the file, or what it links to, does not exist" in caplog.text


def test_a_hairs_breadth_outside_is_cut_and_counted(coco: Coco) -> None:
    coco.annotations = [annotation(1, bbox=[-0.5, 3, 31, 17.9])]
    data = coco.load()
    assert data.images[0].objects[0].box == (0, 3, 30, 20)
    assert "1 boxes stuck out by at most 1 pixel and were cut" in data.notes


def test_all_faults_are_named_at_once(coco: Coco) -> None:
    coco.annotations += [annotation(5) | changes for changes, _ in BAD_OBJECTS]
    coco.images += [{"id": 10}, {"id": 40, "file_name": "../x.png", "height": 1, "width": 1}]
    coco.categories.append({"id": 3, "name": "again"})
    (coco.folder / "20.png").write_bytes(b"")
    problems = coco.problems()
    assert len(problems) == len(BAD_OBJECTS) + 4
    assert any(problem.endswith("20.png: the file is empty") for problem in problems)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"id": 10, "file_name": "20.png", "height": 20, "width": 30}, "image 10: this id is"),
        ({"id": 5, "file_name": "20.png", "height": 20, "width": 30}, "file 20.png of image 20"),
        ({"id": 5, "file_name": "/etc/x.png", "height": 2, "width": 3}, "path below the image"),
        ({"id": 5, "file_name": "a/../../x.png", "height": 2, "width": 3}, "path below the image"),
        ({"id": 5, "file_name": "\ud800.png", "height": 2, "width": 3}, "path below the image"),
        ({"id": 5, "file_name": "5" * 999, "height": 2, "width": 3}, "File name too long"),
        ({"id": 5, "file_name": "5.png", "height": 0, "width": 3}, "at least 1, got"),
        ({"id": 5, "file_name": "5.png", "height": 10**40, "width": 3}, "at least 1, got"),
        ({"id": 5, "file_name": "5.png"}, r"at least 1, got \(None, None\)"),
        ({"file_name": "5.png"}, "image at place 2: must be a dict with a whole id, got none"),
        ("5.png", "image at place 2: must be a dict with a whole id, got '5.png'"),
    ],
)
def test_a_bad_image_entry_is_named(coco: Coco, entry: dict[str, object], text: str) -> None:
    coco.images.append(entry)
    with pytest.raises(DataError, match=text):
        coco.load()


def test_a_picture_of_another_size_is_named(coco: Coco) -> None:
    Image.fromarray(noise(1, (20, 31))).save(coco.folder / "20.png")
    with pytest.raises(DataError, match=r"image 20: is said to have 30 x 20 .* has 31 x 20"):
        coco.load()
    Image.fromarray(noise(1, (30, 20))).save(coco.folder / "20.png")
    with pytest.raises(DataError, match=r"image 20: is said to have 30 x 20 .* has 20 x 30"):
        coco.load()


def turned(path: Path, size: tuple[int, int], orientation: int) -> np.ndarray:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = noise(3, size)
    Image.fromarray(pixels).save(path, exif=exif)
    return pixels


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_annotations_are_in_the_stored_frame(coco: Coco, orientation: int) -> None:
    pixels = turned(coco.folder / "20.png", (20, 30), orientation)
    data = coco.load()
    assert np.array_equal(np.asarray(data.read(data.images[1])), pixels)


def test_annotations_that_fit_the_turned_picture_only_are_in_its_frame(coco: Coco) -> None:
    pixels = turned(coco.folder / "20.png", (30, 20), 6)
    data = coco.load()
    assert np.array_equal(np.asarray(data.read(data.images[1])), np.rot90(pixels, -1))


def test_sixteen_bits_and_cmyk_are_read_and_counted(coco: Coco) -> None:
    Image.fromarray(np.full((20, 30), 0x8040, np.uint16)).save(coco.folder / "10.png")
    coco.images[1]["file_name"] = "20.jpg"
    Image.new("CMYK", (30, 20), (255, 0, 0, 0)).save(coco.folder / "20.jpg")
    from visgraft.data.detection import check_detection

    (part,) = check_detection(coco.write())
    assert part.problems == ()
    assert "1 pictures have 16 bits (read with 8)" in part.notes
    assert "1 pictures are CMYK (read as RGB)" in part.notes
    assert part.data is not None
    assert part.data.read(part.data.images[0]).getpixel((0, 0)) == (128, 128, 128)
    assert part.data.read(part.data.images[1]).mode == "RGB"


def test_a_file_that_changed_since_is_named(coco: Coco) -> None:
    data = coco.load()
    Image.fromarray(noise(1, (9, 9))).save(coco.folder / "10.png")
    with pytest.raises(DataError, match=r"10\.png has 9 x 9 pixels and had 30 x 20 when"):
        data.read(data.images[0])
    (coco.folder / "10.png").unlink()
    with pytest.raises(DataError, match=r"10\.png could be read when the data set was checked"):
        data.read(data.images[0])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "is not json"),
        ("[" * 100_000, "is not json"),
        ("[1]", "must hold a dict with images, annotations, categories, got a list"),
        ('{"images": []}', "has no list of annotations and categories"),
    ],
)
def test_another_file_is_refused(coco: Coco, content: str, text: str) -> None:
    coco.path.write_text(content)
    with pytest.raises(DataError, match=text):
        load_coco(coco.path)


def test_a_missing_json_or_folder_is_named(coco: Coco) -> None:
    with pytest.raises(DataError, match=r"there is no file .*nothing\.json"):
        load_coco(coco.path.with_name("nothing.json"))
    with pytest.raises(DataError, match=r"there is no folder .*nowhere; give the folder"):
        coco.load(images=coco.root / "nowhere")
    coco.folder.rename(coco.root / "elsewhere")
    with pytest.raises(DataError, match=r"are in none of .*/train, .*; give their folder"):
        coco.load()
    assert coco.load(images=coco.root / "elsewhere").num_objects == 2


def test_an_unknown_way_with_problems_is_refused(coco: Coco) -> None:
    with pytest.raises(DataError, match="on_problem must be one of error, mend, got 'skip'"):
        coco.load(on_problem="skip")


def test_only_the_first_problems_are_listed_in_an_error(coco: Coco) -> None:
    coco.annotations += [annotation(key, category_id=1) for key in range(100, 170)]
    with pytest.raises(DataError, match=r"70 problems[\s\S]*and 20 more") as caught:
        coco.load()
    assert str(caught.value).count("\n") == 51
    assert len(coco.problems()) == 70


def test_the_json_of_any_folder_finds_its_pictures(coco: Coco, tmp_path: Path) -> None:
    content = json.loads(coco.write().read_text())
    beside = coco.folder / "_annotations.coco.json"
    beside.write_text(json.dumps(content))
    assert load_coco(beside).num_objects == 2
