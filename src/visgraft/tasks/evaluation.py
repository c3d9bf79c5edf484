"""Measuring a trained network, from its checkpoint alone or from anyone's weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from visgraft.data import AugmentedSplit, ImageData, load_data
from visgraft.data.detection import DetectionData, DetectionParts
from visgraft.tasks.building import rebuild_model, resolve_input
from visgraft.tasks.checkpoint import RunRecord, read_checkpoint, read_record, read_weights
from visgraft.tasks.detection.measuring import measure_detector
from visgraft.tasks.devices import pick_device
from visgraft.tasks.errors import CheckpointError
from visgraft.tasks.images import RunData, evaluation_transform
from visgraft.tasks.measured import Chosen, choose_images, whole_or_val
from visgraft.tasks.metrics import ClassifierMetrics
from visgraft.tasks.progress import Bar
from visgraft.tasks.recipe import Recipe
from visgraft.tasks.weights import load_strictly

__all__ = ["Trained", "evaluate", "load_trained"]


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
    data: str | Path | RunData | DetectionData | None = None,
    images: str | Path | None = None,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    on_bad_image: Literal["error", "skip"] | None = None,
    device: str = "auto",
    workers: int = 0,
    progress: bool = True,
    tell: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Measures the network of a checkpoint.

    Args:
        checkpoint: What `train` wrote; or any file of weights of a classifier, if ``model`` and
            ``data`` are given.
        data: Another data set with the same classes, of which the validation part is measured on,
            or all of it where it has no parts; None takes the validation images of the training.
        images: For detection: folder of the pictures of a COCO json, where its place does not tell.
        model: For weights of others: the network's name in timm's registry.
        model_args: For weights of others: further arguments of the network's constructor.
        image_size: Side in pixels of the images, the shorter one for a detector; None takes that of
            training.
        batch_size: Images at a time; None takes that of training.
        on_bad_image: What to do about an unreadable file; None takes what held in training.
        device: ``auto``, ``cpu`` or ``cuda``.
        workers: Processes that load images.
        progress: Show a progress bar on standard error.
        tell: Called with the words that say which images are measured on, and how many.

    Returns:
        ``top1`` and ``top5`` in percent, and ``loss`` (cross-entropy); for detection ``AP``,
        ``AP50``, ``AP75``, ``AP_S``, ``AP_M``, ``AP_L`` in percent, and for instance segmentation
        the same of masks, ``mask_AP`` and so on; what no object speaks for is left out.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit the network or the data.
        DataError: The images cannot be used.
    """
    content = read_checkpoint(checkpoint)
    record = read_record(content, checkpoint)
    if record is None:
        chosen, record = _adopt(checkpoint, data, model, model_args, on_bad_image or "error")
    elif model is not None:
        raise CheckpointError(
            f"checkpoint {checkpoint}: names its network itself; leave model out, got {model!r}"
        )
    else:
        chosen = choose_images(record, checkpoint, data, images, on_bad_image, progress)
    if image_size:
        record = _resized(record, image_size)
    network = rebuild_model(record)
    load_strictly(network, read_weights(content, checkpoint), checkpoint)
    recipe, where = Recipe(**record.recipe), pick_device(device)
    network.to(where).eval()
    arguments: dict[str, Any] = {
        "batch_size": batch_size or recipe.batch_size,
        "device": where,
        "half": recipe.precision == "bf16",
        "workers": workers,
        "progress": progress,
    }
    if tell:
        tell(chosen.told)
    if isinstance(chosen.data, DetectionData):
        return measure_detector(network, chosen.data, masks=recipe.finds_masks, **arguments)
    transform = evaluation_transform(chosen.data, record.input)
    samples = ConcatDataset([AugmentedSplit(split, transform) for split in chosen.splits])
    return _measure_classifier(network, samples, len(record.classes), **arguments)


def _measure_classifier(
    network: nn.Module,
    samples: Dataset[Any],
    num_classes: int,
    *,
    batch_size: int,
    device: torch.device,
    half: bool,
    workers: int,
    progress: bool,
) -> dict[str, float]:
    loader = DataLoader(samples, batch_size=batch_size, num_workers=workers)
    cast = torch.autocast(device.type, torch.bfloat16, enabled=half)
    metrics = ClassifierMetrics(num_classes).to(device)
    with Bar("evaluating", len(loader), shown=progress) as bar, torch.inference_mode(), cast:
        for pictures, labels in loader:
            metrics.update(network(pictures.to(device)), labels.to(device))
            bar.advance()
    return metrics.result()


def _resized(record: RunRecord, size: int) -> RunRecord:
    """Returns the record of a network that is to see images of another size."""
    recipe = Recipe(**record.recipe)
    if recipe.finds_objects:
        sizes = {"min_size": [size], "max_size": max(size, recipe.max_size)}
        return replace(record, recipe=record.recipe | sizes)
    return replace(record, input=replace(record.input, size=(size, size)))


def _adopt(
    checkpoint: str | Path,
    data: str | Path | RunData | DetectionData | None,
    model: str | None,
    model_args: Mapping[str, Any] | None,
    on_bad_image: Literal["error", "skip"],
) -> tuple[Chosen, RunRecord]:
    """Returns images and a record for weights that visgraft did not write."""
    if data is None or model is None:
        raise CheckpointError(
            f"checkpoint {checkpoint}: was not written by visgraft; say what network it is of "
            "(model) and what to measure on (data)"
        )
    if isinstance(data, DetectionData | DetectionParts):
        raise CheckpointError(
            f"checkpoint {checkpoint}: was not written by visgraft, and only classifiers of others "
            f"are measured; got {data.name} with objects"
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
    return whole_or_val(images), record
