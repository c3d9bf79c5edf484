"""What the tasks have in common: a network that learns in epochs which can be repeated exactly."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import torch
from pytorch_lightning import LightningModule
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from visgraft.tasks.errors import TrainingError
from visgraft.tasks.metrics import MeanLoss
from visgraft.tasks.randomness import derive_seed, reseed

__all__ = ["LearningTask", "Schedule"]

_STEPS_PER_LOOK = 50  # on a GPU, where looking at the loss makes it wait


class Schedule(Protocol):
    """Sets the learning rate of an optimizer, as timm's schedulers do."""

    def step(self, epoch: int) -> None:
        """Called at the start of each epoch, counted from 0."""
        ...

    def step_update(self, num_updates: int) -> None:
        """Called before each update, counted from 0."""
        ...


class LearningTask(LightningModule):
    """Trains a network and keeps a moving average of it.

    Every random choice of an epoch follows from ``(seed, epoch)``, so that a run that is resumed at
    the start of an epoch goes on exactly as if it had not stopped. A task says in ``training_step``
    what the loss is and tells `count`, and in ``validation_step`` what is measured.

    Args:
        model: What learns.
        build_optimizer: Called with the model before training.
        build_schedule: Called with the optimizer and the number of updates per epoch; may return
            None, which leaves the learning rate as it is.
        ema_decay: Keep a moving average of the weights, and evaluate that.
        seed: Of dropout, stochastic depth and whatever else draws random numbers in a step.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        build_optimizer: Callable[[nn.Module], Optimizer],
        build_schedule: Callable[[Optimizer, int], Schedule | None],
        ema_decay: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.ema: ModelEmaV3 | None = None
        if ema_decay is not None:
            self.ema = ModelEmaV3(model, decay=ema_decay, use_warmup=True)
            self.ema.requires_grad_(False)
        self.build_optimizer = build_optimizer
        self.build_schedule = build_schedule
        self.seed = seed
        self.schedule: Schedule | None = None
        self._losses: dict[str, MeanLoss] = {}
        self.register_buffer("_bad_step", torch.tensor(-1), persistent=False)

    @property
    def measured(self) -> nn.Module:
        """The network that is evaluated: the average where one is kept."""
        return self.ema.module if self.ema else self.model

    @abstractmethod
    def metrics_result(self) -> dict[str, float]:
        """Returns the metrics of the validation images, and starts counting anew."""

    @override
    def configure_optimizers(self) -> Optimizer:
        """Builds the optimizer; the average of the weights is not its business."""
        return self.build_optimizer(self.model)

    @override
    def on_train_start(self) -> None:
        """Builds the schedule, a function of time that has no state to restore."""
        updates = int(self.trainer.num_training_batches)
        self.schedule = self.build_schedule(self.trainer.optimizers[0], updates)

    @override
    def on_train_epoch_start(self) -> None:
        """Seeds what the epoch will draw."""
        reseed(derive_seed(self.seed, "epoch", self.current_epoch, self.global_rank))
        if self.schedule:
            self.schedule.step(self.current_epoch)

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sets the learning rate of the coming update."""
        if self.schedule:
            self.schedule.step_update(self.global_step)

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Moves the average of the weights."""
        if self.ema:
            self.ema.update(self.model, step=self.global_step)

    @override
    def on_validation_start(self) -> None:
        """Stops before a broken network is measured."""
        self._stop_if_bad()

    def count(self, losses: dict[str, Tensor], images: int, step: int) -> None:
        """Counts the losses of a step, and stops the run where ``loss`` is not finite.

        Args:
            losses: ``loss``, that is learned from, and its parts if there are any.
            images: In the batch.
            step: Of the epoch, from 0.
        """
        for name, value in losses.items():
            if name not in self._losses:
                self._losses[name] = MeanLoss().to(value.device)
            self._losses[name].update(value.detach(), images)
        self._watch(losses["loss"].detach(), step)

    def epoch_result(self) -> dict[str, float]:
        """Returns the metrics of the epoch that ends, and starts counting anew."""
        losses = {f"train_{name}": mean.result() for name, mean in self._losses.items()}
        return {**losses, **self.metrics_result()}

    def _watch(self, loss: Tensor, step: int) -> None:
        """Remembers the first step of the epoch whose loss is not finite, and stops there."""
        first = (self._bad_step < 0) & ~loss.isfinite()
        self._bad_step = torch.where(first, step, self._bad_step)
        if loss.device.type == "cpu" or step % _STEPS_PER_LOOK == 0:
            self._stop_if_bad()

    def _stop_if_bad(self) -> None:
        step = int(self._bad_step)
        if step >= 0:
            raise TrainingError(
                f"the loss is not finite in step {step + 1} of epoch {self.current_epoch + 1}; "
                "lower lr, lengthen warmup_epochs or set clip_grad"
            )
