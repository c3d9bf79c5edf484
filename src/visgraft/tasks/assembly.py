"""Takes a recipe apart: builds task, optimizer, schedule and loggers from the fields they need."""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn
from torch.optim import Optimizer

from visgraft.data import ImageData
from visgraft.tasks.checkpoint import InputSpec
from visgraft.tasks.classification import ClassificationTask
from visgraft.tasks.detection.loaders import DetectionLoaders
from visgraft.tasks.detection.task import DetectionTask
from visgraft.tasks.errors import TrainingError
from visgraft.tasks.images import RunData
from visgraft.tasks.learning import LearningTask, Schedule
from visgraft.tasks.loaders import ImageLoaders
from visgraft.tasks.mixing import Mixing
from visgraft.tasks.recipe import Recipe

__all__ = ["build_loaders", "build_loggers", "build_optimizer", "build_schedule", "build_task"]

_REFUSALS = (AssertionError, ImportError, RuntimeError, TypeError, ValueError)


def build_task(recipe: Recipe, model: nn.Module, data: RunData) -> LearningTask:
    """Builds what trains a network by a recipe."""
    learning: dict[str, Any] = {
        "build_optimizer": partial(build_optimizer, recipe),
        "build_schedule": partial(build_schedule, recipe),
        "ema_decay": recipe.ema_decay,
        "seed": recipe.seed,
    }
    if not isinstance(data, ImageData):
        return DetectionTask(model, data=data.val, masks=recipe.finds_masks, **learning)
    num_classes = len(data.classes)
    mixing = None
    if recipe.mixup or recipe.cutmix:
        mixing = Mixing(
            num_classes,
            mixup=recipe.mixup,
            cutmix=recipe.cutmix,
            label_smoothing=recipe.label_smoothing,
            seed=recipe.seed,
        )
    return ClassificationTask(
        model,
        num_classes=num_classes,
        label_smoothing=recipe.label_smoothing,
        mixing=mixing,
        **learning,
    )


def build_loaders(
    recipe: Recipe, data: RunData, spec: InputSpec, *, first_epoch: int = 0
) -> ImageLoaders | DetectionLoaders:
    """Builds the loaders of a run, from an epoch on that is counted from 0."""
    if isinstance(data, ImageData):
        return ImageLoaders(data, recipe, spec, first_epoch=first_epoch)
    return DetectionLoaders(data, recipe, first_epoch=first_epoch)


def build_optimizer(recipe: Recipe, model: nn.Module) -> Optimizer:
    """Builds timm's optimizer; biases, normalisation and 1-d weights are not decayed.

    Raises:
        TrainingError: It does not take the arguments, or needs a package that is not there.
    """
    try:
        return create_optimizer_v2(
            model,
            opt=recipe.optimizer,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            **recipe.opt_args,
        )
    except _REFUSALS as error:
        raise TrainingError(
            f"optimizer {recipe.optimizer!r} cannot be built: {error}; change optimizer or opt_args"
        ) from error


def build_schedule(recipe: Recipe, optimizer: Optimizer, updates: int) -> Schedule | None:
    """Builds timm's schedule for ``updates`` per epoch, None for ``none``.

    Raises:
        TrainingError: It does not take the arguments.
    """
    warmup: Any = recipe.warmup_epochs
    if recipe.warmup_updates:
        warmup = recipe.warmup_updates / updates
    try:
        schedule, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.schedule,
            num_epochs=recipe.epochs,
            warmup_epochs=warmup,
            min_lr=recipe.min_lr,
            step_on_epochs=recipe.schedule_on == "epoch",
            updates_per_epoch=updates,
            **recipe.schedule_args,
        )
    except _REFUSALS as error:
        raise TrainingError(
            f"schedule {recipe.schedule!r} cannot be built: {error}; change schedule, "
            "schedule_args or epochs"
        ) from error
    return schedule


def build_loggers(recipe: Recipe, folder: Path) -> list[Logger]:
    """Builds Lightning's loggers, which write to ``folder`` where they write files.

    Raises:
        TrainingError: A package is missing.
    """
    missing = [name for name in recipe.loggers if importlib.util.find_spec(name) is None]
    if missing:
        raise TrainingError(
            f"loggers: {missing[0]} is not installed; pip install {missing[0]}, or leave it out"
        )
    builders: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: TensorBoardLogger(
            folder, name="tensorboard", version="", default_hp_metric=False
        ),
        "wandb": lambda: WandbLogger(save_dir=folder, name=folder.name, resume="allow"),
        "mlflow": lambda: MLFlowLogger(run_name=folder.name, save_dir=str(folder / "mlflow")),
    }
    return [builders[name]() for name in recipe.loggers]
