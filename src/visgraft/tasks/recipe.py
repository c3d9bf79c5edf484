"""A recipe: everything that decides the outcome of a training run, checked before it starts.

Importing this file costs neither timm nor Lightning; names are looked up when a recipe is built.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, ValidationInfo, field_validator

from visgraft.tasks import legal_names
from visgraft.tasks.errors import RecipeError
from visgraft.tasks.graft_spec import GraftSpec
from visgraft.tasks.metric_names import TASK_METRICS, task_metrics
from visgraft.tasks.recipe_fields import RecipeFields
from visgraft.tasks.validation import sentences
from visgraft.tasks.yaml_mapping import read_yaml_mapping

__all__ = ["GraftSpec", "Recipe", "differing_fields", "dump_recipe", "list_recipes", "load_recipe"]

_CLASSIFICATION_ALONE = (
    "image_size",
    "label_smoothing",
    "mixup",
    "cutmix",
    "drop_rate",
    "crop_padding",
    "crop_scale",
    "auto_augment",
    "random_erase",
    "devices",
)
_DETECTION_ALONE = (
    "val_data",
    "images",
    "val_images",
    "detector",
    "detector_args",
    "frozen_stages",
    "frozen_norm",
    "min_size",
    "max_size",
    "scale_jitter",
)
_UNSEEN = frozenset({"workers", "loggers"})
"""Fields that do not touch the numbers: a run may go on with other values of them."""


class Recipe(RecipeFields):
    """What to train on which images, and how; the fields are also the command line's options.

    Raises:
        RecipeError: Some fields are wrong; all of them are named at once.
    """

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RecipeError("recipe", sentences(error, Recipe)) from None

    @property
    def finds_objects(self) -> bool:
        """Whether a detector learns, and not a classifier."""
        return self.task != "classification"

    @property
    def finds_masks(self) -> bool:
        """Whether the detector learns masks, too."""
        return self.task == "instance_segmentation"

    @property
    def metric(self) -> str:
        """The metric that the best checkpoint is chosen by; higher is better."""
        return task_metrics(self.task).default

    @field_validator(*_CLASSIFICATION_ALONE, *_DETECTION_ALONE)
    @classmethod
    def _belongs_to_task(cls, value: Any, info: ValidationInfo) -> Any:
        task, name = info.data.get("task"), info.field_name
        if task is None or name is None or value == cls.model_fields[name].default:
            return value
        if task == "classification" and name in _DETECTION_ALONE:
            raise ValueError("is for task detection or instance_segmentation; leave it out")
        if task != "classification" and name in _CLASSIFICATION_ALONE:
            hint = "; a detector has min_size and max_size" if name == "image_size" else ""
            raise ValueError(f"is for task classification; leave it out{hint}")
        return value

    @field_validator("detector")
    @classmethod
    def _detector_of_task(cls, detector: str | None, info: ValidationInfo) -> str | None:
        finds_masks = info.data.get("task") == "instance_segmentation"
        if info.data.get("task") in (None, "classification"):
            return detector
        if detector is None:
            return "mask_rcnn" if finds_masks else "faster_rcnn"
        if finds_masks and detector != "mask_rcnn":
            raise ValueError("must be mask_rcnn for task instance_segmentation")
        if not finds_masks and detector == "mask_rcnn":
            raise ValueError("is for task instance_segmentation")
        return detector

    @field_validator("detector_args")
    @classmethod
    def _detector_args_exist(
        cls, arguments: dict[str, Any], info: ValidationInfo
    ) -> dict[str, Any]:
        if arguments and info.data.get("detector"):
            legal_names.check_detector_args(info.data["detector"], arguments)
        return arguments

    @field_validator("max_size")
    @classmethod
    def _max_is_above_min(cls, max_size: int, info: ValidationInfo) -> int:
        if max_size < max(info.data.get("min_size", (0,))):
            raise ValueError(f"must be at least min_size ({max(info.data['min_size'])})")
        return max_size

    @field_validator("scale_jitter")
    @classmethod
    def _jitter_is_possible(cls, jitter: tuple[float, float] | None) -> tuple[float, float] | None:
        if jitter is not None and not 0 < jitter[0] <= jitter[1]:
            raise ValueError("must be two rising factors above 0, such as [0.8, 1.25]")
        return jitter

    @field_validator("warmup_updates")
    @classmethod
    def _one_warmup(cls, updates: int, info: ValidationInfo) -> int:
        if updates and info.data.get("warmup_epochs"):
            raise ValueError("cannot be given together with warmup_epochs; choose one of them")
        if updates and info.data.get("schedule_on") == "epoch":
            raise ValueError("needs schedule_on update")
        return updates

    @field_validator("model")
    @classmethod
    def _model_exists(cls, model: str) -> str:
        legal_names.check_model(model)
        return model

    @field_validator("checkpoint")
    @classmethod
    def _one_start(cls, checkpoint: str | None, info: ValidationInfo) -> str | None:
        if checkpoint and info.data.get("pretrained"):
            raise ValueError("cannot be given together with pretrained; choose one of them")
        return checkpoint

    @field_validator("optimizer")
    @classmethod
    def _optimizer_exists(cls, optimizer: str) -> str:
        legal_names.check_optimizer(optimizer)
        return optimizer

    @field_validator("opt_args")
    @classmethod
    def _opt_args_exist(cls, opt_args: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "optimizer" in info.data:
            legal_names.check_optimizer(info.data["optimizer"], opt_args)
        return opt_args

    @field_validator("schedule_args")
    @classmethod
    def _schedule_args_exist(cls, schedule_args: dict[str, Any]) -> dict[str, Any]:
        if schedule_args:
            legal_names.check_schedule_args(schedule_args)
        return schedule_args

    @field_validator("warmup_epochs")
    @classmethod
    def _warmup_ends(cls, warmup_epochs: float, info: ValidationInfo) -> float:
        epochs = info.data.get("epochs")
        if warmup_epochs and epochs and warmup_epochs >= epochs:
            raise ValueError(f"must be less than epochs ({epochs})")
        return warmup_epochs

    @field_validator("min_lr")
    @classmethod
    def _min_is_below_lr(cls, min_lr: float, info: ValidationInfo) -> float:
        if "lr" in info.data and min_lr > info.data["lr"]:
            raise ValueError(f"must be at most lr ({info.data['lr']})")
        return min_lr

    @field_validator("mixup", "cutmix")
    @classmethod
    def _mixing_takes_pairs(cls, alpha: float, info: ValidationInfo) -> float:
        if alpha and info.data.get("batch_size", 0) % 2:
            raise ValueError(
                f"mixes pairs and needs an even batch_size, not {info.data['batch_size']}"
            )
        return alpha

    @field_validator("devices")
    @classmethod
    def _devices_share_evenly(cls, devices: int, info: ValidationInfo) -> int:
        batch_size = info.data.get("batch_size")
        if batch_size is None:
            return devices
        if batch_size % devices:
            raise ValueError(f"must divide batch_size ({batch_size}) without a remainder")
        mixes = info.data.get("mixup") or info.data.get("cutmix")
        if mixes and batch_size // devices % 2:
            raise ValueError(
                f"must leave each device an even part of batch_size ({batch_size}), since mixup "
                "and cutmix mix pairs"
            )
        return devices

    @field_validator("crop_scale")
    @classmethod
    def _crop_is_possible(
        cls, scale: tuple[float, float] | None, info: ValidationInfo
    ) -> tuple[float, float] | None:
        if scale is None:
            return scale
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError("must be two rising fractions in (0, 1], such as [0.5, 1]")
        if info.data.get("crop_padding") is not None:
            raise ValueError("cannot be given together with crop_padding; choose one of them")
        return scale

    @field_validator("auto_augment")
    @classmethod
    def _policy_exists(cls, policy: str | None) -> str | None:
        if policy is not None:
            legal_names.check_auto_augment(policy)
        return policy


def list_recipes() -> list[str]:
    """Returns the names of the recipes that come with visgraft, sorted."""
    folder = files("visgraft") / "recipes"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load_recipe(source: str | Path | Mapping[str, Any] | Recipe, **overrides: Any) -> Recipe:
    """Returns the recipe of a name, a YAML file or a mapping, with some fields changed.

    Args:
        source: A name of `list_recipes`, a file, or the fields themselves. The field ``base``
            names another recipe whose fields hold where nothing else is said.
        overrides: Fields that take the place of the source's.

    Raises:
        RecipeError: There is no such recipe, or its fields are wrong (all are named at once).

    Example:
        >>> load_recipe("cpu_small", epochs=3).epochs
        3
    """
    if isinstance(source, Recipe):
        owner, values = "recipe", source.model_dump()
    elif isinstance(source, Mapping):
        owner, values = "recipe", _with_base(dict(source), Path(), ())
    else:
        owner, values = f"recipe {source}", _read(source, Path(), ())
    try:
        return Recipe(**values | overrides)
    except RecipeError as error:
        problems = _other_task(values, overrides) or error.problems
        raise RecipeError(owner, problems) from None


def dump_recipe(recipe: Recipe) -> str:
    """Returns the recipe as YAML, with every field; `load_recipe` reads it back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differing_fields(one: Recipe, other: Recipe) -> list[str]:
    """Returns the fields whose values differ, except those that do not touch the numbers."""
    fields = [name for name in Recipe.model_fields if name not in _UNSEEN]
    return [name for name in fields if getattr(one, name) != getattr(other, name)]


def _other_task(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    """Returns what to say to someone who wants another task than the recipe is for."""
    task, wanted = _task(values), overrides.get("task")
    if wanted == task or wanted not in TASK_METRICS:
        return []
    fitting = [name for name in list_recipes() if _task(_read(name, Path(), ())) == wanted]
    return [f"task: is for {task}, not for {wanted}; recipes for that: {', '.join(fitting)}"]


def _task(values: Mapping[str, Any]) -> str:
    return values.get("task", Recipe.model_fields["task"].default)


def _read(source: str | Path, folder: Path, seen: tuple[str, ...]) -> dict[str, Any]:
    """Reads a recipe by name or path (relative to ``folder``) and those that it builds on."""
    if str(source) in list_recipes():
        path = Path(str(files("visgraft") / "recipes" / f"{source}.yaml"))
    else:
        path = folder / source
        if not path.is_file():
            names = list_recipes()
            hint = legal_names.nearest(str(source), names)
            raise RecipeError(
                f"recipe {source}", [f"is neither a file nor one of {', '.join(names)}{hint}"]
            )
    if str(path) in seen:
        raise RecipeError(
            f"recipe {seen[0]}", [f"base: {' -> '.join([*seen, str(path)])} is a circle"]
        )
    try:
        values = read_yaml_mapping(path)
    except ValueError as error:
        raise RecipeError(f"recipe {source}", [str(error)]) from error
    return _with_base(values, path.parent, (*seen, str(path)))


def _with_base(values: dict[str, Any], folder: Path, seen: tuple[str, ...]) -> dict[str, Any]:
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str | Path):
        raise RecipeError("recipe", [f"base: must be a name or a file, got {base!r}"])
    return _read(base, folder, seen) | values
