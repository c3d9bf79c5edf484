import os
import pickle
import zipfile

import pytest
import torch

from visgraft.tasks import checkpoint as module
from visgraft.tasks.checkpoint import (
    InputSpec,
    RunRecord,
    read_checkpoint,
    read_record,
    read_weights,
    write_checkpoint,
)
from visgraft.tasks.errors import CheckpointError

RECORD = RunRecord(
    recipe={"lr": 0.1},
    classes=("a", "b"),
    in_chans=1,
    input=InputSpec((28, 20), (0.5,), (0.2,)),
    plans=({"block": "cot", "options": {}},),
    fingerprint="f",
    initial_weights="w",
    data_order="o",
)


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_record_survives(tmp_path):
    path = tmp_path / "a.ckpt"
    record = RECORD.with_history([{"epoch": 1, "top1": 50.0}])
    write_checkpoint({"state_dict": {"model.w": torch.ones(2)}}, record, path)
    content = read_checkpoint(path)
    assert read_record(content, path) == record
    assert torch.equal(read_weights(content, path)["w"], torch.ones(2))
    assert os.listdir(tmp_path) == ["a.ckpt"]


def test_average_is_what_a_checkpoint_delivers():
    state = {"model.w": torch.zeros(1), "ema.module.w": torch.ones(1)}
    weights = read_weights({"visgraft": {}, "state_dict": state}, "x")
    assert weights == {"w": torch.ones(1)}


def test_code_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"evil\.ckpt: refused, it would execute code .*syst"):
        read_checkpoint("evil.ckpt")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(CheckpointError, match=r"refused|damaged"):
        read_checkpoint("old.pth")
    assert not (tmp_path / "executed").exists()


def test_damaged_files_are_named(tmp_path):
    whole = tmp_path / "whole.ckpt"
    write_checkpoint({"state_dict": {"model.w": torch.ones(1000)}}, RECORD, whole)
    for name, content in [
        ("half.ckpt", whole.read_bytes()[:2000]),
        ("empty.ckpt", b""),
        ("text.ckpt", b"hello"),
        ("half.safetensors", b"\x10\0\0\0\0\0\0\0{}"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name}: is damaged, or is no checkpoint"):
            read_checkpoint(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(tmp_path / "other.zip")
    with pytest.raises(CheckpointError, match=r"no\.ckpt: cannot be read \(No such file"):
        read_checkpoint(tmp_path / "no.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="must hold tensors by name, got list"):
        read_checkpoint(tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_weights({"epoch": 1}, "x")


def test_a_later_format_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", 7)
    write_checkpoint({}, RECORD, tmp_path / "a.ckpt")
    monkeypatch.undo()
    with pytest.raises(
        CheckpointError, match=r"in format 7; this is .*, which reads formats 1 and 2"
    ):
        read_record(read_checkpoint(tmp_path / "a.ckpt"), "a.ckpt")


def test_format_1_is_read(tmp_path):
    write_checkpoint({}, RECORD, tmp_path / "a.ckpt")
    content = read_checkpoint(tmp_path / "a.ckpt")
    about = content["visgraft"]
    del about["category_ids"]
    about["format"] = 1
    assert read_record(content, "a.ckpt") == RECORD


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.ckpt"
    write_checkpoint({"x": 1}, RECORD, path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(OSError, match="No space"):
        write_checkpoint({"x": 2}, RECORD, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.ckpt"]
