"""Recipes and the tasks that a network learns by them; each name is imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visgraft.tasks.building import InputSpec, build_model, resolve_input, weights_digest
    from visgraft.tasks.classification import ClassificationTask
    from visgraft.tasks.errors import (
        CheckpointError,
        RecipeError,
        TrainingError,
        TrainingInterrupted,
    )
    from visgraft.tasks.evaluation import evaluate, load_trained
    from visgraft.tasks.prediction import predict
    from visgraft.tasks.recipe import GraftSpec, Recipe, dump_recipe, list_recipes, load_recipe
    from visgraft.tasks.training import TrainResult, train

__all__ = [
    "CheckpointError",
    "ClassificationTask",
    "GraftSpec",
    "InputSpec",
    "Recipe",
    "RecipeError",
    "TrainResult",
    "TrainingError",
    "TrainingInterrupted",
    "build_model",
    "dump_recipe",
    "evaluate",
    "list_recipes",
    "load_recipe",
    "load_trained",
    "predict",
    "resolve_input",
    "train",
    "weights_digest",
]

_HOMES = {
    "building": ("InputSpec", "build_model", "resolve_input", "weights_digest"),
    "classification": ("ClassificationTask",),
    "errors": ("CheckpointError", "RecipeError", "TrainingError", "TrainingInterrupted"),
    "evaluation": ("evaluate", "load_trained"),
    "prediction": ("predict",),
    "recipe": ("GraftSpec", "Recipe", "dump_recipe", "list_recipes", "load_recipe"),
    "training": ("TrainResult", "train"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
