"""A tiny COCO data set that tests spoil."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.conftest import noise
from visgraft.data.detection import DetectionData, check_detection, load_coco

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 90, "name": "owl"}]


def annotation(key: int, image: int = 10, **changes: Any) -> dict[str, Any]:
    entry = {
        "id": key,
        "image_id": image,
        "category_id": 7,
        "bbox": [2, 3, 10, 8],
        "area": 41.5,
        "iscrowd": 0,
        "segmentation": [[2, 3, 12, 3, 12, 11]],
    }
    return entry | changes


class Coco:
    """A json and its pictures, 30 x 20 pixels each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "annotations" / "instances_train.json"
        self.folder = root / "train"
        self.path.parent.mkdir(parents=True)
        self.folder.mkdir()
        self.images = [
            {"id": key, "file_name": f"{key}.png", "height": 20, "width": 30} for key in (10, 20)
        ]
        self.categories = list(CATEGORIES)
        self.annotations = [annotation(1), annotation(2, category_id=3)]
        for key in (10, 20):
            Image.fromarray(noise(key, (20, 30))).save(self.folder / f"{key}.png")

    def write(self) -> Path:
        names = ("images", "annotations", "categories")
        self.path.write_text(json.dumps({name: getattr(self, name) for name in names}))
        return self.path

    def load(self, **options: Any) -> DetectionData:
        return load_coco(self.write(), **options)

    def problems(self) -> list[str]:
        (part,) = check_detection(self.write())
        return list(part.problems)


@pytest.fixture
def coco(tmp_path: Path) -> Coco:
    return Coco(tmp_path / "set")
