"""Image classification as a Lightning module: a step turns a batch into a dict with ``loss``."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from visgraft.tasks.learning import LearningTask
from visgraft.tasks.metrics import ClassifierMetrics
from visgraft.tasks.mixing import Mixing

__all__ = ["ClassificationTask"]


class ClassificationTask(LearningTask):
    """Trains a network to name the class of an image.

    Args:
        model: From images ``(B, C, H, W)`` to logits ``(B, num_classes)``.
        num_classes: At least 2.
        label_smoothing: Probability that a target spreads over all classes.
        mixing: Mixes the images of a batch.
        learning: What every `LearningTask` takes.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int,
        label_smoothing: float = 0.0,
        mixing: Mixing | None = None,
        **learning: Any,
    ) -> None:
        super().__init__(model, **learning)
        self.label_smoothing = label_smoothing
        self.mixing = mixing
        self.metrics = ClassifierMetrics(num_classes)

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Returns the loss of a batch."""
        images, labels = batch
        targets = labels
        if self.mixing:
            now = (self.global_rank, self.current_epoch, batch_idx)
            images, targets = self.mixing(images, labels, *now)
        smoothing = 0.0 if self.mixing else self.label_smoothing
        loss = functional.cross_entropy(self.model(images), targets, label_smoothing=smoothing)
        self.count({"loss": loss}, len(labels), batch_idx)
        return {"loss": loss}

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Counts a batch."""
        images, labels = batch
        self.metrics.update(self.measured(images), labels)

    @override
    def metrics_result(self) -> dict[str, float]:
        """Returns ``loss``, ``top1`` and ``top5``, and starts counting anew."""
        return self.metrics.result()
