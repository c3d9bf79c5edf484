"""Makes the demo set `fashion_mini` from the original files of Fashion-MNIST.

Source: Debian's package ``dataset-fashion-mnist`` (MIT licence, (C) 2017 Zalando SE), which carries
the four original files::

    apt-get download dataset-fashion-mnist
    dpkg-deb -x dataset-fashion-mnist_*.deb fashion
    python scripts/make_fashion_mini.py fashion/usr/share/datasets/fashion-mnist

Sample rule: of each class the first 1 000 images of the original training file become ``train``,
and the first 200 of the original test file become ``val``, both in file order. Nothing is random,
nothing is changed: a sprite is a grayscale PNG, 100 images wide, sorted by class, so that the
place of an image gives its label. Pillow's version may change the bytes of the PNG, never the
pixels; their SHA-256 is printed and stored in ``facts.json``.
"""

import argparse
import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
COLUMNS = 100
TARGET = Path(__file__).resolve().parent.parent / "src/visgraft/data/fashion_mini"


def read_idx(path: Path) -> np.ndarray:
    """Returns the bytes of a gzipped idx file as an array of its shape."""
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def sample(source: Path, prefix: str, per_class: int) -> np.ndarray:
    """Returns the first ``per_class`` images of each class, sorted by class."""
    images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
    chosen = [np.flatnonzero(labels == label)[:per_class] for label in range(len(CLASSES))]
    return images[np.concatenate(chosen)]


def save_sprite(images: np.ndarray, path: Path) -> dict[str, object]:
    """Writes the images as one PNG, and returns what ``facts.json`` says about it."""
    count, height, width = images.shape
    grid = images.reshape(count // COLUMNS, COLUMNS, height, width).swapaxes(1, 2)
    Image.fromarray(grid.reshape(-1, COLUMNS * width)).save(path, optimize=True)
    return {
        "file": path.name,
        "per_class": count // len(CLASSES),
        "pixels_sha256": hashlib.sha256(images.tobytes()).hexdigest(),
    }


def main() -> None:
    """Writes the two sprites and ``facts.json``."""
    parser = argparse.ArgumentParser(description="Make the demo set fashion_mini.")
    parser.add_argument("source", type=Path, help="folder with the four *-ubyte.gz files")
    parser.add_argument("--target", type=Path, default=TARGET, help=f"default: {TARGET}")
    arguments = parser.parse_args()
    target: Path = arguments.target
    target.mkdir(parents=True, exist_ok=True)

    train = sample(arguments.source, "train", 1000)
    val = sample(arguments.source, "t10k", 200)
    facts = {
        "source": "https://github.com/zalandoresearch/fashion-mnist",
        "license": "MIT, (C) 2017 Zalando SE",
        "classes": CLASSES,
        "image_size": train.shape[1:],
        "mean": round(float(train.mean()) / 255, 4),
        "std": round(float(train.std()) / 255, 4),
        "train": save_sprite(train, target / "train.png"),
        "val": save_sprite(val, target / "val.png"),
    }
    (target / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    for path in sorted(target.iterdir()):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{digest}  {path.name}  {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
