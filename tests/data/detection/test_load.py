"""The two parts of a detection data set, wherever and however they are written down."""

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.conftest import noise
from visgraft.data import DataError
from visgraft.data.detection import (
    DetectionParts,
    SeededDetection,
    fashion_scenes,
    fingerprint,
    load_coco,
    load_detection,
    load_measured,
    without_crowds,
    write_coco,
)
from visgraft.data.detection.load import check_objects

SCENES = dict(zip(("train", "val"), fashion_scenes(train_images=6, val_images=3), strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "shop"
    write_coco(path, SCENES)
    return path


def ids(data):
    return [image.id for image in data.images]


def test_scenes_by_name():
    data = load_detection("fashion_scenes", train_limit=3, val_limit=2)
    assert (len(data.train), len(data.val), data.name) == (3, 2, "fashion_scenes")
    assert data.classes == SCENES["train"].classes
    assert data.category_ids == tuple(range(1, 11))
    assert (data.in_chans, data.image_size, data.has_own_split) == (3, None, True)


def test_coco_folder_has_both_parts(folder):
    data = load_detection(folder)
    assert (len(data.train), len(data.val), data.has_own_split) == (6, 3, True)
    assert ids(load_measured(folder)) == ids(data.val)


def test_coco_json_alone_is_split_by_the_names(folder):
    train = folder / "annotations" / "instances_train.json"
    data = load_detection(train, val_fraction=0.4)
    assert (len(data.train), len(data.val), data.has_own_split) == (4, 2, False)
    assert sorted(ids(data.train) + ids(data.val)) == [1, 2, 3, 4, 5, 6]
    assert ids(load_detection(train, val_fraction=0.4).val) == ids(data.val)
    others = {
        tuple(ids(load_detection(train, val_fraction=0.4, split_seed=s).val)) for s in range(9)
    }
    assert len(others) > 1
    assert len(load_measured(train)) == 6


def test_coco_jsons_one_by_one(folder):
    train, val = (folder / "annotations" / f"instances_{part}.json" for part in ("train", "val"))
    data = load_detection(train, val_source=val, images=folder / "train", val_images=folder / "val")
    assert (len(data.train), len(data.val)) == (6, 3)
    same = load_detection(train, val_source=train, train_limit=2, val_limit=2)
    assert ids(same.train) == ids(same.val)
    assert len(load_detection(train, val_source=folder).val) == 3


def test_the_names_of_jsons_tell_which_is_which(folder, tmp_path):
    (tmp_path / "annotations").mkdir()
    for part, name in (("train", "trainval"), ("val", "test")):
        (tmp_path / name).symlink_to(folder / part)
        content = (folder / "annotations" / f"instances_{part}.json").read_bytes()
        (tmp_path / "annotations" / f"instances_{name}.json").write_bytes(content)
    data = load_detection(tmp_path)
    assert (data.train.name, data.val.name) == ("instances_trainval", "instances_test")


def test_limits_are_the_same_images_every_time_and_grow(folder):
    few, more = (load_detection(folder, train_limit=n).train for n in (2, 4))
    assert set(ids(few)) < set(ids(more))
    assert len(load_detection(folder, train_limit=99).train) == 6


def yolo(root: Path, parts=("train", "val")) -> Path:
    for number, part in enumerate(parts):
        (root / "images" / part).mkdir(parents=True)
        (root / "labels" / part).mkdir(parents=True)
        for key in range(2):
            Image.fromarray(noise(key, (20, 30))).save(
                root / "images" / part / f"{number}{key}.png"
            )
            (root / "labels" / part / f"{number}{key}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    lines = [f"{part}: images/{part}" for part in parts]
    (root / "data.yaml").write_text("\n".join(["names: [cat]", *lines]))
    return root / "data.yaml"


def test_yolo_by_file_and_by_folder(tmp_path):
    path = yolo(tmp_path)
    for source in (path, tmp_path):
        data = load_detection(source)
        assert (len(data.train), len(data.val), data.classes) == (2, 2, ("cat",))
    alone = load_detection(yolo(tmp_path / "alone", ["train"]), val_fraction=0.5)
    assert (len(alone.train), len(alone.val), alone.has_own_split) == (1, 1, False)
    with pytest.raises(
        DataError, match=r"2 of 2 objects of .* have no mask, object 1 for one; task inst"
    ):
        load_detection(path, masks=True)


def voc(root: Path, lists: dict[str, str]) -> Path:
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for key in "abcd":
        Image.fromarray(noise(ord(key), (20, 30))).save(root / "JPEGImages" / f"{key}.jpg")
        (root / "Annotations" / f"{key}.xml").write_text(
            f"<annotation><filename>{key}.jpg</filename><size><width>30</width><height>20</height>"
            "</size><object><name>cat</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax>"
            "<ymax>12</ymax></bndbox></object></annotation>"
        )
    for name, keys in lists.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(keys))
    return root


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({"train": "abc", "val": "d", "trainval": "abcd", "cat_train": "ab"}, ("abc", "d")),
        ({"trainval": "ab", "test": "cd"}, ("ab", "cd")),
        ({"trainval": "abcd"}, None),
        ({}, None),
    ],
)
def test_voc_lists(tmp_path, lists, expected):
    data = load_detection(voc(tmp_path, lists), val_fraction=0.25)
    names = tuple("".join(i.name[0] for i in part.images) for part in (data.train, data.val))
    if expected is None:
        assert sorted("".join(names)) == list("abcd")
        assert not data.has_own_split
    else:
        assert names == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"source": "nowhere"}, "there is no nowhere; give fashion_scenes, a COCO json, a YOLO"),
        ({"source": "fashion_scenes", "val_fraction": 1.0}, "val_fraction must be between 0 and 1"),
        ({"source": "fashion_scenes", "train_limit": 0}, "train_limit must be at least 1, got 0"),
    ],
)
def test_rejects(arguments, expected):
    with pytest.raises(DataError, match=expected):
        load_detection(**arguments)


def test_rejects_folders(tmp_path, folder):
    with pytest.raises(DataError, match=r"is neither a COCO json, a YOLO data\.yaml, nor a folder"):
        load_detection(tmp_path)
    path = yolo(tmp_path / "yolo")
    with pytest.raises(DataError, match=r"images is for COCO jsons, and .* has none"):
        load_detection(path, images=tmp_path)
    with pytest.raises(DataError, match=r"has the classes T-shirt/top, .*, and .* has cat; both"):
        load_detection(folder, val_source=path)
    lists = voc(tmp_path / "voc", {"val": "ab"})
    with pytest.raises(DataError, match=r"voc has val, and nothing to train on \(train or trainva"):
        load_detection(lists)
    assert len(load_measured(lists)) == 2
    many = tmp_path / "many"
    (many / "annotations").mkdir(parents=True)
    for name in ("a", "b"):
        (many / "annotations" / f"instances_{name}.json").write_text("{}")
    with pytest.raises(
        DataError, match=r"instances_a.json, instances_b.json, and their names do no"
    ):
        load_detection(many)
    (tmp_path / "yolo" / "labels" / "val" / "10.txt").write_text("")
    (tmp_path / "yolo" / "labels" / "val" / "11.txt").write_text("")
    with pytest.raises(DataError, match="the 2 images of yolo/val have no object to measure on"):
        load_detection(path)


def test_one_image_cannot_be_split(tmp_path, folder):
    train = folder / "annotations" / "instances_train.json"
    content = json.loads(train.read_text())
    content["images"] = content["images"][:1]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 1]
    (tmp_path / "one.json").write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"one has 1 image, and a split needs two; give what to meas"
    ):
        load_detection(tmp_path / "one.json", images=folder / "train")


def test_fingerprint_stays_where_the_folder_moves(folder, tmp_path):
    data = load_detection(folder)
    assert len(data.fingerprint) == 64
    folder.rename(tmp_path / "moved")
    try:
        assert load_detection(tmp_path / "moved").fingerprint == data.fingerprint
    finally:
        (tmp_path / "moved").rename(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"box": (0.0, 0.0, 5.0, 5.0)},
        {"label": 9},
        {"area": 1.5},
        {"is_crowd": True},
        {"mask": None},
        {"mask": np.ones((4, 4), bool)},
    ],
    ids=str,
)
def test_fingerprint_sees_each_object(change):
    train, val = SCENES["train"], SCENES["val"]
    image = train.images[0]
    item = dataclasses.replace(image.objects[0], **change)
    changed = dataclasses.replace(image, objects=(item, *image.objects[1:]))
    other = dataclasses.replace(train, images=[changed, *train.images[1:]])
    assert (
        DetectionParts("a", other, val).fingerprint != DetectionParts("b", train, val).fingerprint
    )
    assert (
        DetectionParts("a", train, val).fingerprint == DetectionParts("b", train, val).fingerprint
    )


def test_fingerprint_sees_pictures_classes_and_parts(tmp_path, folder):
    train, val = SCENES["train"], SCENES["val"]
    known = fingerprint({"train": train, "val": val})
    assert fingerprint({"train": train, "val": train}) != known
    assert fingerprint({"train": train.subset([1, 0, 2, 3, 4, 5]), "val": val}) != known
    renumbered = dataclasses.replace(train, category_ids=tuple(range(10)))
    assert fingerprint({"train": renumbered, "val": val}) != known
    pixels = dict(train.read.pixels)
    pixels[1] = pixels[1] ^ 1
    painted = dataclasses.replace(train, read=type(train.read)(pixels))
    assert fingerprint({"train": painted, "val": val}) != known
    data = load_coco(folder / "annotations" / "instances_val.json")
    before = fingerprint({"val": data})
    picture = folder / "val" / data.images[0].name
    content = picture.read_bytes()
    picture.write_bytes(content + b"\0")
    try:
        assert fingerprint({"val": data}) != before
    finally:
        picture.write_bytes(content)


def test_a_reader_without_signature_counts_by_its_pixels():
    train = SCENES["train"]
    by_hand = dataclasses.replace(train, read=lambda image: train.read(image))
    other = dataclasses.replace(train, read=lambda image: train.read(image).point(lambda v: v ^ 1))
    assert fingerprint({"a": by_hand}) == fingerprint({"a": by_hand})
    assert fingerprint({"a": by_hand}) != fingerprint({"a": other})


def test_crowds_are_left_out_and_their_images_stay():
    train = SCENES["train"]
    first = train.images[0]
    crowd = dataclasses.replace(first.objects[0], is_crowd=True)
    image = dataclasses.replace(first, objects=(crowd, *first.objects[1:]))
    alone = dataclasses.replace(train.images[1], objects=(crowd,))
    data = without_crowds(dataclasses.replace(train, images=[image, alone]))
    assert [image.objects for image in data.images] == [first.objects[1:], ()]


def draw(image, target):
    return torch.rand(3), target["image_id"]


def test_random_choices_follow_from_seed_epoch_and_index():
    def drawn(seed=0, epoch=0, order=(0, 1, 2)):
        samples = SeededDetection(SCENES["train"], draw, seed)
        samples.set_epoch(epoch)
        return {index: samples[index][0].tolist() for index in order}

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    known = drawn()
    assert torch.equal(torch.rand(1), expected)
    assert drawn(order=(2, 0, 1)) == known
    assert len({tuple(value) for value in known.values()}) == 3
    assert not set(map(tuple, drawn(seed=1).values())) & set(map(tuple, known.values()))
    assert not set(map(tuple, drawn(epoch=1).values())) & set(map(tuple, known.values()))


def test_the_epoch_reaches_a_pickled_copy():
    samples = SeededDetection(SCENES["train"], draw)
    assert len(samples) == 6
    samples.set_epoch(2)
    assert samples.epoch == pickle.loads(pickle.dumps(samples)).epoch == 2


def test_crowds_need_masks_where_they_are_measured_on():
    first = SCENES["val"].images[0]
    crowd = dataclasses.replace(first.objects[0], is_crowd=True, mask=None)
    image = dataclasses.replace(first, objects=(*first.objects[1:], crowd))
    data = dataclasses.replace(SCENES["val"], images=[image])
    check_objects(data, "train on", True)
    check_objects(data, "measure on", False)
    with pytest.raises(DataError, match=f"1 of {len(image.objects)} objects of .* have no mask"):
        check_objects(data, "measure on", True)
