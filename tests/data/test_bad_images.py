"""Files that are no images: found before training, named, skipped on request, remembered."""

import json
import logging
import os
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader

from tests.data.conftest import MakeFolder, noise
from visgraft.data import AugmentedSplit, DataError, build_transforms, images, load_data
from visgraft.data import _scan as scan


def truncated_jpeg(path: Path) -> None:
    Image.fromarray(noise(1, (64, 64))).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:-1000])


def zero_bytes(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("no picture")


def corrupt_png(path: Path) -> None:
    Image.fromarray(noise(1, (64, 64))).save(path, "PNG")
    content = bytearray(path.read_bytes())
    content[100:6000] = bytes(5900)
    path.write_bytes(content)


def broken_link(path: Path) -> None:
    path.symlink_to("nowhere.png")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def named_pipe(path: Path) -> None:
    os.mkfifo(path)


def floats(path: Path) -> None:
    Image.fromarray(noise(1, channels=1).astype("float32")).save(path, "TIFF")


def script(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


BAD: dict[Callable[[Path], None], str] = {
    truncated_jpeg: r"corrupt or truncated \(image file is truncated",
    zero_bytes: "the file is empty",
    text: "not an image of a known format",
    corrupt_png: r"corrupt or truncated \(.*PNG|corrupt or truncated \(.*data",
    broken_link: "the file, or what it links to, does not exist",
    link_to_itself: "Too many levels of symbolic links",
    named_pipe: "not a regular file",
    floats: r"pixels of 32 bits \(mode F\) have no agreed range; save it with 8 or 16 bits",
    script: "not an image of a known format",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda spoil: spoil.__name__)
def test_each_kind_is_named_or_skipped(
    make_folder: MakeFolder, spoil: Callable[[Path], None]
) -> None:
    root = make_folder()
    path = root / "train" / "dog" / "bad.jpg"
    spoil(path)
    with pytest.raises(DataError, match=f"{path}: ({BAD[spoil]})") as caught:
        load_data(root)
    assert "1 of 13 files in" in str(caught.value)
    assert "on_bad_image='skip'" in str(caught.value)
    data = load_data(root, on_bad_image="skip")
    assert data.skipped == ("train/dog/bad.jpg",)
    assert "train/dog/bad.jpg" not in data.train.names
    assert len(data.train) == len(data.train.labels) == 6


def test_a_bomb_is_named(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder()
    Image.new("RGB", (40, 40)).save(root / "val" / "cat" / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"val/cat/0.png: more than 1000 pixels, Pillow's limit"):
        load_data(root)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # more than twice: Pillow's other class
    with pytest.raises(DataError, match=r"val/cat/0.png: more than 500 pixels"):
        load_data(root)


def test_twenty_are_named_and_the_rest_counted(make_folder: MakeFolder) -> None:
    root = make_folder()
    for index in range(25):
        text(root / "train" / "cat" / f"bad{index:02}.png")
    text(root / "val" / "dog" / "bad.png")
    with pytest.raises(DataError, match=r"(?s)26 of 38 files .* and 6 more$") as caught:
        load_data(root)
    named = re.findall(r"cat/(bad\d\d).png: not an image", str(caught.value))
    assert named == [f"bad{index:02}" for index in range(20)]


def test_skipping_logs_a_line_for_each_and_the_count(
    make_folder: MakeFolder, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder()
    zero_bytes(root / "train" / "cat" / "a.png")
    text(root / "val" / "dog" / "b.png")
    with caplog.at_level(logging.WARNING, "visgraft.data"):
        load_data(root, on_bad_image="skip")
    assert [record.message for record in caplog.records] == [
        f"skipped {root}/train/cat/a.png: the file is empty",
        f"skipped {root}/val/dog/b.png: not an image of a known format",
        f"skipped 2 unreadable files in {root}",
    ]


def test_a_limit_is_filled_up_after_skipping(make_folder: MakeFolder) -> None:
    root = make_folder(count=6)
    first = load_data(root, train_limit=4).train.names
    zero_bytes(root / first[0])
    second = load_data(root, train_limit=4, on_bad_image="skip")
    (substitute,) = set(second.train.names) - set(first)
    zero_bytes(root / substitute)
    data = load_data(root, train_limit=4, on_bad_image="skip")
    assert data.skipped == (first[0], substitute)
    assert data.train.labels == [0, 0, 1, 1]
    assert set(first[1:]) < set(data.train.names)


def test_only_chosen_files_are_decoded(make_folder: MakeFolder) -> None:
    root = make_folder(count=6)
    chosen = load_data(root, train_limit=4, val_limit=4)
    spared = next(
        f"train/cat/{index}.png"
        for index in range(6)
        if f"train/cat/{index}.png" not in chosen.train.names
    )
    zero_bytes(root / spared)
    again = load_data(root, train_limit=4, val_limit=4)
    assert again.fingerprint == chosen.fingerprint


def test_a_class_without_readable_files(make_folder: MakeFolder) -> None:
    root = make_folder(count=1)
    zero_bytes(root / "train" / "cat" / "0.png")
    with pytest.raises(DataError, match="none of the training files of class 'cat' in"):
        load_data(root, on_bad_image="skip")


def test_validation_without_readable_files(make_folder: MakeFolder) -> None:
    root = make_folder(count=1)
    for name in ("cat", "dog"):
        zero_bytes(root / "val" / name / "0.png")
    with pytest.raises(DataError, match="none of the validation files in"):
        load_data(root, on_bad_image="skip")


def test_an_unknown_way_to_treat_bad_images(make_folder: MakeFolder) -> None:
    with pytest.raises(DataError, match="on_bad_image must be one of error, skip, got 'ignore'"):
        load_data(make_folder(), on_bad_image="ignore")  # pyright: ignore[reportArgumentType]


def test_a_file_without_permission(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder()
    path = root / "train" / "cat" / "0.png"

    def refuse(name: str, mode: str) -> object:
        if name == str(path):
            raise PermissionError(13, "Permission denied", name)
        return open(name, mode)

    with monkeypatch.context() as patched:
        patched.setattr(images, "open", refuse, raising=False)
        with pytest.raises(DataError, match=f"{path}: no permission to read it"):
            load_data(root)
    assert len(load_data(root).train) == 6


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_file_that_goes_bad_later_is_named(make_folder: MakeFolder, workers: int) -> None:
    root = make_folder()
    data = load_data(root)
    split = AugmentedSplit(data.train, build_transforms(data, training=False))
    (root / "train" / "cat" / "1.png").write_bytes(b"gone")
    with pytest.raises(DataError, match=rf"{root}/train/cat/1.png could be read when .* not an im"):
        list(DataLoader(split, batch_size=2, num_workers=workers))


class TestCache:
    """What was fine is not decoded again."""

    @pytest.fixture
    def probed(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Names of the files that are decoded."""
        names: list[str] = []
        probe = scan.probe_image

        def spy(path: str) -> tuple[int, int]:
            names.append(Path(path).name)
            return probe(path)

        monkeypatch.setattr(scan, "probe_image", spy)
        return names

    def test_only_changed_files_are_decoded_again(
        self, make_folder: MakeFolder, probed: list[str]
    ) -> None:
        root = make_folder()
        first = load_data(root)
        assert len(probed) == 12
        probed.clear()
        second = load_data(root)
        assert probed == []
        assert (second.image_size, second.fingerprint) == (first.image_size, first.fingerprint)
        os.utime(root / "val" / "dog" / "2.png", ns=(1, 1))
        load_data(root)
        assert probed == ["2.png"]

    def test_another_size_is_noticed_under_the_same_time(
        self, make_folder: MakeFolder, probed: list[str]
    ) -> None:
        root = make_folder()
        load_data(root)
        path = root / "val" / "dog" / "2.png"
        time = path.stat().st_mtime_ns
        path.write_bytes(path.read_bytes() + b"more")
        os.utime(path, ns=(time, time))
        probed.clear()
        load_data(root)
        assert probed == ["2.png"]

    def test_a_limit_does_not_forget_the_other_files(
        self, make_folder: MakeFolder, probed: list[str]
    ) -> None:
        root = make_folder()
        load_data(root)
        os.utime(root / "val" / "dog" / "2.png", ns=(1, 1))
        load_data(root, train_limit=2)
        probed.clear()
        load_data(root)
        assert probed == []

    def test_bad_files_are_not_remembered(self, make_folder: MakeFolder, probed: list[str]) -> None:
        root = make_folder()
        zero_bytes(root / "train" / "cat" / "bad.png")
        for _ in range(2):
            load_data(root, on_bad_image="skip")
        assert probed.count("bad.png") == 2
        assert len(probed) == 14

    def test_a_remembered_file_that_is_spoiled(self, make_folder: MakeFolder) -> None:
        root = make_folder()
        load_data(root)
        path = root / "train" / "cat" / "0.png"
        path.write_bytes(bytes(path.stat().st_size))
        with pytest.raises(DataError, match=r"0\.png: not an image"):
            load_data(root)

    @pytest.mark.parametrize(
        "content", ["", "[]", "{}", '{"header": 1}', "\udc00", '{"header": null, "names": [1]}']
    )
    def test_a_spoiled_cache_is_ignored(
        self, make_folder: MakeFolder, cache_home: Path, probed: list[str], content: str
    ) -> None:
        root = make_folder()
        load_data(root)
        (file,) = cache_home.rglob("*.json")
        file.write_bytes(content.encode("utf-8", "surrogatepass"))
        load_data(root)
        assert len(probed) == 24
        load_data(root)
        assert len(probed) == 24

    def test_another_pillow_decodes_again(
        self, make_folder: MakeFolder, cache_home: Path, probed: list[str]
    ) -> None:
        root = make_folder()
        load_data(root)
        (file,) = cache_home.rglob("*.json")
        content = json.loads(file.read_text())
        content["header"]["pillow"] = "0.1"
        file.write_text(json.dumps(content))
        load_data(root)
        assert len(probed) == 24

    def test_a_cache_that_cannot_be_written(
        self, make_folder: MakeFolder, cache_home: Path, probed: list[str]
    ) -> None:
        cache_home.write_text("a file where the folder should be")
        root = make_folder()
        assert len(load_data(root).train) == 6
        assert len(load_data(root).train) == 6
        assert len(probed) == 24

    def test_no_partial_file_stays(
        self, make_folder: MakeFolder, cache_home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(scan.os, "fsync", full)
        load_data(make_folder())
        assert [path for path in cache_home.rglob("*") if path.is_file()] == []

    def test_an_interrupted_scan_keeps_what_it_knows(
        self, make_folder: MakeFolder, probed: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(scan, "_CHUNK", 4)

        def interrupt(done: int, total: int) -> None:
            assert total == 12
            if done == 8:
                raise KeyboardInterrupt

        root = make_folder()
        with pytest.raises(KeyboardInterrupt):
            load_data(root, progress=interrupt)
        probed.clear()
        load_data(root)
        assert len(probed) <= 4


def test_progress_counts_up_to_all(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "_CHUNK", 5)
    calls: list[tuple[int, int]] = []
    load_data(make_folder(), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(5, 12), (10, 12), (12, 12)]


def test_what_ultralytics_does_to_pillow_changes_nothing(tmp_path, monkeypatch):
    """Its ``Image.open`` would install a package to look at a file that is no image."""
    path = tmp_path / "no_image.png"
    path.write_bytes(b"text")

    def installs(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'pi_heif'")

    known = sys.modules.get("ultralytics.utils.patches")  # where another test imported it
    patches = types.SimpleNamespace(_image_open=getattr(known, "_image_open", Image.open))
    monkeypatch.setitem(sys.modules, "ultralytics.utils.patches", patches)
    monkeypatch.setattr(Image, "open", installs)
    with pytest.raises(UnidentifiedImageError):
        images.read_image(path)
    with pytest.raises(UnidentifiedImageError):
        images.probe_image(path)
