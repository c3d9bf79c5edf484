"""Image folders: layouts, splits, limits, fingerprints, and what is refused."""

import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import MakeFolder, noise
from visgraft.data import DataError, load_data
from visgraft.data._folder import Part
from visgraft.data.load import _fingerprint


def test_train_and_val(make_folder: MakeFolder) -> None:
    data = load_data(make_folder())
    assert data.name == "pets"
    assert data.classes == ("cat", "dog")
    assert data.train.names == [f"train/{c}/{i}.png" for c in ("cat", "dog") for i in range(3)]
    assert data.val.labels == [0, 0, 0, 1, 1, 1]
    assert (data.in_chans, data.image_size) == (3, (12, 10))
    image, label = data.train[4]
    assert (image.mode, label) == ("RGB", 1)
    assert np.array_equal(np.asarray(image), noise(5))


@pytest.mark.parametrize("val", ["test", "validation", "valid", "Val"])
@pytest.mark.parametrize("train", ["train", "Training"])
def test_other_names_of_the_parts(make_folder: MakeFolder, train: str, val: str) -> None:
    data = load_data(make_folder(parts=(train, val)))
    assert data.train.names[0] == f"{train}/cat/0.png"
    assert data.val.names[0] == f"{val}/cat/0.png"


def test_val_is_preferred_to_test(make_folder: MakeFolder) -> None:
    data = load_data(make_folder(parts=("test", "train", "val")))
    assert {name.split("/")[0] for name in data.val.names} == {"val"}
    assert {name.split("/")[0] for name in data.train.names} == {"train"}


def test_class_folders_are_split_by_fraction(make_folder: MakeFolder) -> None:
    data = load_data(make_folder(parts=[""], count=20), val_fraction=0.25)
    assert Counter(data.train.labels) == {0: 15, 1: 15}
    assert Counter(data.val.labels) == {0: 5, 1: 5}
    assert not set(data.train.names) & set(data.val.names)


def test_the_split_depends_on_names_and_seed_alone(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder(parts=[""], count=20)
    first = load_data(root)
    moved = tmp_path / "elsewhere" / "pets"
    shutil.copytree(root, moved)
    scandir = os.scandir

    class Reversed:
        def __init__(self, folder: Path) -> None:
            self.entries = list(scandir(folder))[::-1]

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *error: object) -> None:
            return None

    monkeypatch.setattr("visgraft.data._folder.os.scandir", Reversed)
    second = load_data(moved)
    assert first.val.names == second.val.names
    assert first.fingerprint == second.fingerprint
    other = load_data(root, split_seed=1)
    assert set(first.val.names) != set(other.val.names)
    assert first.fingerprint != other.fingerprint


def test_a_new_file_hardly_moves_the_others(make_folder: MakeFolder) -> None:
    root = make_folder(parts=[""], count=40)
    before = set(load_data(root, val_fraction=0.25).val.names)
    Image.fromarray(noise(0)).save(root / "cat" / "new.png")
    after = set(load_data(root, val_fraction=0.25).val.names)
    assert len(before ^ after) <= 2


def test_each_class_gives_at_least_one_image_to_each_part(make_folder: MakeFolder) -> None:
    root = make_folder(parts=[""], count=2)
    for fraction in (0.01, 0.99):
        data = load_data(root, val_fraction=fraction)
        assert sorted(data.train.labels) == sorted(data.val.labels) == [0, 1]


def test_limits_share_out_what_small_classes_lack(make_folder: MakeFolder) -> None:
    root = make_folder(count=12)
    for index in range(2, 12):
        (root / "train" / "cat" / f"{index}.png").unlink()
    data = load_data(root, train_limit=8, val_limit=7)
    assert Counter(data.train.labels) == {0: 2, 1: 6}
    assert sorted(Counter(data.val.labels).values()) == [3, 4]
    assert data.train.labels == sorted(data.train.labels)


def test_nested_folders_links_and_any_ending(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder(count=1)
    deep = root / "train" / "cat" / "a" / "b"
    deep.mkdir(parents=True)
    Image.fromarray(noise(1)).save(deep / "x.JPEG")
    Image.fromarray(noise(2)).save(deep / "without_ending", format="PNG")
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.fromarray(noise(3)).save(outside / "linked.PNG")
    (root / "train" / "dog" / "more").symlink_to(outside)
    (root / "train" / "dog" / "one.png").symlink_to(outside / "linked.PNG")
    (root / "train" / "dog" / "around").symlink_to(root / "train" / "dog")
    data = load_data(root)
    assert data.train.names == [
        "train/cat/0.png",
        "train/cat/a/b/without_ending",
        "train/cat/a/b/x.JPEG",
        "train/dog/0.png",
        "train/dog/more/linked.PNG",
        "train/dog/one.png",
    ]
    assert np.array_equal(np.asarray(data.train[5][0]), noise(3))


def test_hidden_files_and_clutter_are_ignored(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (root / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    (root / "train" / "labels.csv").write_text("not in a class folder")
    data = load_data(root)
    assert data.classes == ("cat", "dog")
    assert len(data.train) == 6


def test_a_class_may_be_called_train(make_folder: MakeFolder) -> None:
    data = load_data(make_folder(parts=[""], classes=("bus", "train"), count=4))
    assert data.classes == ("bus", "train")


def test_image_size_is_none_where_sizes_differ(make_folder: MakeFolder) -> None:
    root = make_folder()
    Image.fromarray(noise(1, (9, 9))).save(root / "val" / "cat" / "0.png")
    assert load_data(root).image_size is None


@pytest.mark.parametrize("change", ["name", "size", "class", "split"])
def test_the_fingerprint_sees_each_change(make_folder: MakeFolder, change: str) -> None:
    root = make_folder()
    before = load_data(root).fingerprint
    file = root / "train" / "cat" / "0.png"
    if change == "name":
        file.rename(file.with_name("00.png"))
    elif change == "size":
        Image.fromarray(noise(1, (30, 30))).save(file)
    elif change == "class":
        (root / "train" / "cat").rename(root / "train" / "bird")
        (root / "val" / "cat").rename(root / "val" / "bird")
    else:
        file.rename(root / "val" / "cat" / "9.png")
    assert load_data(root).fingerprint != before
    assert re.fullmatch("[0-9a-f]{64}", before)


def test_the_fingerprint_sees_label_and_part_apart_from_the_name() -> None:
    def fingerprint(train: list[int], val: list[int]) -> str:
        names = iter("abc")
        parts = [Part([next(names) for _ in labels], labels) for labels in (train, val)]
        return _fingerprint(("cat", "dog"), parts, [1, 2, 3])

    assert (
        len({fingerprint(*labels) for labels in (([0, 1], [1]), ([0], [1, 1]), ([0, 0], [1]))}) == 3
    )


def test_a_missing_val_is_named(make_folder: MakeFolder) -> None:
    root = make_folder(parts=["train"])
    with pytest.raises(DataError, match=rf"{root} has train/ but no val/ .*give {root}/train to"):
        load_data(root)


def test_a_missing_train_is_named(make_folder: MakeFolder) -> None:
    root = make_folder(parts=["val", "test"])
    with pytest.raises(DataError, match=rf"{root} has val/ but no train/; add one"):
        load_data(root)


def test_a_class_that_training_lacks(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "val" / "bird").mkdir()
    with pytest.raises(DataError, match=r"that the training part lacks: bird; .* has cat, dog"):
        load_data(root)


def test_a_class_that_validation_lacks_is_logged(
    make_folder: MakeFolder, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder(classes=("bird", "cat", "dog"))
    shutil.rmtree(root / "val" / "cat")
    data = load_data(root)
    assert set(data.val.labels) == {0, 2}
    assert "has no validation images of these classes: cat" in caplog.text


def test_an_empty_class_folder(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "train" / "ant").mkdir()
    with pytest.raises(DataError, match=rf"class folder {root}/train/ant holds no images; add"):
        load_data(root)


def test_one_class_only(make_folder: MakeFolder) -> None:
    with pytest.raises(DataError, match=r"one class folder only, cat/, .* needs at least two"):
        load_data(make_folder(classes=["cat"]))


def test_a_folder_around_a_data_set(make_folder: MakeFolder) -> None:
    inner = make_folder(parts=[""], name="outer/pets")
    with pytest.raises(DataError, match=rf"one class folder only, pets/.*did you mean {inner}"):
        load_data(inner.parent)


def test_a_folder_around_several_data_sets(make_folder: MakeFolder) -> None:
    make_folder(name="outer/pets")
    birds = make_folder(parts=["test", "train"], name="outer/birds")
    with pytest.raises(
        DataError, match=rf"{birds} is not the folder of a class, it has test, train; give this"
    ):
        load_data(birds.parent)


def test_one_image_cannot_be_split(make_folder: MakeFolder) -> None:
    root = make_folder(parts=[""])
    for index in (1, 2):
        (root / "dog" / f"{index}.png").unlink()
    with pytest.raises(DataError, match=rf"class folder {root}/dog holds one image, and a split"):
        load_data(root)


def test_images_without_class_folders(tmp_path: Path) -> None:
    for index in range(3):
        Image.fromarray(noise(index)).save(tmp_path / f"{index}.png")
    with pytest.raises(DataError, match=rf"{tmp_path} has 3 files but no folders; put the images"):
        load_data(tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{tmp_path} has nothing in it; put"):
        load_data(tmp_path)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"no folder {tmp_path}/none; embedded are: fashion_mini"):
        load_data(tmp_path / "none")


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "data.zip"
    file.write_bytes(b"PK")
    with pytest.raises(DataError, match=rf"{file} is a file, not a folder; unpack it"):
        load_data(file)


def test_a_folder_that_cannot_be_listed(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder()
    scandir = os.scandir

    def refuse(folder: Path) -> object:
        if str(folder).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr("visgraft.data._folder.os.scandir", refuse)
    with pytest.raises(
        DataError, match=rf"cannot list folder {root}/train/dog \(Permission denied\); check"
    ):
        load_data(root)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_illegal_fractions(make_folder: MakeFolder, fraction: float) -> None:
    with pytest.raises(DataError, match=f"val_fraction must be between 0 and 1, got {fraction}"):
        load_data(make_folder(), val_fraction=fraction)
