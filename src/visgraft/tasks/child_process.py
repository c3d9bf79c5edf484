"""The environment of a Python process that computes beside others.

Numbers of threads must stand in the environment before torch is imported, and two processes that
both spin while they wait for their threads slow each other down by an order of magnitude; hence
processes of their own instead of a fork, and passive waiting.
"""

import os
from pathlib import Path

import visgraft

__all__ = ["python_environment", "thread_environment"]

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


def python_environment(threads: int) -> dict[str, str]:
    """Returns the environment of a process that imports this visgraft and computes.

    Args:
        threads: CPU threads of it.
    """
    package = str(Path(visgraft.__file__).parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        **thread_environment(threads),
        "PYTHONPATH": os.pathsep.join(paths),
    }


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
