"""ultralytics with our blocks needs no network: training, validation, export, prediction."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.offline_ultralytics import ENVIRONMENT, ultralytics  # noqa: F401
from visgraft.ops._native._cache import cache_folder

pytest.importorskip("onnxruntime")


PLAIN = """
import socket, sys
attempts = []
def refuse(name):
    def refused(*args, **kwargs):
        attempts.append((name, args[-1]))
        raise OSError("no network")
    return refused
for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse(name))
for name in ("create_connection", "getaddrinfo", "gethostbyname"):
    setattr(socket, name, refuse(name))

from pathlib import Path
from ultralytics import YOLO
from tests.tasks.yolo_data import quiet_export, write_boxes
from visgraft.tasks import yolo

folder = Path(sys.argv[1])
data = str(write_boxes(folder / "boxes"))
places = {"data": data, "project": str(folder), "workers": 0, "device": "cpu", "imgsz": 64}
model = YOLO(yolo.network_file("yolov5n_ca"))
yolo.graft(model, "global_context", "model.6")
model.train(epochs=1, plots=False, **places)
model.val(plots=False, **places)
model.predict(str(folder / "boxes" / "images"), imgsz=64, save=True, project=str(folder))
with quiet_export():
    print(model.export(format="onnx", imgsz=64))
print("attempts", attempts)
"""


@pytest.mark.slow
def test_nothing_is_fetched_and_the_home_folder_stays_empty(tmp_path):
    """With what `docs/yolo.md` says to set, ultralytics' defaults left as they are otherwise."""
    home, config, work = (tmp_path / name for name in ("home", "config", "work"))
    for folder in (home, config, work):
        folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=work,
        env={
            **os.environ,
            **ENVIRONMENT,
            "YOLO_CONFIG_DIR": str(config),
            "HOME": str(home),
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "MPLCONFIGDIR": str(config),
            "XDG_CACHE_HOME": str(cache_folder().parents[1]),  # of our own compiled code
        },
    )
    assert done.returncode == 0, done.stderr
    *_, exported, attempts = done.stdout.splitlines()
    assert attempts == "attempts []"
    assert Path(exported).suffix == ".onnx"
    assert list(home.rglob("*")) == []
    assert list(work.rglob("*")) == []
