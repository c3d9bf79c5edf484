"""Detection and instance segmentation as a Lightning module on torchvision's detectors."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from visgraft.data.detection import DetectionData
from visgraft.tasks.detection.metrics import DetectionMetrics, Kind
from visgraft.tasks.errors import TrainingError
from visgraft.tasks.learning import LearningTask

__all__ = ["DetectionTask", "defined", "to_predictions"]

Batch = tuple[Sequence[Tensor], Sequence[Mapping[str, Any]]]
_MASK_THRESHOLD = 0.5
_FOR_DETECTORS = ("boxes", "labels", "masks")


class DetectionTask(LearningTask):
    """Trains a detector, which in training mode turns images and targets into a dict of losses.

    Training images come in the size that the detector is to see, so that the size is drawn with the
    image's other random changes; validation images come as they are.

    Args:
        detector: What `build_detector` gave.
        data: What is measured on, with labels from 0 up.
        masks: Whether masks are learned and measured, too.
        learning: What every `LearningTask` takes.
    """

    def __init__(
        self, detector: nn.Module, *, data: DetectionData, masks: bool = False, **learning: Any
    ) -> None:
        leave_size(detector)
        super().__init__(detector, **learning)
        kinds: tuple[Kind, ...] = ("bbox", "segm") if masks else ("bbox",)
        self.metrics = DetectionMetrics(data, kinds)

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Returns the sum of the losses of a batch."""
        images, targets = batch
        parts = self.model(list(images), [_to_target(target) for target in targets])
        loss = torch.stack(list(parts.values())).sum()
        named = {f"loss_{name.removeprefix('loss_')}": value for name, value in parts.items()}
        self.count({"loss": loss, **named}, len(images), batch_idx)
        return {"loss": loss}

    @override
    def on_validation_start(self) -> None:
        """Stops before a broken detector is measured: it would find nothing, and say no more."""
        super().on_validation_start()
        weights = [value for value in self.model.state_dict().values() if value.is_floating_point()]
        if not bool(torch.stack([value.isfinite().all() for value in weights]).all()):
            raise TrainingError(
                f"the weights are not finite after epoch {self.current_epoch + 1}; lower lr, "
                "lengthen warmup_updates or set clip_grad"
            )

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts a batch."""
        images, targets = batch
        found = to_predictions(self.measured(list(images)))
        self.metrics.update(found, [target["image_id"] for target in targets])

    @override
    def metrics_result(self) -> dict[str, float]:
        """Returns AP in its kinds, in percent; what no object speaks for is left out."""
        return defined(self.metrics.result())


def defined(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics that the objects of the data speak for; a json has no word for nan."""
    return {name: value for name, value in metrics.items() if not math.isnan(value)}


def leave_size(detector: nn.Module) -> None:
    """Makes a detector take training images in the size they come in."""
    transform: Any = detector.transform
    transform._skip_resize = True


def to_predictions(found: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Returns what a detector of torchvision found, with labels from 0 up and bitmaps as masks.

    Args:
        found: For each image ``boxes``, ``labels`` from 1 up, ``scores`` and, if it finds masks,
            ``masks`` ``(n, 1, H, W)`` of probabilities.
    """
    predictions: list[dict[str, Tensor]] = []
    for one in found:
        prediction = {name: value.detach().cpu() for name, value in one.items()}
        prediction["labels"] = prediction["labels"] - 1
        if "masks" in prediction:
            prediction["masks"] = prediction["masks"][:, 0] > _MASK_THRESHOLD
        predictions.append(prediction)
    return predictions


def _to_target(target: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns what a detector of torchvision learns from: labels from 1 up, plain tensors."""
    kept = {name: target[name].as_subclass(Tensor) for name in _FOR_DETECTORS if name in target}
    kept["labels"] = kept["labels"] + 1
    return kept
