"""ultralytics trains, saves, loads, validates and exports the model that was grafted."""

import copy
import os
import subprocess
import sys

import pytest
import torch

from tests.offline_ultralytics import ENVIRONMENT, ultralytics
from tests.surgery.models import alive
from tests.tasks.yolo_data import QUICK, TRAIN, quiet_export, write_boxes
from visgraft.surgery.holders import Holder
from visgraft.tasks import yolo
from visgraft.tasks.yolo import _keeping, _library

tasks = pytest.importorskip("ultralytics.nn.tasks")
YOLO = ultralytics.YOLO

X = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))
ROWS = [f"model.{row}" for row in (2, 4, 6, 8, 9)]
_BUILT = {}


def build(classes=80):
    if classes not in _BUILT:
        torch.manual_seed(classes)
        _BUILT[classes] = alive(tasks.DetectionModel("yolov8n.yaml", nc=classes, verbose=False))
    return copy.deepcopy(_BUILT[classes])


def outputs(model, x=X):
    with torch.no_grad():
        return model.eval()(x)[0]


def trained(done):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in done.parameters():
            parameter.add_(0.1 * torch.rand(parameter.shape, generator=generator))
    return done


def grafted(*places, block="coord_attention", classes=80, **options):
    model = build(classes)
    for place in places:
        trained(yolo.graft(model, block, place, example=(1, 3, 64, 64), **options))
    return model


def test_a_yolo_object_is_grafted_inside():
    wrapper = YOLO("yolov8n.yaml")
    wrapper.predictor = "the network as it was"
    before = outputs(wrapper.model)
    done = yolo.graft(wrapper, "coord_attention", ROWS)
    assert done.model is wrapper.model
    assert (done.totals.kept, done.totals.tensors) == (355, 355)
    assert torch.equal(outputs(wrapper.model), before)
    assert wrapper.predictor is None


def test_what_the_trainer_builds_has_the_grafts():
    source = grafted(ROWS, "model.1.conv")
    fresh = tasks.DetectionModel("yolov8n.yaml", nc=80, verbose=False)
    fresh.load(source)
    assert torch.equal(outputs(fresh), outputs(source))
    assert list(fresh.state_dict()) == list(source.state_dict())
    assert _keeping.grafted_rows(fresh) == [1, 2, 4, 6, 8, 9]
    assert not set(map(id, fresh.modules())).intersection(map(id, source.modules()))


def test_frozen_weights_of_a_saved_model_become_trainable():
    source = grafted(["model.4"]).requires_grad_(False)
    fresh = tasks.DetectionModel("yolov8n.yaml", nc=80, verbose=False)
    fresh.load({"model": source})
    assert all(p.requires_grad for n, p in fresh.named_parameters() if "dfl" not in n)


def test_a_replaced_convolution_is_taken_along():
    source = grafted(["model.5.conv", "model.22.cv3.0.1.conv"], block="deform_conv")
    fresh = tasks.DetectionModel("yolov8n.yaml", nc=80, verbose=False)
    fresh.load(source)
    assert type(fresh.model[5].conv).__name__ == "DeformConv"
    assert torch.equal(outputs(fresh), outputs(source))


@pytest.mark.parametrize("place", ["model.6", "model.4.m.0"])
def test_a_layer_that_was_replaced_is_taken_along(place):
    source = grafted([place], block="cot", how="replace", start="paper")
    fresh = tasks.DetectionModel("yolov8n.yaml", nc=80, verbose=False)
    fresh.load(source)
    assert type(fresh.get_submodule(place)).__name__ == "ContextualTransformer"
    assert torch.equal(outputs(fresh), outputs(source))


@pytest.mark.parametrize("place", ["model.4", "model.22.cv2.0.0", "model.22.cv3.1.0.conv"])
def test_another_number_of_classes(place):
    source = grafted([place])
    fresh = tasks.DetectionModel("yolov8n.yaml", nc=2, verbose=False)
    fresh.load(source)
    assert outputs(fresh).shape[1] == 4 + 2
    head = fresh.model[-1]
    assert (head.nc, head.no) == (2, 66)
    assert [s[-1].out_channels for s in head.cv3] == [2, 2, 2]
    assert torch.equal(head.stride, torch.tensor([8.0, 16.0, 32.0]))
    mine, theirs = fresh.state_dict(), source.state_dict()
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert {name.rsplit(".", 1)[0] for name in different} == {
        f"model.22.cv3.{i}.2" for i in range(3)
    }


def test_another_network_is_refused():
    source = grafted(["model.4"])
    for name in ("yolov5n.yaml", "yolov8s.yaml"):
        fresh = tasks.DetectionModel(name, nc=80, verbose=False)
        before = copy.deepcopy(fresh.state_dict())
        with pytest.raises(ValueError, match=r"^load: (the weights have grafts in|layer 4 has gr)"):
            fresh.load(source)
        assert all(torch.equal(t, before[n]) for n, t in fresh.state_dict().items())
        assert not any(isinstance(m, Holder) for m in fresh.modules())


def test_after_undo_nothing_is_taken_along():
    model = build()
    yolo.graft(model, "coord_attention", ROWS, example=(1, 3, 64, 64)).undo()
    fresh = tasks.DetectionModel("yolov8n.yaml", nc=80, verbose=False)
    fresh.load(model)
    assert len(fresh.state_dict()) == 355
    assert torch.equal(outputs(fresh), outputs(model))


@pytest.mark.parametrize("pretrained", [False, "yolov8n.pt"])
def test_training_that_would_lose_the_grafts_is_refused(pretrained):
    wrapper = YOLO("yolov8n.yaml")
    yolo.graft(wrapper, "coord_attention", "model.4", example=(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"^train: pretrained=.* without its grafts; leave it out"):
        wrapper.train(data="none.yaml", pretrained=pretrained)
    assert wrapper.trainer is None


def test_what_cannot_be_grafted():
    with pytest.raises(ValueError, match=r"^graft: expected YOLO.*got Conv2d"):
        yolo.graft(torch.nn.Conv2d(3, 8, 3), "cot", "conv3x3")
    with pytest.raises(ValueError, match=r"^graft: at='model.99' matches nothing"):
        yolo.graft(build(), "cot", "model.99")


def test_the_supported_versions(monkeypatch):
    monkeypatch.setattr(ultralytics, "__version__", "8.5.0")
    with pytest.raises(ImportError, match=r"^graft: works with ultralytics>=8.4.190,<8.5.*8.5.0"):
        yolo.graft(build(), "cot", "conv3x3")
    monkeypatch.setattr(ultralytics, "__version__", "8.4.189")
    with pytest.raises(ImportError, match=r"^register: works with"):
        yolo.register()
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(ImportError, match=r"^register: ultralytics cannot be imported \(.*AGPL"):
        yolo.register()


def test_versions_are_read_as_numbers():
    class Library:
        __version__ = "8.4.190rc1"

    assert _library._version(Library) == (8, 4, 1901)
    Library.__version__ = "8.10"
    assert _library._version(Library) == (8, 10)


@pytest.mark.slow
def test_train_validate_and_export(tmp_path):
    """One epoch from the YAML, then from the saved file: the grafts are there and learn."""
    ort = pytest.importorskip("onnxruntime")
    data = write_boxes(tmp_path / "boxes")
    wrapper = YOLO("yolov8n.yaml")
    yolo.graft(wrapper, "coord_attention", ROWS)
    yolo.graft(wrapper, "cot", "model.22.cv2.0.0.conv")
    yolo.graft(wrapper, "deform_conv", "model.7.conv")
    names = [n for n in wrapper.model.state_dict() if "graft" in n]
    wrapper.train(data=str(data), project=str(tmp_path), name="first", **TRAIN)
    learnt = wrapper.model.state_dict()
    assert [n for n in learnt if "graft" in n] == names
    assert wrapper.model.model[-1].nc == 2
    assert all(learnt[n].abs().max() > 0 for n in names if n.endswith("scale"))
    assert learnt["model.7.conv.offset.weight"].abs().max() > 0

    saved = YOLO(tmp_path / "first" / "weights" / "last.pt")
    saved.train(data=str(data), project=str(tmp_path), name="second", **TRAIN)
    assert [n for n in saved.model.state_dict() if "graft" in n] == names

    metrics = saved.val(data=str(data), rect=True, project=str(tmp_path), name="val", **QUICK)
    assert 0 <= metrics.box.map <= 1

    with quiet_export():
        path = saved.export(format="onnx", dynamic=True, imgsz=96, opset=19, simplify=False)
    session = ort.InferenceSession(path)
    for shape in ((1, 3, 96, 96), (2, 3, 64, 160)):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        exported = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
        torch.testing.assert_close(exported, outputs(saved.model, x), rtol=1e-3, atol=1e-3)


LOADS = """
import sys, torch
from ultralytics import YOLO
from ultralytics.nn.tasks import BaseModel, DetectionModel
if {blocked}:
    sys.modules["visgraft"] = None
model = YOLO({path!r}).model
x = torch.load({folder!r} + "/x.pt")
with torch.no_grad():
    torch.save(model.eval()(x)[0], {folder!r} + "/y.pt")
fresh = DetectionModel("yolov8n.yaml", nc=80, verbose=False)
fresh.load(model)
print(sum("graft" in name for name in fresh.state_dict()))
"""


def in_a_fresh_process(**values):
    code = LOADS.format(**values)
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}
    )


@pytest.mark.slow
def test_a_saved_model_loads_where_visgraft_is_installed(tmp_path):
    wrapper = YOLO("yolov8n.yaml")
    wrapper.model = grafted(ROWS)
    wrapper.save(tmp_path / "grafted.pt")
    torch.save(X, tmp_path / "x.pt")
    place = {"path": str(tmp_path / "grafted.pt"), "folder": str(tmp_path)}

    done = in_a_fresh_process(blocked=False, **place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == str(5 * 12)
    expected = outputs(YOLO(place["path"]).model)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), expected)

    done = in_a_fresh_process(blocked=True, **place)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: ")
    assert "visgraft" in last
