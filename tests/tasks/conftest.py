"""A recipe and images so small that an epoch takes a tenth of a second."""

from collections.abc import Callable
from typing import Any

import pytest

from visgraft.data import ImageData
from visgraft.tasks.images import load_images
from visgraft.tasks.recipe import Recipe

TINY: dict[str, Any] = {
    "data": "fashion_mini",
    "train_limit": 120,
    "val_limit": 60,
    "model": "resnet10_small",
    "model_args": {"channels": [4, 8, 8, 16]},
    "epochs": 2,
    "batch_size": 24,
    "lr": 0.01,
    "loggers": [],
}

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def make_recipe() -> MakeRecipe:
    """Makes the tiny recipe with some fields changed."""
    return lambda **changes: Recipe(**TINY | changes)


@pytest.fixture(scope="session")
def images() -> ImageData:
    """The images of the tiny recipe."""
    return load_images(Recipe(**TINY), progress=False)
