"""The global generators of random numbers, lent to one piece of work and put back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.random import mtrand

__all__ = ["seeded_generators"]

# NumPy's global generator is lent this one: copying its own state would take ten times as long.
_numpy_stream = np.random.MT19937(0)


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seeds the three global generators inside, and leaves them outside as they were."""
    python_state = random.getstate()
    numpy_generator = mtrand.get_bit_generator()
    torch_state = torch.default_generator.get_state()
    try:
        random.seed(seed)
        mtrand.set_bit_generator(_numpy_stream)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python_state)
        mtrand.set_bit_generator(numpy_generator)
        torch.default_generator.set_state(torch_state)
