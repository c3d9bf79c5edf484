"""Whether `DetectionMetrics` gives pycocotools' numbers on annotations of COCO.

    python benchmarks/equal_to_pycocotools.py instances_train.json instances_val.json

What is measured are the annotations themselves, moved, doubled, left out and misnamed at random,
with few different scores, so that there are ties. pycocotools reads the json file; boxes and masks.
"""

import argparse
import contextlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from visgraft.data.detection import AnnotatedImage, DetectionData, load_coco
from visgraft.data.detection.masks import decode_mask
from visgraft.tasks.detection import DetectionMetrics

NAMES = ("AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L")
PREFIXES = {"bbox": "", "segm": "mask_"}
TOLERANCE = 1e-6  # of a fraction from 0 to 1

Found = Mapping[str, np.ndarray]


def perturbed(
    image: AnnotatedImage, num_classes: int, noise: float, random: np.random.Generator
) -> Found:
    """Returns detections made of the annotations: each none to three times."""
    boxes, labels, masks = [], [], []
    for item in image.objects:
        if item.mask is None:
            raise SystemExit(f"object {item.id} has no mask")
        for _ in range(int(random.integers(0, 4))):
            x1, y1, x2, y2 = np.asarray(item.box, np.float32) + random.normal(0, noise, 4)
            boxes.append((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)))
            wrong = random.random() < 0.1
            labels.append(int(random.integers(num_classes)) if wrong else item.label)
            reach = int(noise)
            move = random.integers(-reach, reach + 1, 2)
            masks.append(np.roll(decode_mask(item.mask, image.height, image.width), move, (0, 1)))
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "labels": np.array(labels, np.int64),
        "scores": random.integers(0, 11, len(boxes)).astype(np.float32) / 10,
        "masks": np.array(masks, bool).reshape(-1, image.height, image.width),
    }


def reference(path: str, found: Mapping[int, Found], data: DetectionData, kind: str) -> Any:
    """Returns pycocotools' first six numbers, fractions, -1 where no object speaks for one."""
    results: list[dict[str, Any]] = []
    for key, one in found.items():
        for place, box in enumerate(one["boxes"]):
            x1, y1, x2, y2 = map(float, box)
            entry: dict[str, Any] = {
                "image_id": key,
                "category_id": data.category_ids[one["labels"][place]],
                "score": float(one["scores"][place]),
            }
            if kind == "bbox":
                entry["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            else:
                bitmap = np.asfortranarray(one["masks"][place].astype(np.uint8))
                entry["segmentation"] = coco_masks.encode(bitmap)
            results.append(entry)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(path)
        evaluator = COCOeval(truth, truth.loadRes(results), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats[:6]


def main() -> None:
    """Prints the largest difference for each file and noise; fails above the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("annotations", nargs="+", help="COCO json files")
    paths = parser.parse_args().annotations
    worst = 0.0
    for path in paths:
        data = load_coco(path)
        for noise in (1.0, 3.0, 8.0):
            random = np.random.default_rng(int(noise))
            found = {i.id: perturbed(i, len(data.classes), noise, random) for i in data.images}
            metrics = DetectionMetrics(data, ("bbox", "segm"))
            metrics.update(found.values(), found.keys())
            ours = metrics.result()
            for kind, prefix in PREFIXES.items():
                theirs = reference(path, found, data, kind)
                mine = np.array([ours[prefix + name] for name in NAMES]) / 100
                difference = np.abs(np.where(np.isnan(mine), -1, mine) - theirs).max()
                worst = max(worst, float(difference))
                print(
                    f"{path.rsplit('/', 1)[-1]}, noise {noise:g}, {kind}: "
                    f"AP {100 * theirs[0]:.2f} %, largest difference {difference:.1e}"
                )
    print(f"largest difference {worst:.1e}")
    raise SystemExit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
