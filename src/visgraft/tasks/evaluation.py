"""Measuring a trained network, from its checkpoint alone or from anyone's weights."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader

from visgraft.data import AugmentedSplit, ImageData, load_data
from visgraft.tasks.building import rebuild_model, resolve_input
from visgraft.tasks.checkpoint import RunRecord, read_checkpoint, read_record, read_weights
from visgraft.tasks.devices import pick_device
from visgraft.tasks.errors import CheckpointError
from visgraft.tasks.images import evaluation_transform, load_images
from visgraft.tasks.metrics import ClassifierMetrics
from visgraft.tasks.progress import Bar
from visgraft.tasks.recipe import Recipe
from visgraft.tasks.weights import load_strictly

__all__ = ["Trained", "evaluate", "load_trained"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A network with its trained weights, and what is known of it.

    Attributes:
        model: In evaluation mode, grafts included, on the CPU.
        recipe: That it was trained by.
        record: Classes, input, history and the rest of what the checkpoint says.
    """

    model: nn.Module
    recipe: Recipe
    record: RunRecord


def load_trained(checkpoint: str | Path) -> Trained:
    """Builds the network of a checkpoint that `train` wrote.

    Raises:
        CheckpointError: The file cannot be read, or visgraft did not write it.
    """
    content = read_checkpoint(checkpoint)
    record = read_record(content, checkpoint)
    if record is None:
        raise CheckpointError(
            f"checkpoint {checkpoint}: was not written by visgraft and does not say what network "
            "it is of"
        )
    model = rebuild_model(record)
    load_strictly(model, read_weights(content, checkpoint), checkpoint)
    return Trained(model.eval(), Recipe(**record.recipe), record)


def evaluate(
    checkpoint: str | Path,
    *,
    data: str | Path | ImageData | None = None,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    on_bad_image: Literal["error", "skip"] | None = None,
    device: str = "auto",
    workers: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """Measures the network of a checkpoint on the validation part of a data set.

    Args:
        checkpoint: What `train` wrote; or any file of weights, if ``model`` and ``data`` are given.
        data: Another data set with the same classes; None takes the one that was trained on.
        model: For weights of others: the network's name in timm's registry.
        model_args: For weights of others: further arguments of the network's constructor.
        image_size: Side in pixels of the images; None takes that of training.
        batch_size: Images at a time; None takes that of training.
        on_bad_image: What to do about an unreadable file; None takes what held in training.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: Processes that load images.
        progress: Show a progress bar on standard error.

    Returns:
        ``top1`` and ``top5`` in percent, and ``loss`` (cross-entropy).

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit the network or the data.
        DataError: The images cannot be used.
    """
    content = read_checkpoint(checkpoint)
    record = read_record(content, checkpoint)
    if record is None:
        images, record = _adopt(checkpoint, data, model, model_args, on_bad_image or "error")
    elif model is not None:
        raise CheckpointError(
            f"checkpoint {checkpoint}: names its network itself; leave model out, got {model!r}"
        )
    else:
        images = _images(record, data, checkpoint, on_bad_image, progress)
    if image_size:
        record = replace(record, input=replace(record.input, size=(image_size, image_size)))
    network = rebuild_model(record)
    load_strictly(network, read_weights(content, checkpoint), checkpoint)
    recipe, where = Recipe(**record.recipe), pick_device(device)
    loader = DataLoader(
        AugmentedSplit(images.val, evaluation_transform(images, record.input)),
        batch_size=batch_size or recipe.batch_size,
        num_workers=workers,
    )
    half = torch.autocast(where.type, torch.bfloat16, enabled=recipe.precision == "bf16")
    metrics = ClassifierMetrics(len(record.classes)).to(where)
    network.to(where).eval()
    with Bar("evaluating", len(loader), shown=progress) as bar, torch.inference_mode(), half:
        for pictures, labels in loader:
            metrics.update(network(pictures.to(where)), labels.to(where))
            bar.advance()
    return metrics.result()


def _images(
    record: RunRecord,
    data: str | Path | ImageData | None,
    checkpoint: str | Path,
    on_bad_image: Literal["error", "skip"] | None,
    progress: bool,
) -> ImageData:
    """Returns the images to measure on, of the classes that the network knows."""
    changes = {} if on_bad_image is None else {"on_bad_image": on_bad_image}
    recipe = Recipe(**record.recipe | changes)
    if isinstance(data, ImageData):
        images = data
    elif data is None:
        images = load_images(recipe, progress)
        if images.fingerprint != record.fingerprint:
            _logger.warning("the images of %s have changed since the training", images.name)
    else:
        images = load_data(data, on_bad_image=recipe.on_bad_image)
    if images.classes != record.classes:
        raise CheckpointError(
            f"checkpoint {checkpoint}: knows the classes {_list(record.classes)}, but "
            f"{images.name} has {_list(images.classes)}"
        )
    if images.in_chans != record.in_chans:
        raise CheckpointError(
            f"checkpoint {checkpoint}: takes images of {record.in_chans} channels, but those of "
            f"{images.name} have {images.in_chans}"
        )
    return images


def _adopt(
    checkpoint: str | Path,
    data: str | Path | ImageData | None,
    model: str | None,
    model_args: Mapping[str, Any] | None,
    on_bad_image: Literal["error", "skip"],
) -> tuple[ImageData, RunRecord]:
    """Returns images and a record for weights that visgraft did not write."""
    if data is None or model is None:
        raise CheckpointError(
            f"checkpoint {checkpoint}: was not written by visgraft; say what network it is of "
            "(model) and what to measure on (data)"
        )
    images = data if isinstance(data, ImageData) else load_data(data, on_bad_image=on_bad_image)
    recipe = Recipe(data=images.name, model=model, model_args=dict(model_args or {}))
    as_trained = resolve_input(recipe.model_copy(update={"pretrained": True}), images)
    record = RunRecord(
        recipe=recipe.model_dump(mode="json"),
        classes=images.classes,
        in_chans=images.in_chans,
        input=as_trained,
        plans=(),
        fingerprint=images.fingerprint,
        initial_weights="",
        data_order="",
    )
    return images, record


def _list(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown}, ... ({len(names)})" if len(names) > 5 else shown
