"""Training by a recipe into a folder, which a later call goes on from or takes the result of.

A killed run goes on from its last complete epoch and ends with the weights that it would have had
(bit for bit on a CPU): order, augmentation and every other random choice of an epoch follow from
the seed and the epoch alone.
"""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from pytorch_lightning import Callback, Trainer
from torch import nn

from visgraft.data import EpochSampler, ImageData
from visgraft.tasks.assembly import build_loaders, build_loggers, build_task
from visgraft.tasks.building import (
    add_grafts,
    build_base,
    rebuild_model,
    resolve_input,
    weights_digest,
)
from visgraft.tasks.callbacks import (
    EpochJournal,
    RecordingCheckpointIO,
    RunProgress,
    SharedStatistics,
)
from visgraft.tasks.checkpoint import RunRecord
from visgraft.tasks.devices import check_devices, pick_device
from visgraft.tasks.distributed import (
    LostDeviceError,
    RankJob,
    data_parallel,
    train_on_devices,
)
from visgraft.tasks.errors import TrainingError, TrainingInterrupted
from visgraft.tasks.files import locked
from visgraft.tasks.images import RunData, load_images
from visgraft.tasks.progress import wipe_bar
from visgraft.tasks.quiet import quiet_lightning
from visgraft.tasks.randomness import random_stream
from visgraft.tasks.recipe import Recipe, load_recipe
from visgraft.tasks.run_folder import RunFolder

__all__ = ["Fit", "TrainResult", "train"]

_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves.

    Attributes:
        metrics: Per epoch: ``epoch`` from 1, ``train_loss``, the metrics on the validation images
            (``loss``, and ``top1`` and ``top5`` in percent; for detection the parts of the
            training loss, and ``AP``, ``AP50`` and so on in percent, without those that no object
            speaks for), ``lr`` and ``seconds``.
        checkpoint: The weights after the last epoch.
        best_checkpoint: Those with the highest ``metric``, None where they were not kept. They
            were chosen on the validation images, on which they therefore look a little too good.
        initial_weights: Digest of the network's weights before grafting and before the first
            update; equal for all variants of one seed.
        data_order: Digest of the order in which the images were seen.
        metric: The one that tells the best epoch: ``top1``, ``AP`` or ``mask_AP``.
    """

    metrics: tuple[dict[str, float], ...]
    checkpoint: Path
    best_checkpoint: Path | None
    initial_weights: str
    data_order: str
    metric: str = "top1"

    @property
    def final(self) -> dict[str, float]:
        """The metrics of the last epoch."""
        return self.metrics[-1]

    @property
    def best(self) -> dict[str, float]:
        """The metrics of the first epoch that reached the highest ``metric``."""
        return max(self.metrics, key=lambda row: row[self.metric])

    @property
    def seconds(self) -> float:
        """Time spent in all epochs, validation included."""
        return sum(row["seconds"] for row in self.metrics)


def train(
    recipe: Recipe | str | Path | Mapping[str, Any],
    folder: str | Path,
    *,
    progress: bool = True,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    keep: Literal["all", "last"] = "all",
    data: RunData | None = None,
) -> TrainResult:
    """Trains by a recipe, from the start or from where an earlier call was stopped.

    Args:
        recipe: What `load_recipe` takes.
        folder: Where the run is kept; made if it is not there.
        progress: Show a progress bar and the metrics of each epoch on standard error.
        on_epoch: Called with the metrics of each epoch once they are safe on disk.
        keep: ``"all"`` keeps the best weights beside the last ones.
        data: The recipe's data, if they are loaded already. The processes of several devices load
            them anew.

    Returns:
        The result; that of the earlier call if it finished the run.

    Raises:
        RecipeError: The recipe is wrong.
        DataError: The images cannot be used.
        TrainingError: The folder holds another run, a file cannot be written, the loss is no longer
            finite, or the process of one of several devices died. The last checkpoint is that of
            the last good epoch.
        TrainingInterrupted: Ctrl-C; the same call goes on later.
    """
    recipe, run = load_recipe(recipe), RunFolder(Path(folder))
    try:
        with locked(run.path) as lock, random_stream(recipe.seed):
            run.check(recipe)
            record = run.record()
            if record is None or len(record.history) < recipe.epochs:
                data = load_images(recipe, progress) if data is None else data
                fit = Fit(recipe, run, data, record)
                run.claim(recipe)
                if recipe.devices == 1:
                    record = fit.to_the_end(progress=progress, on_epoch=on_epoch, keep=keep)
                else:
                    record = fit.on_devices(lock, progress=progress, on_epoch=on_epoch, keep=keep)
            run.finish()
    except OSError as error:
        what = f" ({error.filename})" if error.filename else ""
        raise TrainingError(
            f"the run in {run.path} stopped: {error.strerror or error}{what}; nothing is "
            "half-written, and the same call goes on from the last complete epoch"
        ) from error
    return TrainResult(
        record.history,
        run.last,
        run.best if run.best.exists() else None,
        record.initial_weights,
        record.data_order,
        recipe.metric,
    )


class Fit:
    """The training that is missing in a folder.

    Args:
        recipe: Of the folder.
        run: The folder, to itself.
        data: The recipe's.
        earlier: What earlier calls achieved.
    """

    def __init__(
        self, recipe: Recipe, run: RunFolder, data: RunData, earlier: RunRecord | None
    ) -> None:
        if earlier and earlier.fingerprint != data.fingerprint:
            raise TrainingError(
                f"the images of {data.name} are not those that the run in {run.path} began with; "
                "restore them, or choose another folder"
            )
        self.recipe = recipe
        self.run = run
        self.data = data
        self.earlier = earlier
        if isinstance(data, ImageData):
            check_devices(recipe, len(data.train), len(data.val))
        self.loggers = build_loggers(recipe, run.path)
        if earlier:
            self.model, self.record = rebuild_model(earlier), earlier
        else:
            self.model, self.record = _begin(recipe, data)

    def to_the_end(
        self,
        *,
        progress: bool,
        keep: str,
        on_epoch: Callable[[dict[str, float]], None] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> RunRecord:
        """Trains until the last epoch and returns the record of the whole run.

        Args:
            progress: See `train`.
            keep: The same.
            on_epoch: The same.
            callbacks: What else Lightning is to call.
        """
        journal = EpochJournal(
            self.run,
            self.record,
            metric=self.recipe.metric,
            keep_best=keep == "all",
            on_epoch=on_epoch,
        )
        epochs = self.recipe.epochs
        listed = [journal, *callbacks]
        if progress:
            listed.append(RunProgress(journal, epochs))
        if self.recipe.devices > 1:
            listed.append(SharedStatistics())
        try:
            with quiet_lightning(), _keeps_interrupts():
                trainer = Trainer(
                    accelerator=pick_device(self.recipe.device).type,
                    devices=self.recipe.devices,
                    strategy=data_parallel() if self.recipe.devices > 1 else "auto",
                    precision=_PRECISION[self.recipe.precision],
                    max_epochs=epochs,
                    gradient_clip_val=self.recipe.clip_grad,
                    callbacks=listed,
                    plugins=[RecordingCheckpointIO(journal)],
                    logger=self.loggers,
                    default_root_dir=self.run.path,
                    enable_checkpointing=False,
                    enable_model_summary=False,
                    enable_progress_bar=False,
                    num_sanity_val_steps=0,
                    use_distributed_sampler=False,
                )
                trainer.fit(
                    build_task(self.recipe, self.model, self.data),
                    datamodule=build_loaders(
                        self.recipe,
                        self.data,
                        self.record.input,
                        first_epoch=len(self.record.history),
                    ),
                    ckpt_path=self.run.last if self.earlier else None,
                    weights_only=True,
                )
        except TrainingError as error:
            raise TrainingError(f"{error}; {self._state(journal.saved)}") from error
        except KeyboardInterrupt as error:
            raise self._interruption(journal.saved) from error
        return self.record.with_history(journal.history)

    def on_devices(
        self,
        lock: IO[str],
        *,
        progress: bool,
        keep: str,
        on_epoch: Callable[[dict[str, float]], None] | None = None,
    ) -> RunRecord:
        """Does in a process per device what `to_the_end` does in this one.

        Args:
            lock: Of the folder.
            progress: See `train`.
            keep: The same.
            on_epoch: The same.
        """
        history = [dict(row) for row in self.record.history]

        def note(row: dict[str, float]) -> None:
            history.append(dict(row))
            if on_epoch:
                on_epoch(row)

        job = RankJob.of(
            self.recipe, self.run.path, self.data.fingerprint, progress=progress, keep=keep
        )
        try:
            train_on_devices(job, on_epoch=note, lock=lock)
        except LostDeviceError as error:
            raise TrainingError(f"{error}; {self._state(len(history))}") from error
        except KeyboardInterrupt as error:
            raise self._interruption(len(history)) from error
        finally:
            if progress:
                wipe_bar()
        return self.record.with_history(history)

    def _interruption(self, done: int) -> TrainingInterrupted:
        return TrainingInterrupted(f"The same call goes on later; {self._state(done)}")

    def _state(self, done: int) -> str:
        if not done:
            return f"no epoch was complete in {self.run.path}"
        return f"{done} of {self.recipe.epochs} epochs are in {self.run.last}"


def _begin(recipe: Recipe, data: RunData) -> tuple[nn.Module, RunRecord]:
    """Builds the network of a run that starts, and the record of that start."""
    model = build_base(recipe, data)
    initial_weights = weights_digest(model)
    grafts = add_grafts(model, recipe, data)
    record = RunRecord(
        recipe=recipe.model_dump(mode="json"),
        classes=data.classes,
        in_chans=data.in_chans,
        input=resolve_input(recipe, data),
        plans=tuple(done.plan for done in grafts),
        fingerprint=data.fingerprint,
        initial_weights=initial_weights,
        data_order=EpochSampler(len(data.train), recipe.seed).digest(recipe.epochs),
        category_ids=() if isinstance(data, ImageData) else data.category_ids,
    )
    return model, record


@contextmanager
def _keeps_interrupts() -> Iterator[None]:
    """Turns the exit that Lightning makes of Ctrl-C back into Ctrl-C, which goes on working."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        raise
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGINT, handler)
