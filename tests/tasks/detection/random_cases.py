"""Small detection data made of random numbers, and what pycocotools says of it."""

import contextlib
import io
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from visgraft.data.detection import AnnotatedImage, AnnotatedObject, DetectionData
from visgraft.data.detection.masks import encode_bitmap

NAMES = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")


class NoPictures:
    def __call__(self, image: AnnotatedImage) -> Image.Image:
        raise AssertionError("metrics need no picture")


def rectangle(box: Any, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    x1, y1, x2, y2 = np.round(box).astype(int)
    mask[y1:y2, x1:x2] = True
    return mask


def random_data(
    seed: int,
    *,
    images: int = 5,
    classes: int = 3,
    most_objects: int = 6,
    crowds: float = 0.2,
) -> DetectionData:
    """Rectangles with whole corners, so that overlaps are often equal; ids have gaps."""
    random = np.random.default_rng(seed)
    records, key = [], 0
    for place in range(images):
        height, width = (int(side) for side in random.integers(40, 220, 2))
        items = []
        for _ in range(int(random.integers(0, most_objects + 1))):
            key += int(random.integers(1, 5))
            x1, y1 = (int(random.integers(0, side - 8)) for side in (width, height))
            x2, y2 = int(random.integers(x1 + 4, width)), int(random.integers(y1 + 4, height))
            box = (float(x1), float(y1), float(x2), float(y2))
            bitmap = rectangle(box, height, width)
            bitmap[y1, x1] = False
            items.append(
                AnnotatedObject(
                    box,
                    int(random.integers(0, max(1, classes - 1))),  # the last class has no objects
                    float(random.choice([bitmap.sum(), 1023.5, 1024, 9216])),
                    key,
                    encode_bitmap(bitmap),
                    is_crowd=bool(random.random() < crowds),
                )
            )
        records.append(AnnotatedImage(7 + 3 * place, f"{place}.png", height, width, tuple(items)))
    random.shuffle(records)
    return DetectionData(
        name=f"random {seed}",
        classes=tuple(f"class {label}" for label in range(classes)),
        category_ids=tuple(3 + 5 * label for label in range(classes)),
        images=records,
        read=NoPictures(),
    )


def part_of(box: Any, random: np.random.Generator) -> tuple[float, ...]:
    """Returns a box that is cut on the right by up to a third, so that masks are smaller."""
    x1, y1, x2, y2 = box
    return x1, y1, x2 - (x2 - x1) * random.choice([0, 0.1, 0.33]), y2


def random_predictions(
    data: DetectionData, seed: int, *, most: int = 4, noise: int = 3
) -> dict[int, dict[str, Any]]:
    """Boxes near the objects, some of a wrong class, with few different scores."""
    random = np.random.default_rng(seed)
    predictions = {}
    for image in data.images:
        boxes, labels = [], []
        for item in image.objects:
            for _ in range(int(random.integers(0, most + 1))):
                moved = np.array(item.box) + random.integers(-noise, noise + 1, 4)
                x1, x2 = sorted(np.clip(moved[::2], 0, image.width))
                y1, y2 = sorted(np.clip(moved[1::2], 0, image.height))
                boxes.append((x1, y1, x2, y2))
                wrong = random.random() < 0.2
                labels.append(int(random.integers(len(data.classes))) if wrong else item.label)
        scores = random.choice([0.1, 0.3, 0.5, 0.7, 0.9], len(boxes))
        predictions[image.id] = {
            "boxes": np.array(boxes, np.float32).reshape(-1, 4),
            "labels": np.array(labels, np.int64),
            "scores": scores.astype(np.float32),
            "masks": np.array(
                [rectangle(part_of(box, random), image.height, image.width) for box in boxes], bool
            ).reshape(-1, image.height, image.width),
        }
    return predictions


def to_coco(data: DetectionData) -> COCO:
    """Returns the annotations as pycocotools' own tool reads them."""
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i.id, "height": i.height, "width": i.width} for i in data.images],
        "categories": [{"id": key} for key in data.category_ids],
        "annotations": [
            {
                "id": item.id,
                "image_id": image.id,
                "category_id": data.category_ids[item.label],
                "bbox": [
                    item.box[0],
                    item.box[1],
                    item.box[2] - item.box[0],
                    item.box[3] - item.box[1],
                ],
                "area": item.area,
                "iscrowd": int(item.is_crowd),
                "segmentation": {
                    "size": [item.mask.height, item.mask.width],
                    "counts": item.mask.counts.tolist(),
                },
            }
            for image in data.images
            for item in image.objects
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def reference(
    truth: COCO, predictions: dict[int, dict[str, Any]], category_ids: tuple[int, ...], kind: str
) -> dict[str, float]:
    """Returns pycocotools' six numbers in percent, nan for its -1."""
    results = []
    for key, found in predictions.items():
        for place, box in enumerate(found["boxes"]):
            x1, y1, x2, y2 = (float(value) for value in box)
            entry: dict[str, Any] = {
                "image_id": key,
                "category_id": category_ids[found["labels"][place]],
                "score": float(found["scores"][place]),
            }
            if kind == "bbox":
                entry["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            else:
                bitmap = found["masks"][place].astype(np.uint8)
                entry["segmentation"] = coco_masks.encode(np.asfortranarray(bitmap))
            results.append(entry)
    return measure(truth, results, kind)


def measure(truth: COCO, results: Any, kind: str) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        if results:
            found = truth.loadRes(results)
        else:
            found = COCO()
            found.dataset = {**truth.dataset, "annotations": []}
            found.createIndex()
        evaluator = COCOeval(truth, found, kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    prefix = "" if kind == "bbox" else "mask_"
    return {
        f"{prefix}{name}": 100 * value if value > -1 else float("nan")
        for name, value in zip(NAMES, evaluator.stats[:6], strict=True)
    }
