"""The numbers by which a classifier is judged, the same in training and in evaluation."""

from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy

__all__ = ["ClassifierMetrics", "MeanLoss"]

_DIGITS = 4  # of a percentage; a metric is a float32


class MeanLoss(nn.Module):
    """The mean over images of losses that are means over batches.

    It never looks at a value before `result`, so a GPU need not wait for it. (MeanMetric of
    torchmetrics 1.9 does, or else ignores the weights.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = SumMetric(nan_strategy="disable")
        self.images = SumMetric(nan_strategy="disable")

    def update(self, loss: Tensor, images: int) -> None:
        """Counts a batch of so many images."""
        self.total.update(loss * images)
        self.images.update(images)

    def result(self) -> float:
        """Returns the mean, and starts anew."""
        result = float(self.total.compute()) / float(self.images.compute())
        self.total.reset()
        self.images.reset()
        return result


class ClassifierMetrics(nn.Module):
    """Top-1, top-5 and cross-entropy over all images seen since the last `result`.

    Args:
        num_classes: With fewer than five classes, top-5 is 100.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.top1 = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.top5 = MulticlassAccuracy(
            num_classes, top_k=min(5, num_classes), average="micro", validate_args=False
        )
        self.loss = MeanLoss()

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Counts a batch; ``logits`` are ``(B, classes)``, ``labels`` are ``(B,)``."""
        logits = logits.float()
        self.top1.update(logits, labels)
        self.top5.update(logits, labels)
        self.loss.update(functional.cross_entropy(logits, labels), len(labels))

    def result(self) -> dict[str, float]:
        """Returns ``loss``, and ``top1`` and ``top5`` in percent, and starts anew."""
        result = {
            "loss": self.loss.result(),
            "top1": round(100 * float(self.top1.compute()), _DIGITS),
            "top5": round(100 * float(self.top5.compute()), _DIGITS),
        }
        self.top1.reset()
        self.top5.reset()
        return result
