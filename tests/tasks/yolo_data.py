"""Eight small pictures with boxes in YOLO's format, and the settings to train with."""

import warnings
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image

QUICK = {
    "imgsz": 96,
    "batch": 4,
    "workers": 0,
    "plots": False,
    "verbose": False,
    "device": "cpu",
}
TRAIN = {**QUICK, "epochs": 1, "amp": False}


@contextmanager
def quiet_export():
    """Leaves out what torch says of the exporter that ultralytics chose."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using the legacy TorchScript-based", Warning)
        warnings.filterwarnings("ignore", "The feature will be removed", DeprecationWarning)
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        yield


def write_boxes(folder):
    """Writes wide and tall pictures of bright rectangles; returns the path of the data file."""
    noise = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(8):
        width, height = (96, 64) if number % 2 else (64, 96)
        pixels = noise.integers(0, 80, (height, width, 3), dtype=np.uint8)
        lines = []
        for _ in range(2):
            colour, (x, y) = int(noise.integers(2)), noise.uniform(0.3, 0.7, 2)
            rows = slice(int((y - 0.15) * height), int((y + 0.15) * height))
            columns = slice(int((x - 0.15) * width), int((x + 0.15) * width))
            pixels[rows, columns, colour] = 255
            lines.append(f"{colour} {x:.4f} {y:.4f} 0.3 0.3")
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        (folder / "labels" / f"{number}.txt").write_text("\n".join(lines))
    data = folder / "data.yaml"
    data.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [red, green]\n")
    return data
