"""Random streams that depend on the recipe's seed and on what they are for, and on nothing else."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["derive_seed", "random_stream", "reseed"]


def derive_seed(seed: int, *purpose: int | str) -> int:
    """Returns a 63-bit seed; those of different purposes have nothing to do with each other."""
    text = repr((seed, *purpose)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@contextmanager
def random_stream(seed: int) -> Iterator[None]:
    """Seeds ``random``, NumPy and torch inside, and leaves them outside as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    gpus = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(gpus):
        try:
            reseed(seed)
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def reseed(seed: int) -> None:
    """Seeds ``random``, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
