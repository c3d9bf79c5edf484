"""Where a run computes."""

import os

import torch

from visgraft.tasks.errors import TrainingError
from visgraft.tasks.recipe import Recipe

__all__ = ["check_devices", "pick_device", "share_of_batch"]


def pick_device(device: str) -> torch.device:
    """Returns the device of a recipe's ``auto``, ``cpu`` or ``cuda``.

    Raises:
        TrainingError: There is no GPU.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise TrainingError("device is cuda, but torch sees no GPU; use device cpu or auto")
    return torch.device("cuda" if available and device != "cpu" else "cpu")


def check_devices(recipe: Recipe, train_images: int, val_images: int) -> None:
    """Makes sure that a run can have as many devices as its recipe says.

    Args:
        recipe: Of the run.
        train_images: To train on, in all.
        val_images: To validate on, in all.

    Raises:
        TrainingError: There are fewer, the images do not suffice, or this system trains on one
            device only.
    """
    count = recipe.devices
    if count == 1:
        return
    device = pick_device(recipe.device)
    if os.name == "nt" or not torch.distributed.is_available():
        raise TrainingError(
            f"devices is {count}, but this system, or its build of torch, trains on one device "
            "only; set devices to 1"
        )
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and gpus < count:
        raise TrainingError(
            f"devices is {count}, but torch sees {gpus} GPU{'' if gpus == 1 else 's'}; lower "
            "devices, or set device to cpu"
        )
    if val_images < count:
        raise TrainingError(
            f"devices is {count}, but there are {val_images} images to validate on, and each "
            "device takes a share of them; lower devices"
        )
    share_of_batch(recipe, train_images)


def share_of_batch(recipe: Recipe, images: int) -> int:
    """Returns how many images of each update one device sees.

    Where there are fewer images than ``batch_size``, they are one batch, of an even number.

    Args:
        recipe: Says batch size and number of devices.
        images: To train on, in all.

    Raises:
        TrainingError: A batch cannot be split evenly.
    """
    batch = min(recipe.batch_size, max(images - images % 2, 1))
    if batch % recipe.devices:
        raise TrainingError(
            f"the {images} training images make one batch of {batch}, which {recipe.devices} "
            f"devices cannot share evenly; set batch_size to at most {images} and a multiple of "
            "devices, or lower devices"
        )
    return batch // recipe.devices
