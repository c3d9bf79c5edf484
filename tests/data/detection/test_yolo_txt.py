"""The YOLO reader."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import noise
from visgraft.data import DataError
from visgraft.data.detection import check_detection, load_yolo
from visgraft.data.detection.masks import Polygons

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a set with one labelled picture of 40 x 20 pixels and one without labels."""

    def build(labels: str = "1 0.5 0.5 0.25 0.5\n", description: str | None = None) -> Path:
        root = tmp_path / "shop"
        for part in ("images", "labels"):
            (root / part / "train").mkdir(parents=True, exist_ok=True)
        for name in ("a", "b"):
            Image.fromarray(noise(1, (20, 40))).save(root / "images" / "train" / f"{name}.jpg")
        (root / "labels" / "train" / "a.txt").write_text(labels)
        path = root / "data.yaml"
        path.write_text(description or "path: .\ntrain: images/train\nnames: [cat, dog]\n")
        return path

    return build


def test_boxes_are_fractions_of_the_picture(make: Make) -> None:
    data = load_yolo(make())
    first, second = data.images
    assert (first.name, first.height, first.width) == ("images/train/a.jpg", 20, 40)
    (item,) = first.objects
    assert (item.box, item.label, item.area, item.mask) == ((15, 5, 25, 15), 1, 100, None)
    assert second.objects == ()
    assert data.classes == ("cat", "dog")
    assert data.notes == (
        "1 pictures have no label file (kept, without objects)",
        "1 images have no objects (kept)",
    )
    assert data.read(first).size == (40, 20)


def test_outlines_are_masks_with_their_box(make: Make) -> None:
    data = load_yolo(make("0 0.25 0.1 0.5 0.1 0.5 0.9\n"))
    (item,) = data.images[0].objects
    assert item.box == pytest.approx((10, 2, 20, 18))
    assert isinstance(item.mask, Polygons)
    assert item.mask.rings[0] == pytest.approx([10, 2, 20, 2, 20, 18])
    assert data.has_masks


def test_pictures_are_upright(make: Make) -> None:
    path = make()
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = noise(2, (20, 40))
    picture = path.parent / "images" / "train" / "a.png"
    (path.parent / "images" / "train" / "a.jpg").unlink()
    Image.fromarray(pixels).save(picture, exif=exif)
    data = load_yolo(path)
    assert (data.images[0].height, data.images[0].width) == (40, 20)
    assert np.array_equal(np.asarray(data.read(data.images[0])), np.rot90(pixels, -1))
    assert data.images[0].objects[0].box == (7.5, 10, 12.5, 30)
    exif[0x0112] = 3  # upside down: both frames have one size
    Image.fromarray(pixels).save(picture, exif=exif)
    data = load_yolo(path)
    assert np.array_equal(np.asarray(data.read(data.images[0])), np.rot90(pixels, 2))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("2 0.5 0.5 0.1 0.1", "class must be 0 to 1, got 2"),
        ("0.5 0.5 0.5 0.1 0.1", "class must be 0 to 1, got 0.5"),
        ("nan 0.5 0.5 0.1 0.1", "class must be 0 to 1, got nan"),
        ("0 0.5 0.5 0.1", "got 4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.1", "got 6 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.1 0.1 0.1", "got 8 numbers"),
        ("0 x 0.5 0.1 0.1", "must be numbers only, got '0 x 0.5 0.1 0.1'"),
        ("0 0.5 0.5 0 0.1", "has no area"),
        ("0 15 5 10 10", "lies outside of its image"),
        ("0 0.9 0.5 0.4 0.4", "sticks out of its image of 40 x 20 pixels by 4"),
        ("0 0.5 nan 0.4 0.4", "is not finite"),
        ("0 0.5 0.5 9 9 0.4 0.4", "far outside of its image"),
    ],
)
def test_a_bad_line_is_named(make: Make, line: str, text: str) -> None:
    path = make(f"1 0.5 0.5 0.25 0.5\n\n{line}\n")
    with pytest.raises(DataError, match=text) as caught:
        load_yolo(path)
    assert "1 problems" in str(caught.value)
    assert f"{path.parent / 'labels' / 'train' / 'a.txt'}, line 3: " in str(caught.value)
    assert load_yolo(path, on_problem="mend").images[0].objects[0].box == (15, 5, 25, 15)


def test_a_repeated_line_is_kept_once_and_counted(make: Make) -> None:
    data = load_yolo(make("0 0.5 0.5 0.2 0.2\n" * 3))
    assert data.num_objects == 1
    assert "2 lines repeat another one of their file (kept once)" in data.notes


def test_labels_without_a_picture_are_named(make: Make) -> None:
    path = make()
    lone = path.parent / "labels" / "train" / "c.txt"
    lone.write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match=f"{lone}: there is no picture for these labels"):
        load_yolo(path)


def test_an_unreadable_picture_is_named(make: Make) -> None:
    path = make()
    (path.parent / "images" / "train" / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"b\.jpg: not an image of a known format"):
        load_yolo(path)
    assert [image.id for image in load_yolo(path, on_problem="mend").images] == [1]
    (path.parent / "images" / "train" / "a.jpg").write_bytes(b"no picture")
    Image.fromarray(noise(1, (20, 40))).save(path.parent / "images" / "train" / "b.jpg")
    assert [image.id for image in load_yolo(path, on_problem="mend").images] == [2]


@pytest.mark.parametrize(
    ("description", "text"),
    [
        ("train: images/train\n", "must be a list of classes, got None"),
        ("train: images/train\nnames: {0: a, 2: b}\n", r"numbered 0 to 1, got \[0, 2\]"),
        ("train: images/train\nnames: [a]\nnc: 2\n", "has nc 2 and 1 names"),
        ("val: images/train\nnames: [a]\n", "has no part 'train'"),
        ("train: images/test\nnames: [a]\n", "there is no .*images/test, which"),
        ("path: there\ntrain: images\nnames: [a]\n", "there is no folder .*there; change 'path'"),
        ("- 1", "must be a mapping"),
        ("a: [", "is not yaml"),
        ("train: labels\nnames: [a]\n", "holds no pictures"),
    ],
)
def test_a_bad_description_is_told(make: Make, description: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        load_yolo(make(description=description))


def test_no_code_of_a_description_is_run(make: Make) -> None:
    with pytest.raises(DataError, match="is not yaml"):
        load_yolo(make(description="names: !!python/object/apply:os.getcwd []\n"))


def test_lists_of_files_and_numbered_names(make: Make) -> None:
    path = make(description="train: train.txt\nnames: {1: dog, 0: cat}\n")
    (path.parent / "train.txt").write_text("./images/train/a.jpg\n")
    data = load_yolo(path)
    assert [image.name for image in data.images] == ["images/train/a.jpg"]
    assert data.classes == ("cat", "dog")
    (path.parent / "train.txt").write_text("/etc/a.jpg\n")
    with pytest.raises(DataError, match="is not below"):
        load_yolo(path)


def test_the_check_reads_each_part(make: Make) -> None:
    path = make(description="train: images/train\nval: images/val\nnames: [a, b]\n")
    (path.parent / "notes.json").write_text("{}")
    train, val = check_detection(path.parent)
    assert [part.source for part in check_detection(path)] == [train.source, val.source]
    assert (train.format, train.problems) == ("YOLO", ())
    assert train.data is not None
    assert train.data.num_objects == 1
    assert "images/val, which" in val.problems[0]
