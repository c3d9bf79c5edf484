"""The part of a run that one of several processes trains."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from typing_extensions import override

from visgraft.tasks.distributed import RankJob
from visgraft.tasks.errors import TrainingError
from visgraft.tasks.images import load_images
from visgraft.tasks.randomness import random_stream
from visgraft.tasks.rank import Caller
from visgraft.tasks.recipe import Recipe
from visgraft.tasks.run_folder import RunFolder
from visgraft.tasks.training import Fit

__all__ = ["train_part"]


def train_part(values: Mapping[str, Any], caller: Caller) -> None:
    """Trains until the last epoch.

    Args:
        values: The fields of a `RankJob`.
        caller: Is told each epoch, if this is the first of the processes.
    """
    job = RankJob(**values)
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    torch.set_num_threads(job.threads)
    recipe, run = Recipe(**job.recipe), RunFolder(Path(job.folder))
    is_first = os.environ["RANK"] == "0"
    with random_stream(recipe.seed):
        _begin(job, recipe, run).to_the_end(
            progress=job.progress and is_first,
            keep=job.keep,
            on_epoch=caller.tell_epoch if is_first else None,
            callbacks=[_Alarm(caller)],
        )
    torch.distributed.destroy_process_group()


class _Alarm(Callback):
    """Tells an error at once: what Lightning tears down next makes the other processes fail."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Tells it, unless the run is to put it into words of its own."""
        if not isinstance(exception, TrainingError):
            self._caller.tell_error(exception)


def _begin(job: RankJob, recipe: Recipe, run: RunFolder) -> Fit:
    """Builds what the caller could build a moment ago."""
    data = load_images(recipe, False)
    if data.fingerprint != job.fingerprint:
        raise TrainingError(
            f"the images that were handed over are not those of {recipe.data}, which each of the "
            f"{job.devices} devices reads by itself; train on one device, or leave data out"
        )
    try:
        return Fit(recipe, run, data, run.record())
    except (ValueError, KeyError) as error:
        raise TrainingError(
            f"a process of one of the {job.devices} devices cannot build the network ({error}); "
            "blocks and networks that your own code registers are known to your process alone: "
            "train on one device, or make them part of an installed package that visgraft imports"
        ) from error
