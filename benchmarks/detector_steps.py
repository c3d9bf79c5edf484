"""Time of a training step of Mask R-CNN: our detector on timm's ResNet-50, and torchvision's own.

    python benchmarks/detector_steps.py --rounds 5 --out detector_steps.json

Both have the same numbers, BatchNorm and the first two stages of five fixed, 91 classes and the
same images. A step is forward and backward. The two take turns in one process; the time is that of
the processor, the median of the rounds after the first. Parts are timed by hooks in the same steps:
the network with its pyramid forward, and all of the backward pass.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from visgraft.models import create_model
from visgraft.tasks.detection import build_detector

CLASSES = 90


def detectors(height: int, width: int) -> dict[str, nn.Module]:
    """Builds both detectors, which keep the size of the images, with equal numbers."""
    size = (min(height, width), max(height, width))
    ours = build_detector(
        "mask_rcnn",
        create_model("resnet50"),
        num_classes=CLASSES,
        image_size=size,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        frozen_stages=1,
        frozen_norm=True,
    )
    trunk = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    theirs = MaskRCNN(
        _resnet_fpn_extractor(trunk, 3), CLASSES + 1, min_size=size[0], max_size=size[1]
    )
    numbers = {k: v for k, v in ours.state_dict().items() if not k.endswith("num_batches_tracked")}
    theirs.load_state_dict({k.replace(".network.", ".body."): v for k, v in numbers.items()})
    return {"visgraft": ours.train(), "torchvision": theirs.train()}


def batch(count: int, height: int, width: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Returns images of noise with five objects each."""
    stream = torch.Generator().manual_seed(0)
    images, targets = [], []
    for _ in range(count):
        images.append(torch.rand(3, height, width, generator=stream))
        corners = torch.rand(5, 2, generator=stream) * torch.tensor([width, height]) * 0.6
        sides = (0.1 + 0.3 * torch.rand(5, 2, generator=stream)) * torch.tensor([width, height])
        boxes = torch.cat([corners, corners + sides], 1)
        masks = torch.zeros(5, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        labels = torch.randint(1, CLASSES + 1, (5,), generator=stream)
        targets.append({"boxes": boxes, "labels": labels, "masks": masks})
    return images, targets


class Stopwatch:
    """Times the steps of a detector and what its backbone takes of them, in seconds."""

    def __init__(self, detector: nn.Module) -> None:
        self.detector = detector
        self.times: dict[str, list[float]] = {"step": [], "backbone": [], "backward": []}
        backbone: Any = detector.backbone
        backbone.register_forward_pre_hook(lambda *_: self._begin())
        backbone.register_forward_hook(lambda *_: self._end())

    def step(self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> float:
        """Takes a step and returns the sum of the losses."""
        self.detector.zero_grad()
        torch.manual_seed(0)
        start = time.process_time()
        loss = sum(self.detector(list(images), list(targets)).values())
        middle = time.process_time()
        loss.backward()
        end = time.process_time()
        self.times["step"].append(end - start)
        self.times["backward"].append(end - middle)
        return float(loss.detach())

    def median(self, part: str) -> float:
        """Returns the median time of a part, the first round left out."""
        return statistics.median(self.times[part][1:])

    def _begin(self) -> None:
        self._start = time.process_time()

    def _end(self) -> None:
        self.times["backbone"].append(time.process_time() - self._start)


def main() -> None:
    """Prints one line of JSON, and writes it where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 320), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    watches = {name: Stopwatch(model) for name, model in detectors(*options.size).items()}
    images, targets = batch(options.images, *options.size)
    losses = {}
    for number in range(options.rounds + 1):
        order = list(watches.items())
        for name, watch in order if number % 2 else reversed(order):
            losses[name] = watch.step(images, targets)
    learning = {
        name: sum(p.numel() for p in watch.detector.parameters() if p.requires_grad)
        for name, watch in watches.items()
    }
    ours, theirs = watches["visgraft"], watches["torchvision"]
    pairs = zip(ours.times["step"][1:], theirs.times["step"][1:], strict=True)
    result = {
        "what": "Mask R-CNN, ResNet-50, forward and backward, CPU time in seconds",
        "images": options.images,
        "size": list(options.size),
        "rounds": options.rounds,
        "threads": options.threads,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "learning_parameters": learning,
        "loss": losses,
        **{
            name: {part: round(watch.median(part), 3) for part in watch.times}
            for name, watch in watches.items()
        },
        "ratio": {part: round(ours.median(part) / theirs.median(part), 3) for part in ours.times},
        "ratio_of_each_round": [round(one / other, 3) for one, other in pairs],
    }
    line = json.dumps(result)
    print(line)
    if options.out:
        options.out.write_text(line + "\n")


if __name__ == "__main__":
    main()
