"""Processes that a study starts: their environment, and their end."""

import os
import sys

import torch

from visgraft.tasks.child_process import python_environment, thread_environment

__all__ = ["child_environment", "end_with_the_driver", "thread_environment"]


def child_environment(threads: int, lane: int = 0, devices: int = 1) -> dict[str, str]:
    """Returns the environment of a process that computes with so many threads.

    Args:
        threads: CPU threads of it.
        lane: Which of the processes that run at a time; each sees GPUs of its own, in turn.
        devices: GPUs that each sees.
    """
    environment = python_environment(threads)
    if count := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        gpus = visible.split(",") if visible else [str(gpu) for gpu in range(count)]
        first = lane % max(1, len(gpus) // devices) * devices
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : first + devices])
    return environment


def end_with_the_driver() -> None:
    """Ends this process at once when the other end of standard input closes.

    At once is safe: whatever is on disk must bear a loss of power anyway.
    """
    os.read(sys.stdin.fileno(), 1)
    os._exit(0)
