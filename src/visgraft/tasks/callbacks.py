"""What happens around the epochs of a run: metrics, checkpoints, log and progress bar."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import CheckpointIO
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.nn.modules.batchnorm import _BatchNorm  # the base of all; there is no public one
from typing_extensions import override

from visgraft.tasks.checkpoint import RunRecord, read_checkpoint, write_checkpoint
from visgraft.tasks.errors import TrainingError
from visgraft.tasks.progress import Bar
from visgraft.tasks.run_folder import RunFolder

__all__ = ["EpochJournal", "RecordingCheckpointIO", "RunProgress", "SharedStatistics"]

_SECONDS_PER_NOTE = 0.5
_STATISTICS = ("running_mean", "running_var")
_SHOWN = {"loss": "loss {:.4f}"} | {
    name: f"{name.replace('_', ' ')} {{:.2f}} %"
    for name in ("top1", "top5", "AP", "AP50", "AP_S", "mask_AP", "mask_AP50")
}
"""What is said of an epoch, as far as its task measures it."""


class EpochJournal(Callback):
    """Ends each epoch: gathers its metrics, then writes checkpoints and log.

    The last checkpoint is written after the best one and before the log: a run that is killed
    between them repeats the epoch and writes the same again.

    Args:
        run: The folder of the run.
        record: What the checkpoints say of the run; its history is that of earlier processes.
        metric: The one that ``best.ckpt`` is chosen by; higher is better.
        keep_best: Whether ``best.ckpt`` is written.
        on_epoch: Called with the metrics of each epoch when they are safe on disk.

    Attributes:
        history: The metrics of each epoch so far.
        saved: How many epochs are safe on disk.
    """

    def __init__(
        self,
        run: RunFolder,
        record: RunRecord,
        *,
        metric: str,
        keep_best: bool,
        on_epoch: Callable[[dict[str, float]], None] | None,
    ) -> None:
        self.run = run
        self.record = record
        self.history = [dict(row) for row in record.history]
        self.saved = len(self.history)
        self.metric = metric
        self.keep_best = keep_best
        self.on_epoch = on_epoch
        self._start = time.monotonic()

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells the loggers the recipe."""
        for logger in trainer.loggers:
            logger.log_hyperparams(self.record.recipe)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Chooses the epoch's random changes of the images, and starts its clock."""
        trainer.datamodule.set_epoch(trainer.current_epoch)  # pyright: ignore[reportAttributeAccessIssue]
        self._start = time.monotonic()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the epoch's metrics and weights safe."""
        result = pl_module.epoch_result()  # pyright: ignore[reportCallIssue]
        epoch = pl_module.current_epoch + 1
        broken = [name for name, value in result.items() if not math.isfinite(value)]
        if broken:
            raise TrainingError(
                f"{broken[0]} is not finite after epoch {epoch}; lower lr, lengthen warmup_epochs "
                "or set clip_grad"
            )
        row = {
            "epoch": epoch,
            **result,
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "seconds": time.monotonic() - self._start,
        }
        is_best = all(row[self.metric] > earlier[self.metric] for earlier in self.history)
        self.history.append(row)
        for logger in trainer.loggers:
            logger.log_metrics(row, step=epoch)
        if is_best and self.keep_best:
            trainer.save_checkpoint(self.run.best, weights_only=True)
        trainer.save_checkpoint(self.run.last)
        self.saved = len(self.history)
        if trainer.is_global_zero:
            self.run.write_metrics(self.history)
            if self.on_epoch:
                self.on_epoch(dict(row))


class RecordingCheckpointIO(CheckpointIO):
    """Lets Lightning write and read checkpoints as this room does.

    Args:
        journal: Whose record and history go into the checkpoints.
    """

    def __init__(self, journal: EpochJournal) -> None:
        super().__init__()
        self.journal = journal

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint whole or not at all."""
        record = self.journal.record.with_history(self.journal.history)
        write_checkpoint(checkpoint, record, Path(path))

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint without executing anything in it."""
        return read_checkpoint(path)

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        """Deletes a checkpoint."""
        Path(path).unlink(missing_ok=True)


class SharedStatistics(Callback):
    """Gives all devices the same buffers before they validate and save.

    Statistics of a batch normalisation become the mean over the devices, each of which has seen
    its own part of the images; any other buffer is that of the first device.
    """

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes them equal."""
        for module in pl_module.modules():
            if module is pl_module:
                continue  # what it counts itself is each device's own
            for name, buffer in module.named_buffers(recurse=False):
                if isinstance(module, _BatchNorm) and name in _STATISTICS:
                    torch.distributed.all_reduce(buffer)
                    buffer /= trainer.world_size
                else:
                    torch.distributed.broadcast(buffer, 0)


class RunProgress(Callback):
    """Shows how far the whole run is, and says the metrics of each epoch.

    Args:
        journal: Listed before this in the trainer's callbacks.
        epochs: Of the whole run.
    """

    def __init__(self, journal: EpochJournal, epochs: int) -> None:
        self.journal = journal
        self.epochs = epochs
        self._bar: Bar | None = None
        self._described = 0.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar."""
        steps = int(trainer.num_training_batches)
        done = len(self.journal.history) * steps
        self._bar = Bar("training", steps * self.epochs, done=done)
        self._bar.__enter__()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the bar."""
        if self._bar is None:
            return
        self._bar.advance()
        now = time.monotonic()
        if now - self._described > _SECONDS_PER_NOTE:  # reading the loss makes a GPU wait
            self._described = now
            note = f"loss {float(outputs['loss']):.3f}"
            if self.journal.history:
                best = self.journal.metric
                note += f"  {best} {self.journal.history[-1][best]:.2f} %"
            self._bar.describe(f"epoch {trainer.current_epoch + 1}/{self.epochs}", note)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says the metrics."""
        row = self.journal.history[-1]
        if self._bar:
            told = [f"train loss {row['train_loss']:.4f}"]
            told += [_SHOWN[name].format(row[name]) for name in _SHOWN if name in row]
            self._bar.say(
                "  ".join([f"epoch {row['epoch']}/{self.epochs}", *told, f"{row['seconds']:.1f} s"])
            )

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Closes the bar, also after an error."""
        if self._bar:
            self._bar.__exit__()
            self._bar = None
