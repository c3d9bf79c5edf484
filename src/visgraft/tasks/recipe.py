"""A recipe: everything that decides the outcome of a training run, checked before it starts.

Importing this file costs neither timm nor Lightning; names are looked up when a recipe is built.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator

from visgraft.tasks import legal_names
from visgraft.tasks.errors import RecipeError
from visgraft.tasks.validation import Checked, sentences
from visgraft.tasks.yaml_mapping import parse_yaml, read_yaml_mapping

__all__ = ["GraftSpec", "Recipe", "differing_fields", "dump_recipe", "list_recipes", "load_recipe"]

_UNSEEN = frozenset({"workers", "loggers"})
"""Fields that do not touch the numbers: a run may go on with other values of them."""


def _from_text(value: Any) -> Any:
    """Reads a value that a command line passed as text, such as ``{eps: 1e-6}``."""
    return parse_yaml(value) if isinstance(value, str) else value


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str | Mapping) else value


def _split_words(value: Any) -> Any:
    words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
    return () if words in (None, [], ["none"], ["csv"]) else words


def _as_path_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


Arguments = Annotated[dict[str, Any], BeforeValidator(_from_text)]
PathText = Annotated[str, BeforeValidator(_as_path_text), Field(min_length=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Chance = Annotated[float, Field(ge=0, le=1)]


class GraftSpec(Checked):
    """One graft of a recipe, with the arguments of `visgraft.graft`."""

    block: str = Field(description="Name of a block in the catalogue.")
    at: Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)] = Field(
        description="Where: path patterns (layer4.*.conv2) or site kinds (stage4/conv3x3)."
    )
    how: Literal["replace", "after", "parallel"] | None = Field(
        None, description="replace, after or parallel; None takes the habit of the block's role."
    )
    start: Literal["identity", "paper"] = Field(
        "identity",
        description="identity computes at first what the network computed before; paper takes the "
        "paper's own initialisation.",
    )
    strict: bool = Field(
        True, description="Whether a site that the block does not fit is an error or left out."
    )
    options: Arguments = Field({}, description="Arguments of the block beside its channels.")
    learns: bool = Field(
        True, description="Whether training changes the graft's own parameters; no freezes them."
    )

    @field_validator("options")
    @classmethod
    def _options_exist(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "block" in info.data:
            legal_names.check_block(info.data["block"], options)
        return options

    @field_validator("block")
    @classmethod
    def _block_exists(cls, block: str) -> str:
        legal_names.check_block(block, {})
        return block


class Recipe(Checked):
    """What to train on which images, and how; the fields are also the command line's options.

    Raises:
        RecipeError: Some fields are wrong; all of them are named at once.
    """

    task: Literal["classification"] = Field(
        "classification", description="What the network learns to do."
    )
    # Data.
    data: PathText = Field(
        description="fashion_mini, or a folder of images: train/ and val/ (or test/) with a folder "
        "per class each, or the class folders alone."
    )
    val_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Part of the images, 0 to 1, for validation where the folder has no split.",
    )
    split_seed: int = Field(0, ge=0, description="Seed of that split.")
    on_bad_image: Literal["error", "skip"] = Field(
        "error", description="What to do about a file that cannot be read as an image."
    )
    train_limit: int | None = Field(
        None, gt=0, description="Train on this many images, balanced over the classes."
    )
    val_limit: int | None = Field(
        None, gt=0, description="Validate on this many images, balanced over the classes."
    )
    # Network.
    model: str = Field(description="Name of a network in timm's registry, visgraft's included.")
    model_args: Arguments = Field({}, description="Further arguments of the network's constructor.")
    pretrained: bool = Field(False, description="Start from timm's pretrained weights (download).")
    checkpoint: PathText | None = Field(
        None, description="Start from the weights in this file (safetensors, .pth or .ckpt)."
    )
    image_size: int | None = Field(
        None,
        gt=0,
        description="Side in pixels of the square images that the network sees; None takes the "
        "pretrained network's own, else the data's.",
    )
    channels_last: bool = Field(
        False, description="Keep the channels of an image next to each other in memory."
    )
    grafts: Annotated[
        tuple[GraftSpec, ...], BeforeValidator(_as_tuple), BeforeValidator(_from_text)
    ] = Field((), description="Blocks to put into the network, in this order: block, at, ...")
    # Optimisation.
    epochs: int = Field(10, gt=0, description="Passes over the training images.")
    batch_size: int = Field(64, gt=0, description="Images per update.")
    optimizer: str = Field("adamw", description="Name of an optimizer of timm.")
    lr: float = Field(1e-3, gt=0, description="Highest learning rate, per update.")
    weight_decay: float = Field(
        0.05, ge=0, description="Weight decay of all weights except biases and normalisation."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum, for optimizers that have one.")
    opt_args: Arguments = Field({}, description="Further arguments of the optimizer.")
    schedule: Literal[legal_names.SCHEDULES] = Field(  # pyright: ignore[reportInvalidTypeForm]
        "cosine", description="How the learning rate changes over the run; a schedule of timm."
    )
    schedule_on: Literal["update", "epoch"] = Field(
        "update", description="Whether the learning rate moves after every update or every epoch."
    )
    schedule_args: Arguments = Field({}, description="Further arguments of the schedule.")
    warmup_epochs: float = Field(
        0.0, ge=0, description="Epochs, or a part of one, in which the learning rate rises."
    )
    min_lr: float = Field(0.0, ge=0, description="Lowest learning rate of the schedule.")
    clip_grad: float | None = Field(
        None, gt=0, description="Largest norm of the gradient; a longer one is scaled down to it."
    )
    # Regularisation and augmentation.
    label_smoothing: Rate = Field(
        0.0, description="Probability, 0 to 1, that the target spreads over all classes."
    )
    mixup: float = Field(0.0, ge=0, description="Mixup's alpha; 0 is off.")
    cutmix: float = Field(0.0, ge=0, description="CutMix' alpha; 0 is off.")
    drop_rate: Rate = Field(0.0, description="Dropout before the classifier, 0 to 1.")
    drop_path_rate: Rate = Field(0.0, description="Stochastic depth, 0 to 1.")
    hflip: Chance = Field(0.5, description="Probability, 0 to 1, of mirroring left and right.")
    crop_padding: int | None = Field(
        None,
        ge=0,
        description="Pad the image by so many pixels and cut it to size at random; None takes an "
        "eighth of the side for small images.",
    )
    crop_scale: tuple[float, float] | None = Field(
        None,
        description="Cut out a part of the image, of an area between these fractions of it; None "
        "takes 0.08 to 1 for large images.",
    )
    auto_augment: str | None = Field(None, description="A policy of timm, such as rand-m9-mstd0.5.")
    color_jitter: float = Field(
        0.0, ge=0, description="Strength of random brightness, contrast and saturation."
    )
    random_erase: Chance = Field(0.0, description="Probability, 0 to 1, of erasing a rectangle.")
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Keep a moving average of the weights with this decay, and evaluate and "
        "deliver that instead of the last weights.",
    )
    # Machine.
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="fp32, or bf16 for mixed precision with bfloat16."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto takes the GPU where there is one."
    )
    workers: int = Field(0, ge=0, description="Processes that load images; 0 loads in this one.")
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seed of weights, data order and augmentation."
    )
    loggers: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow"], ...], BeforeValidator(_split_words)
    ] = Field(
        ("tensorboard",),
        description="Where metrics go beside metrics.csv, which is always written: tensorboard, "
        "wandb, mlflow or none.",
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RecipeError("recipe", sentences(error, Recipe)) from None

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
        raise RecipeError(owner, error.problems) from None


def dump_recipe(recipe: Recipe) -> str:
    """Returns the recipe as YAML, with every field; `load_recipe` reads it back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differing_fields(one: Recipe, other: Recipe) -> list[str]:
    """Returns the fields whose values differ, except those that do not touch the numbers."""
    fields = [name for name in Recipe.model_fields if name not in _UNSEEN]
    return [name for name in fields if getattr(one, name) != getattr(other, name)]


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
