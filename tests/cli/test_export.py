"""`visgraft export`."""

import json
from pathlib import Path

import pytest
import torch

from tests.tasks.conftest import TINY
from visgraft.cli.main import main
from visgraft.tasks.evaluation import load_trained
from visgraft.tasks.images import load_images
from visgraft.tasks.recipe import Recipe
from visgraft.tasks.training import train


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    graft = {"block": "coord_attention", "at": "layer4.*.conv2"}
    recipe = Recipe(**TINY | {"epochs": 1, "grafts": [graft]})
    data = load_images(recipe, progress=False)
    return train(recipe, tmp_path / "run", data=data, progress=False).checkpoint


def test_trained_classifier_with_a_graft_is_exported(checkpoint, tmp_path, capsys):
    out = tmp_path / "garments.pt2"
    assert main(["export", str(checkpoint), str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"{out}: " in printed
    assert "free: batch, height and width" in printed
    assert printed.count("differs by") == 3
    files = {"visgraft.json": ""}
    program = torch.export.load(out, extra_files=files).module()
    trained, about = load_trained(checkpoint), json.loads(files["visgraft.json"])
    x = torch.randn(7, 1, 30, 44)
    torch.testing.assert_close(program(x), trained.model(x).detach(), rtol=1e-4, atol=1e-5)
    assert about["classes"] == list(trained.record.classes)
    assert about["input"]["size"] == list(trained.record.input.size)
    assert about["input"]["mean"] == list(trained.record.input.mean)

    fixed = tmp_path / "fixed.pt2"
    words = ["--image-size", "32", "40", "--free", "none", "--no-fuse", "--half"]
    assert main(["export", str(checkpoint), str(fixed), *words]) == 0
    printed = capsys.readouterr().out
    assert "free: nothing, 0 normalisations folded" in printed
    assert "1 x 1 x 32 x 40: differs" in printed


def test_bad_requests_are_one_sentence(checkpoint, tmp_path, capsys):
    assert main(["export", str(checkpoint), str(tmp_path / "x.h5")]) == 2
    assert "export: the file must end in .onnx or .pt2" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none.ckpt"), str(tmp_path / "x.pt2")]) == 2
    assert "none.ckpt" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.pt2"))
