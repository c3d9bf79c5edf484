"""YOLOv5-SPD: backbone and neck equal the authors' network, tensor by tensor."""

import pytest
import torch
from torch.nn import functional

from tests.models.golden_networks import GoldenNetwork
from tests.offline_ultralytics import ultralytics  # noqa: F401
from visgraft.inspect import cost
from visgraft.tasks import yolo

tasks = pytest.importorskip("ultralytics.nn.tasks")
HEAD = "model.30."  # the authors' head: anchors and three convolutions
FED = (21, 25, 29)
# Published for 80 classes, and counted: parameters with the authors' head of three anchors
PUBLISHED = {"n": 2_256_157, "s": 8_771_389, "m": 24_646_557, "l": 52_707_709}


@pytest.fixture(autouse=True)
def _unregistered():
    yield
    yolo.unregister()


def anchor_head(widths):
    return sum(255 * (width + 1) for width in widths)


def trunk(size):
    """Returns layers 0 to 29, built on shapes alone."""
    config = tasks.yaml_model_load(yolo.network_file(f"yolov5{size}_spd"))
    with torch.device("meta"):
        layers, _ = tasks.parse_model(config, 3, verbose=False)
    return layers[:30]


@pytest.mark.parametrize("size", ["n", "s"])
def test_backbone_and_neck_equal_the_authors(size):
    case = GoldenNetwork(f"yolov5{size}_spd")
    model = tasks.DetectionModel(yolo.network_file(case.name), verbose=False)
    weights = case.weights()
    trunk = {n: t for n, t in weights.items() if not n.startswith(HEAD)}
    own = [name for name in model.state_dict() if not name.startswith(HEAD)]
    assert own == list(trunk)
    model.load_state_dict(trunk, strict=False)
    seen = {}
    for row, name in zip(FED, ("p3", "p4", "p5"), strict=True):
        model.model[row].register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: out})
        )
    with torch.no_grad():
        model.eval()(case.input())
        for number, name in enumerate(seen):
            head = f"{HEAD}m.{number}."
            value = functional.conv2d(seen[name], weights[f"{head}weight"], weights[f"{head}bias"])
            case.check(name, value)
    assert list(seen) == ["p3", "p4", "p5"]


@pytest.mark.parametrize("size", ["n", "s"])
def test_rows_and_operations_are_the_authors(size):
    record = GoldenNetwork(f"yolov5{size}_spd").record
    model = tasks.DetectionModel(yolo.network_file(f"yolov5{size}_spd"), verbose=False).eval()
    rows = [(row, params) for row, _, _, _, params in record["layers"][:30]]
    assert rows == [(layer.i, layer.np) for layer in model.model[:30]]
    assert list(model.stride) == [8, 16, 32]
    counted = cost(model, tuple(record["macs_input"])).by_module
    macs = sum(counted[f"model.{row}"][1] for row in range(30) if f"model.{row}" in counted)
    maps = [(record["macs_input"][2] // stride) ** 2 for stride in (8, 16, 32)]
    widths = [model.model[row].cv3.conv.out_channels for row in FED]
    head = sum(255 * width * area for width, area in zip(widths, maps, strict=True))
    assert macs + head == record["macs_conv_matmul"]


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_the_published(size):
    layers = trunk(size)
    widths = [layers[row].cv3.conv.out_channels for row in FED]
    assert sum(layer.np for layer in layers) + anchor_head(widths) == PUBLISHED[size]
