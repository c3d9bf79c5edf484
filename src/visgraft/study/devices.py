"""How the cores and GPUs of this machine are shared out among the trials of a study."""

import torch

from visgraft.study.errors import StudyError
from visgraft.study.plan import Study, trials

__all__ = ["check_devices", "check_threads", "most_workers"]


def check_devices(study: Study) -> None:
    """Makes sure that this machine has the GPUs of one trial.

    Raises:
        StudyError: It has fewer.
    """
    gpus, devices = torch.cuda.device_count(), study.recipe.devices
    if _is_on_gpu(study) and gpus < devices:
        raise StudyError(
            f"study: a trial trains on {devices} GPUs (devices: {devices}), and this machine has "
            f"{gpus}; lower devices, or set device to cpu."
        )


def check_threads(study: Study, threads: int | None) -> None:
    """Makes sure that a trial has a thread for each of its devices.

    Raises:
        StudyError: It has not.
    """
    devices = study.recipe.devices
    if threads is not None and threads < devices:
        raise StudyError(
            f"study: a trial trains on {devices} devices, each with a thread at least; threads "
            f"must be {devices} or more, got {threads}."
        )


def most_workers(study: Study, cores: int) -> int:
    """Returns how many trials make sense at a time, at least 1.

    Args:
        study: Says on how many devices a trial trains.
        cores: Of this machine.
    """
    places = torch.cuda.device_count() if _is_on_gpu(study) else cores
    return min(max(1, places // study.recipe.devices), len(trials(study)))


def _is_on_gpu(study: Study) -> bool:
    return study.recipe.device != "cpu" and torch.cuda.is_available()
