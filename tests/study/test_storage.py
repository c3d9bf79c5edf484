import json
from pathlib import Path

import pytest

from visgraft.study.cluster.storage import Storage
from visgraft.study.errors import StudyError


@pytest.fixture
def trial(tmp_path):
    return Storage((tmp_path / "store").as_uri()).trial("ca-seed0")


@pytest.fixture
def folder(tmp_path):
    """A trial's folder as training leaves it."""
    folder = tmp_path / "work"
    (folder / "events").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("epochs: 3\n")
    (folder / "last.ckpt").write_bytes(b"one")
    (folder / "events" / "e").write_bytes(b"\0")
    (folder / ".lock").touch()
    return folder


def files(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def saved(tmp_path):
    return sorted(
        f"{p.parts[-3]} {p.parts[-2]}" for p in (tmp_path / "store").rglob("manifest.json")
    )


def test_what_was_saved_comes_back_without_hidden_files(trial, folder, tmp_path):
    assert trial.is_empty()
    assert trial.restore(tmp_path / "new") is None
    assert not (tmp_path / "new").exists()
    trial.save(folder, "000001-a", 2)
    assert not trial.is_empty()
    assert trial.restore(tmp_path / "new") == 2
    wanted = {"recipe.yaml": b"epochs: 3\n", "last.ckpt": b"one", "events/e": b"\0"}
    assert files(tmp_path / "new") == wanted


def test_most_advanced_attempt_wins_and_none_touches_anothers(trial, folder, tmp_path):
    trial.save(folder, "000001-a", 1)
    (folder / "last.ckpt").write_bytes(b"two")
    trial.save(folder, "000001-a", 2)
    (folder / "last.ckpt").write_bytes(b"late")
    trial.save(folder, "000002-b", 1)
    assert saved(tmp_path) == ["000001-a 000002", "000002-b 000001"]
    assert trial.restore(tmp_path / "new") == 2
    assert (tmp_path / "new" / "last.ckpt").read_bytes() == b"two"
    trial.keep_newest()
    assert saved(tmp_path) == ["000001-a 000002"]


def test_finished_counts_more_than_epochs(trial, folder, tmp_path):
    trial.save(folder, "000001-a", 3)
    (folder / "last.ckpt").write_bytes(b"small")
    trial.save(folder, "000001-a", 3, finished=True)
    trial.save(folder, "000002-b", 3)
    trial.keep_newest()
    assert saved(tmp_path) == ["000001-a 000003-finished"]


@pytest.mark.parametrize("harm", ["no manifest", "half a manifest", "cut short", "missing"])
def test_epoch_that_is_not_complete_is_not_there(trial, folder, tmp_path, harm):
    trial.save(folder, "000001-a", 1)
    (folder / "last.ckpt").write_bytes(b"two")
    trial.save(folder, "000002-b", 2)
    place = tmp_path / "store" / "ca-seed0" / "000002-b" / "000002"
    if harm == "no manifest":
        (place / "manifest.json").unlink()
    elif harm == "half a manifest":
        text = (place / "manifest.json").read_text()
        (place / "manifest.json").write_text(text[: len(text) // 2])
    elif harm == "cut short":
        (place / "last.ckpt").write_bytes(b"tw")
    else:
        (place / "last.ckpt").unlink()
    assert trial.restore(tmp_path / "new") == 1
    assert (tmp_path / "new" / "last.ckpt").read_bytes() == b"one"


def test_manifest_is_written_after_the_files(trial, folder, monkeypatch):
    order = []
    monkeypatch.setattr(
        type(trial), "_put", lambda self, path, content: order.append(Path(path).name)
    )
    trial.save(folder, "000001-a", 1)
    assert order[-1] == "manifest.json"
    assert sorted(order) == ["e", "last.ckpt", "manifest.json", "recipe.yaml"]


def test_writing_is_tried_three_times(trial, folder, tmp_path, monkeypatch):
    failures = 2

    def write(path, content):
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise OSError("no route to host")
        return truly_write(path, content)

    truly_write = trial._files.pipe_file
    monkeypatch.setattr(trial._files, "pipe_file", write)
    trial.save(folder, "000001-a", 1)
    assert saved(tmp_path) == ["000001-a 000001"]
    failures = 3
    with pytest.raises(OSError, match="no route"):
        trial.save(folder, "000001-a", 2)
    assert trial.restore(tmp_path / "new") == 1


def test_marks(tmp_path):
    here, there = Storage(str(tmp_path / "a")), Storage(str(tmp_path / "b"))
    mark = here.leave_mark()
    assert here.sees(mark)
    assert not there.sees(mark)
    here.wipe_mark(mark)
    assert not here.sees(mark)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("nosuch://x", "nosuch://x cannot be used: Protocol not known: nosuch; give a path or a"),
        ("memory://x", "memory://x lives in one process; give one that all machines see"),
    ],
)
def test_useless_storage(url, text):
    with pytest.raises(StudyError, match=text):
        Storage(url)


def test_storage_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="cannot be written"):
        Storage(str(tmp_path / "file" / "below")).leave_mark()


def test_manifest_names_sizes_and_digests(trial, folder, tmp_path):
    trial.save(folder, "000001-a", 1)
    path = tmp_path / "store" / "ca-seed0" / "000001-a" / "000001" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["files"]["last.ckpt"] == [
        3,
        "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
    ]
