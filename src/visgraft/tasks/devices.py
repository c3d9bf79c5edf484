"""Where a run computes."""

import torch

from visgraft.tasks.errors import TrainingError

__all__ = ["pick_device"]


def pick_device(device: str) -> torch.device:
    """Returns the device of a recipe's ``auto``, ``cpu`` or ``cuda``.

    Raises:
        TrainingError: There is no GPU.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise TrainingError("device is cuda, but torch sees no GPU; use device cpu or auto")
    return torch.device("cuda" if available and device != "cpu" else "cpu")
