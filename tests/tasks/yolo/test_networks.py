"""The ready networks: names, files, sizes, rows, refusals."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from tests.offline_ultralytics import ultralytics
from visgraft import blocks
from visgraft.tasks import yolo
from visgraft.tasks.yolo import networks

tasks = pytest.importorskip("ultralytics.nn.tasks")
FOLDER = Path(networks.__file__).parent / "networks"
FILES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
NAMES = yolo.list_networks()
# What a network has in place of a row of ultralytics' own, or between two of them
REPLACED = {
    "yolov5_bot": {8: "BottleneckAttention"},
    "yolov5_cot": {8: "CoT"},
    "yolov5_dcn": dict.fromkeys((4, 6, 8), "DeformConv"),
    "yolov8_bot": {8: "BottleneckAttention"},
    "yolov8_cot": {8: "CoT"},
    "yolov8_dcn": dict.fromkeys((4, 6, 8), "DeformConv"),
    "yolov8_spd": dict.fromkeys((1, 3, 5, 7, 16, 19), "SPDConv"),
}
INSERTED = {
    "yolov5_acmix": (9, "ACmix"),
    "yolov5_ca": (24, "CoordAttention"),
    "yolov5_gc": (24, "GlobalContext"),
    "yolov5_sk": (24, "SelectiveKernel"),
    "yolov8_acmix": (9, "ACmix"),
    "yolov8_ca": (22, "CoordAttention"),
    "yolov8_gc": (22, "GlobalContext"),
    "yolov8_sk": (22, "SelectiveKernel"),
}


@pytest.fixture(autouse=True)
def _unregistered():
    yield
    yolo.unregister()


def rows(config):
    return [list(row) for row in config["backbone"] + config["head"]]


def stored(stem):
    return yaml.safe_load((FOLDER / f"{stem}.yaml").read_text())


def plain(stem):
    return tasks.yaml_model_load(f"{stem.partition('_')[0]}.yaml")


def sources(row):
    return row[0] if isinstance(row[0], list) else [row[0]]


def test_names():
    assert len(NAMES) == 15 * 5 + 4
    assert {re.sub(r"(\d)[nslmx]", r"\1", name) for name in NAMES} == set(FILES)
    assert {name[6] for name in NAMES if name.endswith("_bot")} == set("nslmx")
    assert {name[6] for name in NAMES if name == f"yolov5{name[6]}_spd"} == set("nslm")
    assert set(FILES) == {*REPLACED, *INSERTED, "yolov5_spd"}


@pytest.mark.parametrize("stem", REPLACED)
def test_all_other_rows_are_those_of_ultralytics(stem):
    mine, theirs = rows(stored(stem)), rows(plain(stem))
    assert len(mine) == len(theirs)
    different = {i: row for i, row in enumerate(mine) if repr(row) != repr(theirs[i])}
    assert different.keys() == REPLACED[stem].keys()
    for index, row in different.items():
        layer, before = REPLACED[stem][index], theirs[index]
        if layer == "SPDConv":
            assert row == [-1, 1, "SPDConv", [before[3][0]]]
            assert before == [-1, 1, "Conv", [before[3][0], 3, 2]]
        else:
            assert row[:3] == [*before[:2], f"{before[2]}With"]
            assert row[3][:2] == [before[3][0], layer]


@pytest.mark.parametrize("stem", INSERTED)
def test_a_row_was_inserted(stem):
    place, layer = INSERTED[stem]
    mine, theirs = rows(stored(stem)), rows(plain(stem))
    assert mine.pop(place) == [-1, 1, layer, []]
    assert len(mine) == len(theirs)
    for row, before in zip(mine, theirs, strict=True):
        assert repr(row[1:]) == repr(before[1:])
        moved = [s + 1 if s >= place else s for s in sources(before)]
        if stem.endswith("acmix") or row[2] != "Detect":
            assert sources(row) == moved
        else:  # the head reads what the layer gives
            assert sources(row) == [*moved[:-1], place]


@pytest.mark.parametrize("stem", FILES)
def test_scales_are_those_of_ultralytics(stem):
    theirs = plain(stem)["scales"]
    if stem == "yolov5_spd":  # the authors have no x
        theirs.pop("x")
    assert stored(stem)["scales"] == theirs
    assert stored(stem)["nc"] == 80


@pytest.mark.parametrize("name", [n for n in NAMES if n[6] in "nl"])
def test_the_letter_scales_the_network(name):
    config = tasks.yaml_model_load(yolo.network_file(name))
    assert config["scale"] == name[6]
    with torch.device("meta"):
        layers, _ = tasks.parse_model(config, 3, verbose=False)
    _, width, limit = config["scales"][name[6]]
    assert layers[-1].cv2[2][0].conv.in_channels == min(1024, limit) * width
    kinds = {type(m).__name__ for m in layers.modules()}
    base, _, variant = name.partition("_")
    assert ("SPDConv" if (base[5], variant) == ("8", "spd") else BLOCKS[variant]) in kinds


BLOCKS = {
    "acmix": "ACmix",
    "bot": "BottleneckAttention",
    "ca": "CoordAttention",
    "cot": "ContextualTransformer",
    "dcn": "DeformConv",
    "gc": "GlobalContext",
    "sk": "SelectiveKernel",
    "spd": "SpaceToDepth",
}


def test_yolo_builds_from_the_name():
    model = ultralytics.YOLO(yolo.network_file("yolov5n_bot"))
    assert model.task == "detect"
    inside = model.model.model[8].m[0]
    attention = inside.cv2.conv
    assert type(attention) is blocks.BottleneckAttention
    assert attention.qkv.in_channels == 128
    assert attention.offset_rows.shape == (39, 32)
    assert inside.add
    assert list(model.model.stride) == [8, 16, 32]


def test_weights_of_the_plain_network_fit():
    """A row in place of another leaves the names of all the rest."""
    plain_tensors = tasks.DetectionModel("yolov5n.yaml", verbose=False).state_dict()
    model = tasks.DetectionModel(yolo.network_file("yolov5n_bot"), verbose=False)
    kept = tasks.intersect_dicts(plain_tensors, model.state_dict())
    lost = plain_tensors.keys() - kept.keys()
    assert lost == {"model.8.m.0.cv2.conv.weight"}


def test_unknown_names():
    with pytest.raises(ValueError, match=r"^network_file: there is no network 'yolov5_spd',.*near"):
        yolo.network_file("yolov5_spd")
    with pytest.raises(ValueError, match=r"^write_network: there is no network 'yolov5x_spd'"):
        yolo.write_network("yolov5x_spd", ".")
    assert not hasattr(tasks.parse_model, "visgraft_original")


def test_a_folder_that_ultralytics_misreads(tmp_path, monkeypatch):
    """ultralytics looks for the letter in the whole path, where there is no file of the name."""
    folder = tmp_path / "torch2x" / "networks"
    folder.mkdir(parents=True)
    (folder / "yolov5_ca.yaml").write_bytes((FOLDER / "yolov5_ca.yaml").read_bytes())
    with pytest.raises(FileNotFoundError):
        tasks.yaml_model_load(folder / "yolov5s_ca.yaml")
    monkeypatch.setattr(networks, "files", lambda _: folder.parent)
    config = tasks.yaml_model_load(yolo.network_file("yolov5s_ca"))
    assert (config["scale"], rows(config)) == ("s", rows(stored("yolov5_ca")))
    assert [path.name for path in folder.iterdir()] == ["yolov5_ca.yaml"]


def test_write_network(tmp_path):
    file = yolo.write_network("yolov8n_cot", tmp_path)
    assert file == tmp_path / "yolov8n_cot.yaml"
    assert file.read_bytes() == (FOLDER / "yolov8_cot.yaml").read_bytes()
    file.write_text("mine")
    with pytest.raises(FileExistsError, match=r"^write_network: .*8n_cot.yaml is there already"):
        yolo.write_network("yolov8n_cot", tmp_path)
    assert file.read_text() == "mine"
    with pytest.raises(ValueError, match=r"^write_network: there is no folder .*none"):
        yolo.write_network("yolov8n_cot", tmp_path / "none")
