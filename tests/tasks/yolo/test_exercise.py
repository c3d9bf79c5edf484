"""A few of the networks that `tests.tasks.yolo.table` tries: no socket is opened meanwhile."""

import pytest
import torch

from tests.tasks.yolo.exercise import Exercise, no_network
from visgraft.tasks import yolo

pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def _unregistered():
    yield
    yolo.unregister()


@pytest.mark.parametrize(
    ("network", "block"),
    [("yolov5n", "acmix"), ("yolov8n", "coord_attention"), ("yolov5n_bot", None)],
)
def test_train_validate_and_export(network, block, tmp_path, monkeypatch):
    with no_network(monkeypatch) as attempts:
        exercise = Exercise(network, block, tmp_path)
        assert exercise.train() > 0
        assert 0 <= exercise.validate(rect=True, imgsz=160, batch=4) <= 100
        assert {shape for shape, _ in exercise.seen} >= {(128, 192), (192, 128)}
        exercise.validate(half=True)
        assert {dtype for _, dtype in exercise.seen} == {torch.float32}  # half is for other devices
        exercise.run_on_odd_sizes()
        assert exercise.in_half() < 1e-2
        assert exercise.export() < 1e-3
    assert attempts == []
