"""Measuring a trained detector."""

import torch
from torch import nn

from visgraft.data.detection import DetectionData
from visgraft.tasks.detection.loaders import measuring_loader
from visgraft.tasks.detection.metrics import DetectionMetrics
from visgraft.tasks.detection.task import defined, to_predictions
from visgraft.tasks.progress import Bar

__all__ = ["measure_detector"]


def measure_detector(
    detector: nn.Module,
    data: DetectionData,
    *,
    masks: bool,
    batch_size: int,
    device: torch.device,
    half: bool = False,
    workers: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """Returns AP in its kinds, in percent, as training measures it after each epoch.

    Args:
        detector: In evaluation mode, on ``device``.
        data: All of it is measured on.
        masks: Whether masks are measured, too.
        batch_size: Images at a time.
        device: Where it computes.
        half: Compute in bfloat16 where that is safe.
        workers: Processes that load images.
        progress: Show a progress bar on standard error.
    """
    metrics = DetectionMetrics(data, ("bbox", "segm") if masks else ("bbox",))
    loader = measuring_loader(data, batch_size, workers)
    cast = torch.autocast(device.type, torch.bfloat16, enabled=half)
    with Bar("evaluating", len(loader), shown=progress) as bar, torch.inference_mode(), cast:
        for images, targets in loader:
            found = to_predictions(detector([image.to(device) for image in images]))
            metrics.update(found, [target["image_id"] for target in targets])
            bar.advance()
    return defined(metrics.result())
