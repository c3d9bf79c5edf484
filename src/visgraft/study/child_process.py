"""Processes that a study starts: their environment, and their end.

Numbers of threads must stand in the environment before torch is imported, and two processes that
both spin while they wait for their threads slow each other down by an order of magnitude; hence
processes of their own instead of a fork, and passive waiting.
"""

import os
import sys
from pathlib import Path

import torch

import visgraft

__all__ = ["child_environment", "end_with_the_driver", "thread_environment"]

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
# glibc would give large tensors back to the kernel after each operation and fetch them anew,
# page by page: a training step of resnet10_small takes 15 % less time without that.
_ALLOCATOR = (
    "glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=4294967296:"
    "glibc.malloc.top_pad=268435456"
)


def child_environment(threads: int, lane: int = 0) -> dict[str, str]:
    """Returns the environment of a process that computes with so many threads.

    Args:
        threads: CPU threads of it.
        lane: Which of the processes that run at a time; each sees one GPU, in turn.
    """
    package = str(Path(visgraft.__file__).parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        **thread_environment(threads),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    if count := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        gpus = visible.split(",") if visible else [str(gpu) for gpu in range(count)]
        environment["CUDA_VISIBLE_DEVICES"] = gpus[lane % len(gpus)]
    return environment


def thread_environment(threads: int) -> dict[str, str]:
    """Returns the variables that bring about so many threads, passive waiting, and the allocator.

    An allocator that this process was started with stays.

    Args:
        threads: CPU threads of the process.
    """
    return {
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", _ALLOCATOR),
        **dict.fromkeys(_THREAD_VARIABLES, str(threads)),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "KMP_BLOCKTIME": "0",
    }


def end_with_the_driver() -> None:
    """Ends this process at once when the other end of standard input closes.

    At once is safe: whatever is on disk must bear a loss of power anyway.
    """
    os.read(sys.stdin.fileno(), 1)
    os._exit(0)
