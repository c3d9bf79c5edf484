"""The images that a trained network is measured on: those of its training, or others."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from visgraft.data import ImageData, ImageSplit, load_data
from visgraft.data.detection import DetectionData, DetectionParts, load_measured
from visgraft.data.detection.load import check_objects
from visgraft.tasks.checkpoint import RunRecord
from visgraft.tasks.errors import CheckpointError
from visgraft.tasks.images import RunData, load_images
from visgraft.tasks.progress import counting_bar
from visgraft.tasks.recipe import Recipe

__all__ = ["Chosen", "choose_images", "whole_or_val"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """What is measured on.

    Attributes:
        data: The data set; for a detector, all of it is measured on.
        splits: For a classifier, the parts of it that are measured on.
        told: Which images these are, in words.
    """

    data: ImageData | DetectionData
    told: str
    splits: tuple[ImageSplit, ...] = ()


def choose_images(
    record: RunRecord,
    checkpoint: str | Path,
    data: str | Path | RunData | DetectionData | None,
    images: str | Path | None,
    on_bad_image: Literal["error", "skip"] | None,
    progress: bool,
) -> Chosen:
    """Returns the images to measure on, of the classes that the network knows.

    Args:
        record: Of the network.
        checkpoint: For errors.
        data: Another data set, or its name or path; None takes that of the training.
        images: Folder of the pictures of a COCO json.
        on_bad_image: None takes what held in training.
        progress: Show a bar while images are read.

    Raises:
        CheckpointError: The classes or channels are others.
        DataError: The images cannot be used, or have no objects, or no masks where masks are found.
    """
    changes = {} if on_bad_image is None else {"on_bad_image": on_bad_image}
    recipe = Recipe(**record.recipe | changes)
    if isinstance(data, str | Path) and _same_place(data, recipe.data) and images is None:
        data = None
    kinds = (DetectionData, DetectionParts) if recipe.finds_objects else (ImageData,)
    if data is not None and not isinstance(data, (str, Path, *kinds)):
        raise CheckpointError(
            f"checkpoint {checkpoint}: is of task {recipe.task}, and {data.name} is data for "
            f"another one"
        )
    if images is not None and not (recipe.finds_objects and isinstance(data, str | Path)):
        raise CheckpointError(
            f"checkpoint {checkpoint}: images is the folder of the pictures of another COCO json, "
            "which data names; leave it out"
        )
    if data is None:
        loaded = load_images(recipe, progress)
        if loaded.fingerprint != record.fingerprint:
            _logger.warning("the images of %s have changed since the training", loaded.name)
        chosen = _validation_part(loaded)
    elif isinstance(data, ImageData | DetectionParts):
        chosen = _validation_part(data)
    elif isinstance(data, DetectionData):
        chosen = _all_of(data)
    elif recipe.finds_objects:
        with counting_bar("reading images") as count:
            mode = "error" if recipe.on_bad_image == "error" else "mend"
            chosen = _all_of(
                load_measured(
                    data, images=images, on_problem=mode, progress=count if progress else None
                )
            )
    else:
        loaded = load_data(
            data,
            val_fraction=recipe.val_fraction,
            split_seed=recipe.split_seed,
            on_bad_image=recipe.on_bad_image,
        )
        own = loaded.fingerprint == record.fingerprint
        chosen = _validation_part(loaded) if own else whole_or_val(loaded)
    _check(record, checkpoint, chosen.data)
    return chosen


def whole_or_val(data: ImageData) -> Chosen:
    """Returns the validation part of a data set, or all of it where it has no parts."""
    if data.has_own_split:
        return _validation_part(data)
    both = (data.train, data.val)
    return Chosen(data, f"all {sum(map(len, both))} images of {data.name}", both)


def _validation_part(data: RunData) -> Chosen:
    told = f"the {len(data.val)} validation images of {data.name}"
    if isinstance(data, ImageData):
        return Chosen(data, told, (data.val,))
    return Chosen(data.val, told)


def _all_of(data: DetectionData) -> Chosen:
    return Chosen(data, f"the {len(data)} images of {data.name}")


def _same_place(one: str | Path, other: str) -> bool:
    return str(one) == other or Path(one).expanduser().resolve() == Path(other).resolve()


def _check(record: RunRecord, checkpoint: str | Path, data: ImageData | DetectionData) -> None:
    if data.classes != record.classes:
        raise CheckpointError(
            f"checkpoint {checkpoint}: knows the classes {_list(record.classes)}, but "
            f"{data.name} has {_list(data.classes)}"
        )
    if isinstance(data, DetectionData):
        check_objects(data, "measure on", Recipe(**record.recipe).finds_masks)
    if isinstance(data, ImageData) and data.in_chans != record.in_chans:
        raise CheckpointError(
            f"checkpoint {checkpoint}: takes images of {record.in_chans} channels, but those of "
            f"{data.name} have {data.in_chans}"
        )


def _list(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown}, ... ({len(names)})" if len(names) > 5 else shown
