"""ultralytics without network, installer and settings of the user; skips where it cannot run.

Import this before ultralytics: it reads its environment when it is imported.
"""

import atexit
import os
import shutil
import sys
import tempfile

import pytest

_FOLDER = tempfile.mkdtemp(prefix="ultralytics-")
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)

ENVIRONMENT = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_CONFIG_DIR": _FOLDER,
    "YOLO_VERBOSE": "false",
}
os.environ.update(ENVIRONMENT)

for _module in ("ultralytics", "ultralytics.nn.tasks", "ultralytics.engine.model"):
    pytest.importorskip(
        _module, reason="ultralytics or its cv2 does not import here", exc_type=ImportError
    )
ultralytics = sys.modules["ultralytics"]
