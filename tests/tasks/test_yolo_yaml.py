"""Blocks named in ultralytics' YAML: channels, widths, refusals, training, saving, export."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.offline_ultralytics import ENVIRONMENT, ultralytics
from tests.surgery.models import alive
from tests.tasks.yolo_data import QUICK, TRAIN, quiet_export, write_boxes
from visgraft import blocks
from visgraft.tasks import yolo
from visgraft.tasks.yolo import layers, registration

tasks = pytest.importorskip("ultralytics.nn.tasks")
YOLO = ultralytics.YOLO
HEAD = [[[-3, -2, -1], 1, "Detect", ["nc"]]]
SCALES = {"n": [0.33, 0.25, 1024], "s": [0.33, 0.5, 512]}


@pytest.fixture(autouse=True)
def _registered():
    yolo.register()
    yield
    yolo.unregister()


def network(*rows, scale="n", nc=3):
    """A network with the rows in its backbone, and a head on three maps."""
    backbone = [
        [-1, 1, "Conv", [64, 3, 4]],
        *(list(row) for row in rows),
        [-1, 1, "Conv", [256, 3, 2]],
        [-1, 1, "Conv", [256, 3, 2]],
        [-1, 1, "Conv", [256, 3, 2]],
    ]
    parts = {"backbone": backbone, "head": copy.deepcopy(HEAD)}
    return tasks.DetectionModel(
        {"nc": nc, "scales": SCALES, "scale": scale, **parts}, verbose=False
    )


def outputs(model, x):
    with torch.no_grad():
        return model.eval()(x)[0]


@pytest.mark.parametrize(
    ("row", "kind", "channels"),
    [
        ([-1, 1, "CoordAttention", []], blocks.CoordAttention, 16),
        ([-1, 1, "CoordAttention", [64, {"reduction": 2}]], blocks.CoordAttention, 16),
        ([-1, 1, "GlobalContext", [{"reduction": 4}]], blocks.GlobalContext, 16),
        ([-1, 1, "CoT", []], blocks.ContextualTransformer, 16),
        ([-1, 1, "CoTAttention", []], blocks.CoTAttention, 16),
        ([-1, 1, "SKAttention", []], blocks.SKAttention, 16),
        ([-1, 1, "SelectiveKernel", [128, {"groups": 4}]], blocks.SelectiveKernel, 32),
        ([-1, 1, "ACmix", []], blocks.ACmix, 16),
        ([-1, 1, "ACmix", [128, 3, 2]], blocks.ACmix, 32),
        (
            [-1, 1, "BottleneckAttention", [{"feature_size": [5, 5]}]],
            blocks.BottleneckAttention,
            16,
        ),
        ([-1, 1, "DeformConv", [128, 3, 2]], blocks.DeformConv, 32),
        ([-1, 1, "SPDConv", [128]], blocks.SPDConv, 32),
        ([-1, 1, "SpaceToDepth", []], blocks.SpaceToDepth, 64),
    ],
)
def test_rows(row, kind, channels):
    model = network(row)
    layer = model.model[1]
    block = layer.conv if isinstance(layer, layers.NormalisedBlock) else layer
    assert type(block) is kind
    assert model.model[2].conv.in_channels == channels
    assert (layer.i, layer.f) == (1, -1)
    assert layer.np == sum(p.numel() for p in layer.parameters())
    assert layer.type.endswith(f"yolo.layers.{row[2]}")
    x = torch.rand(1, 16, 12, 10)
    assert layer.eval()(x).shape[1] == channels


@pytest.mark.parametrize(("scale", "channels"), [("n", 512 * 0.25), ("s", 512 * 0.5)])
def test_widths_are_scaled_and_limited(scale, channels):
    model = network([-1, 1, "SPDConv", [1024, 3, 2]], scale=scale)
    expected = 1024 * 0.25 if scale == "n" else channels
    assert model.model[1].conv.conv.out_channels == expected


def test_options_reach_the_block():
    model = network([-1, 1, "DeformConv", [64, 5, 1, {"offset_groups": 2, "modulated": False}]])
    block = model.model[1].conv
    assert (block.geometry.kernel_size, block.modulated) == ((5, 5), False)
    assert block.offset.out_channels == 2 * 2 * 25
    plain = network([-1, 1, "DeformConv", [64, {"norm": False}]])
    assert type(plain.model[1]) is blocks.DeformConv


def test_a_row_computes_what_the_block_does():
    model = alive(network([-1, 1, "CoT", []], [-1, 1, "SPDConv", [128]]))
    cot, down = model.model[1:3]
    alone = blocks.create_block("cot", 16).eval()
    alone.load_state_dict(cot.state_dict())
    for module in alone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3  # as ultralytics sets it everywhere
    x = torch.randn(2, 16, 9, 12)
    kept = x.clone()
    assert torch.equal(cot(x), alone(x))
    assert torch.equal(x, kept)
    y = down.bn(down.conv(x))
    torch.testing.assert_close(down(x), y * y.sigmoid())


def test_the_activation_of_the_network_is_used():
    config = network([-1, 1, "SPDConv", [128]]).yaml
    config = {**config, "activation": "torch.nn.ReLU()"}
    model = tasks.DetectionModel(config, verbose=False)
    assert type(model.model[1].act) is nn.ReLU


def test_rows_are_repeated():
    model = network([-1, 6, "CoordAttention", []])
    assert isinstance(model.model[1], nn.Sequential)
    assert len(model.model[1]) == 2


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            [-1, 1, "CoordAttention", [128]],
            r"layer 1 \(CoordAttention\): keeps the 16 channels .*got 128",
        ),
        ([[-1, 0], 1, "CoT", []], r"layer 1 \(CoT\): reads one layer, got from \[-1, 0\]"),
        (
            [-1, 6, "SPDConv", [64]],
            r"layer 1 \(SPDConv\): changes the map, so it cannot be repeated 2",
        ),
        (
            [-1, 1, "SPDConv", [64, 3, 2, 1]],
            r"takes \[out_channels, kernel_size, scale\] and a mapp",
        ),
        ([-1, 1, "CoT", [{"heads": 3}]], r"layer 1 \(CoT\): cot has no option 'heads'"),
        ([-1, 1, "SelectiveKernel", []], r"layer 1 \(SelectiveKernel\): .*groups"),
        ([-1, 1, "ACmix", [0]], r"layer 1 \(ACmix\): output channels must be a positive integer"),
        ([-1, 1, "SpaceToDepth", [2, 2]], r"layer 1 \(SpaceToDepth\): takes \[scale\], got 2"),
    ],
)
def test_refused_rows(row, sentence):
    with pytest.raises(ValueError, match=sentence):
        network(row)


def test_register_is_idempotent_and_can_be_undone():
    extended = tasks.parse_model
    yolo.register()
    assert tasks.parse_model is extended
    assert set(yolo.layer_names()) <= set(vars(tasks))
    yolo.unregister()
    assert tasks.parse_model is not extended
    assert ultralytics.nn.parse_model is tasks.parse_model
    assert not set(yolo.layer_names()) & set(vars(tasks))
    with pytest.raises(KeyError, match="CoordAttention"):
        network([-1, 1, "CoordAttention", []])
    yolo.unregister()


def test_models_of_ultralytics_are_built_as_before():
    built = {}
    for step in ("extended", "original"):
        torch.manual_seed(0)
        built[step] = tasks.DetectionModel("yolo11n.yaml", verbose=False)
        yolo.unregister()
    mine, theirs = (m.state_dict() for m in built.values())
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert built["extended"].save == built["original"].save


def test_loading_a_saved_network_makes_the_names_legal(tmp_path):
    """ultralytics' trainer builds the network of a file anew, from the YAML inside."""
    model = network([-1, 6, "CoordAttention", []], [-1, 1, "SPDConv", [128]])
    torch.save(model, tmp_path / "model.pt")
    copies = copy.deepcopy(model)
    yolo.unregister()
    copy.deepcopy(copies)
    with pytest.raises(KeyError, match="CoordAttention"):
        tasks.DetectionModel(copies.yaml, verbose=False)
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    fresh = tasks.DetectionModel(loaded.yaml, verbose=False)
    fresh.load(loaded)
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(outputs(fresh, x), outputs(model, x))


@pytest.mark.parametrize("row", [["CoT", []], ["SpaceToDepth", []], ["C2fWith", [128, "CoT"]]])
def test_every_kind_of_layer_makes_the_names_legal(row, tmp_path):
    torch.save(network([-1, 1, *row]).model[1], tmp_path / "layer.pt")
    yolo.unregister()
    torch.load(tmp_path / "layer.pt", weights_only=False)
    assert set(yolo.layer_names()) <= set(vars(tasks))


def test_a_name_that_is_taken_is_refused(monkeypatch):
    yolo.unregister()
    monkeypatch.setitem(vars(tasks), "CoT", nn.Identity)
    before = dict(vars(tasks))
    with pytest.raises(RuntimeError, match="register: ultralytics has layers of the names CoT alr"):
        yolo.register()
    assert vars(tasks) == before


def parse_model(d, ch, verbose=True):
    return d, ch, verbose


def test_another_parse_model_is_refused(monkeypatch):
    yolo.unregister()
    monkeypatch.setattr(tasks, "parse_model", parse_model)
    with pytest.raises(RuntimeError, match=r"parse_model of the installed .* \(0 places to extend"):
        yolo.register()
    assert tasks.parse_model is parse_model
    assert "CoT" not in vars(tasks)


def test_the_installed_version_is_as_expected():
    """The contract with ultralytics: one place to extend, and the variables that are read there."""
    original = getattr(tasks.parse_model, registration.ORIGINAL)
    assert original.__module__ == "ultralytics.nn.tasks"
    assert tasks.parse_model.__code__.co_filename == original.__code__.co_filename
    assert tasks.parse_model.__code__.co_firstlineno == original.__code__.co_firstlineno
    assert set(layers.LAYERS) == set(yolo.layer_names())


def inserted(name, after, layer):
    """Returns the config of a network with a row put in after another, and its indices mended."""
    config = tasks.yaml_model_load(f"{name}.yaml")
    place = len(config["backbone"])
    rows = config["backbone"] + config["head"]

    def mended(source):
        return source + 1 if source > after else source

    for row in rows:
        row[0] = [mended(s) for s in row[0]] if isinstance(row[0], list) else mended(row[0])
    rows.insert(after + 1, [-1, 1, layer, []])
    config["backbone"], config["head"] = rows[: place + 1], rows[place + 1 :]
    return config


TRANSFERRED = {  # tensors of the network, and how many of them fit after an insertion
    "yolov8n": (355, {2: 42, 4: 84, 6: 126, 8: 150, 9: 162}),
    "yolov5n": (427, {2: 49, 4: 97, 6: 157, 8: 186, 9: 198}),
}


@pytest.mark.parametrize("name", TRANSFERRED)
def test_an_inserted_row_loses_the_weights_behind_it(name):
    """What a graft does not do: `docs/yolo.md` shows these numbers."""
    tensors, transferred = TRANSFERRED[name]
    plain = tasks.DetectionModel(f"{name}.yaml", verbose=False).state_dict()
    assert len(plain) == tensors
    found = {}
    for after in transferred:
        model = tasks.DetectionModel(inserted(name, after, "CoordAttention"), verbose=False)
        found[after] = len(tasks.intersect_dicts(plain, model.state_dict()))
    assert found == transferred


MIXED = """
nc: 2
scales: {n: [0.33, 0.25, 1024]}
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, SPDConv, [128]]
  - [-1, 3, C2f, [128, True]]
  - [-1, 1, CoordAttention, []]
  - [-1, 1, DeformConv, [256, 3, 2]]
  - [-1, 1, CoT, []]
  - [-1, 1, Conv, [512, 3, 2]]
  - [-1, 1, SelectiveKernel, [512, {groups: 8}]]
  - [-1, 1, Conv, [512, 3, 2]]
  - [-1, 1, ACmix, []]
  - [-1, 1, BottleneckAttention, [{feature_size: [3, 3]}]]
  - [-1, 1, GlobalContext, []]
head:
  - [[5, 7, 11], 1, Detect, [nc]]
"""
LOADS = """
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel
model = YOLO({path!r}).model
x = torch.load({folder!r} + "/x.pt")
with torch.no_grad():
    torch.save(model.eval()(x)[0], {folder!r} + "/y.pt")
print(len(DetectionModel(model.yaml, verbose=False).state_dict()))
"""


@pytest.mark.slow
def test_train_validate_save_and_export(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    config = tmp_path / "yolov8n-mixed.yaml"
    config.write_text(MIXED)
    data = write_boxes(tmp_path / "boxes")
    wrapper = YOLO(config)
    wrapper.train(data=str(data), project=str(tmp_path), name="first", **TRAIN)
    metrics = wrapper.val(data=str(data), rect=True, project=str(tmp_path), name="val", **QUICK)
    assert 0 <= metrics.box.map <= 1

    last = str(tmp_path / "first" / "weights" / "last.pt")
    x = torch.rand(2, 3, 64, 96)
    torch.save(x, tmp_path / "x.pt")
    code = LOADS.format(path=last, folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    assert done.returncode == 0, done.stderr
    model = YOLO(last).model
    assert done.stdout.split()[-1] == str(len(model.state_dict()))
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), outputs(model, x))

    with quiet_export():
        path = YOLO(last).export(format="onnx", dynamic=True, imgsz=96, opset=19, simplify=False)
    session = ort.InferenceSession(path)
    for shape in ((1, 3, 96, 96), (2, 3, 64, 160)):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        exported = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
        torch.testing.assert_close(exported, outputs(model, x), rtol=1e-3, atol=1e-3)
