"""`visgraft explain`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tasks.conftest import TINY
from visgraft.cli.main import main
from visgraft.inspect.attention import attention_places
from visgraft.inspect.class_activation import class_activation
from visgraft.tasks.checkpoint import read_checkpoint
from visgraft.tasks.errors import CheckpointError
from visgraft.tasks.evaluation import load_trained
from visgraft.tasks.explaining import _rows_of_blocks, explain
from visgraft.tasks.images import load_images
from visgraft.tasks.picture_inputs import PictureInputs
from visgraft.tasks.recipe import Recipe
from visgraft.tasks.training import train

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    grafts = ([], [{"block": "coord_attention", "at": "layer4.*.conv2"}])
    found = []
    for name, graft in zip(("plain", "gated"), grafts, strict=True):
        recipe = Recipe(**TINY | {"epochs": 1, "grafts": graft})
        data = load_images(recipe, progress=False)
        found.append(train(recipe, folder / name, data=data, **QUIET).checkpoint)
    return found


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(2):
        pixels = random.integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_networks_stand_side_by_side(checkpoints, pictures, tmp_path, capsys):
    first, second = map(str, checkpoints)
    looks = tmp_path / "looks"
    argv = ["explain", first, str(pictures), "--against", second, "--pictures", str(looks)]
    assert main([*argv, "--side", "56"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["image", "asked", "for"]
    assert lines[-1] == f"written: {looks}"
    assert sorted(p.name for p in looks.iterdir()) == ["0.jpg", "1.jpg"]
    with Image.open(looks / "0.jpg") as sheet:
        assert sheet.size == (3 * 56 + 4 * 8, 56 + 2 * 8 + 2 * 18)


def test_result_says_what_the_networks_say(checkpoints, pictures, tmp_path):
    found = explain(checkpoints, pictures, tmp_path / "looks", **QUIET)
    assert [one.path.name for one in found] == ["0.png", "1.png"]
    for number, checkpoint in enumerate(checkpoints):
        trained = load_trained(checkpoint)
        classes = trained.record.classes
        for one, picture in zip(found, sorted(pictures.iterdir()), strict=True):
            values = np.array(Image.open(picture), np.float32)[None, None] / 255
            mean, std = trained.record.input.mean[0], trained.record.input.std[0]
            chances = trained.model((torch.from_numpy(values) - mean) / std).softmax(-1)[0].detach()
            best = classes[int(chances.argmax())]
            assert one.says[number][0] == best
            assert one.says[number][1] == pytest.approx(float(chances.max()), abs=1e-5)
            asked = float(chances[classes.index(one.asked)])
            assert one.probabilities[number] == pytest.approx(asked, abs=1e-5)
            assert one.grids[number] == (4, 4)
    assert [one.asked for one in found] == [one.says[0][0] for one in found]


def test_panels_glow_where_the_map_of_the_label_is_large(checkpoints, pictures, tmp_path):
    trained = load_trained(checkpoints[0])
    label = trained.record.classes[3]
    (one,) = explain(checkpoints[0], pictures / "0.png", tmp_path, label=label, **QUIET)
    assert one.asked == label
    files = [type("File", (), {"read": lambda _: Image.open(pictures / "0.png")})()]
    x = PictureInputs(trained.record, files)[0][None]
    values = class_activation(trained.model, x, [3]).maps[0]
    with Image.open(one.drawn) as sheet:
        panel = np.asarray(sheet.crop((2 * 8 + 224, 8, 2 * 8 + 2 * 224, 8 + 224)), float)
    orange = panel[..., 0] - panel[..., 2]
    centres = orange[28::56, 28::56].flatten()  # of the 4 x 4 places
    assert np.corrcoef(centres, values.flatten())[0, 1] > 0.99
    assert orange.max() == pytest.approx(0.8 * 255, abs=12)


def test_attention_of_the_blocks_follows(checkpoints, pictures, tmp_path, capsys):
    options = {"attention": True, "side": 56, "progress": False}
    (one,) = explain(checkpoints, pictures / "0.png", tmp_path / "looks", **options)
    assert one.blocks == ((), ("layer4.0.conv2.graft.block",))
    row = 56 + 2 * 8 + 2 * 18
    trained = load_trained(checkpoints[1])
    files = [type("File", (), {"read": lambda _: Image.open(pictures / "0.png")})()]
    x = PictureInputs(trained.record, files)[0][None]
    (values, *_) = attention_places(trained.model, x).values()
    with Image.open(one.drawn) as sheet:
        assert sheet.size == (3 * 56 + 4 * 8, 2 * row)
        panel = np.asarray(sheet.crop((8, row + 8, 8 + 56, row + 8 + 56)), float)
    orange = panel[..., 0] - panel[..., 2]
    centres = orange[7::14, 7::14].flatten()  # of the 4 x 4 places
    assert np.corrcoef(centres, values[0].flatten())[0, 1] > 0.9
    assert centres.max() > 100
    assert centres.min() < 40  # the smallest weight does not glow
    first, second = map(str, checkpoints)
    argv = ["explain", first, str(pictures / "0.png"), "--against", second, "--attention"]
    assert main([*argv, "--pictures", str(tmp_path / "both")]) == 0
    told = capsys.readouterr().out
    assert f"{first} has no block that weighs places: no attention is drawn" in told
    assert f"{second} has no block" not in told


def test_blocks_stand_in_rows_of_eight():
    places = {f"layer{i}.bn2.graft.block": torch.rand(1, 2, 3) for i in range(9)}
    rows = _rows_of_blocks(Image.new("RGB", (24, 16)), "net", places)
    assert [len(row) for row in rows] == [8, 1]
    assert [words for _, _, words in rows[1]] == ["layer8.bn2, 2 x 3"]
    assert _rows_of_blocks(Image.new("RGB", (24, 16)), "net", {}) == []


def test_bad_requests_are_one_sentence(checkpoints, pictures, tmp_path, capsys, monkeypatch):
    argv = ["explain", str(checkpoints[0]), str(pictures), "--pictures"]
    assert main([*argv, str(tmp_path / "x"), "--label", "Cat"]) == 2
    assert "explain: there is no class 'Cat'; there are T-shirt" in capsys.readouterr().err
    assert main([*argv, str(tmp_path / "x"), "--side", "3"]) == 2
    assert "explain: side must be at least 16 pixels, got 3" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([*argv, str(tmp_path / "file")]) == 2
    assert "file is a file; pictures go into a folder" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    with pytest.raises(CheckpointError, match="there must be at least one checkpoint"):
        explain([], pictures, tmp_path / "x", **QUIET)

    content = torch.load(checkpoints[1], weights_only=True)
    (key,) = [k for k in read_checkpoint(checkpoints[1]) if "visgraft" in k]
    content[key]["classes"] = [*content[key]["classes"]][::-1]
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"other\.ckpt has other classes than .*last\.ckpt"):
        explain([checkpoints[0], tmp_path / "other.ckpt"], pictures, tmp_path / "x", **QUIET)
