"""A study: one recipe, one data set, variants of one network, several seeds; checked before a run.

What may differ between variants is the network alone. A field that touches training belongs to
the recipe, which all variants share, so that no difference can come from it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from visgraft.study.control import Control, can_be_frozen, expand
from visgraft.study.errors import StudyError
from visgraft.tasks.errors import RecipeError
from visgraft.tasks.legal_names import check_model, nearest
from visgraft.tasks.metric_names import TASK_METRICS, task_metrics
from visgraft.tasks.recipe import GraftSpec, Recipe, load_recipe
from visgraft.tasks.validation import Checked, sentences
from visgraft.tasks.yaml_mapping import parse_yaml, read_yaml_mapping

__all__ = [
    "Study",
    "TrialSpec",
    "Variant",
    "list_studies",
    "load_study",
    "trial_spec",
    "trials",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_NETWORK = ("model", "model_args")
_SHORTCUTS = ("data", *_NETWORK)
"""Fields of the recipe that may also stand at the top of a study."""


class Variant(Checked):
    """What one variant changes in the network; a single graft may be given without ``grafts``.

    Attributes:
        grafts: Blocks to put into the network, in this order.
        model: Another network than the recipe's.
        model_args: Arguments of the network's constructor, on top of the recipe's.
    """

    grafts: tuple[GraftSpec, ...] = ()
    model: str | None = None
    model_args: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _expand_single_graft(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return {} if value is None else value
        if _is_single_graft(value):
            graft = {name: content for name, content in value.items() if name not in _NETWORK}
            network = {name: content for name, content in value.items() if name in _NETWORK}
            return {"grafts": [graft], **network}
        return value

    @model_validator(mode="after")
    def _says_something(self) -> "Variant":
        if not self.model_fields_set:
            raise ValueError(
                "says nothing; give a block and at, or grafts, or model ('grafts: []' makes a "
                "second baseline)"
            )
        return self

    @field_validator("model")
    @classmethod
    def _model_exists(cls, model: str | None) -> str | None:
        if model is not None:
            check_model(model)
        return model


def _as_seeds(value: Any) -> Any:
    """Turns a number of seeds, or the text of a command line, into the seeds."""
    if isinstance(value, str):
        value = parse_yaml(value)
    if isinstance(value, bool):
        raise ValueError("must be a number of seeds or a list of seeds")
    if isinstance(value, int):
        if value < 1:
            raise ValueError("must be at least 1")
        return tuple(range(value))
    return value


def _as_recipe(value: Any) -> Any:
    """Loads a recipe given by name, file or fields."""
    return load_recipe(value) if isinstance(value, str | Path | Mapping) else value


class Study(Checked):
    """A fair comparison: every variant and the baseline, trained with every seed.

    Attributes:
        name: Title of the report.
        recipe: How every trial is trained; in a file the name of a recipe, or a mapping of its
            fields in which ``base`` may name one. ``data``, ``model`` and ``model_args`` may also
            stand at the top of the study.
        variants: What each changes in the network, by name.
        controls: Networks that a variant must beat besides the baseline, by name.
        baseline: Name of the trials without any change.
        seeds: The seeds, or how many: ``3`` means 0, 1, 2.
        metric: The metric that decides, of the last epoch, on the validation images; by default
            the task's own (top1, AP, mask_AP).
    """

    name: Annotated[str, Field(min_length=1)] = "study"
    recipe: Annotated[Recipe, BeforeValidator(_as_recipe)]
    variants: dict[str, Variant]
    controls: dict[str, Control] = Field(default_factory=dict)
    baseline: Annotated[str, Field(validate_default=True)] = "baseline"
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**32, strict=True)], ...],
        BeforeValidator(_as_seeds),
        Field(min_length=1),
    ] = (0, 1, 2)
    metric: Annotated[str, Field(validate_default=True)] = ""

    @model_validator(mode="before")
    @classmethod
    def _gather_recipe(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not value.keys() & set(_SHORTCUTS):
            return value
        overrides = {name: value[name] for name in _SHORTCUTS if name in value}
        others = {name: content for name, content in value.items() if name not in overrides}
        return {**others, "recipe": _override(value.get("recipe", {}), overrides)}

    @field_validator("recipe")
    @classmethod
    def _leaves_room_for_trials(cls, recipe: Recipe) -> Recipe:
        if recipe.grafts:
            raise ValueError("grafts belong to the variants; the baseline has none")
        if recipe.seed:
            raise ValueError("seed is set by the study; list the seeds under seeds")
        return recipe

    @field_validator("variants", mode="before")
    @classmethod
    def _names_fit_folders(cls, variants: Any) -> Any:
        if not isinstance(variants, Mapping):
            raise ValueError("must be 'name: change' lines")
        if not variants:
            raise ValueError("there must be at least one beside the baseline")
        for name in variants:
            _check_name(name)
        lowered = [name.lower() for name in variants]
        twice = [name for name in variants if lowered.count(name.lower()) > 1]
        if twice:
            raise ValueError(f"{' and '.join(twice)} differ only in capitals; rename one")
        return variants

    @field_validator("controls", mode="before")
    @classmethod
    def _expand_controls(cls, controls: Any, info: ValidationInfo) -> Any:
        return expand(controls, info.data["variants"]) if "variants" in info.data else {}

    @field_validator("controls")
    @classmethod
    def _controls_fit(cls, controls: dict[str, Control], info: ValidationInfo) -> Any:
        variants: dict[str, Variant] = info.data.get("variants", {})
        taken = {name.lower() for name in variants}
        for name, control in controls.items():
            _check_name(name)
            if name.lower() in taken:
                raise ValueError(f"the name {name!r} is taken; choose another one")
            taken.add(name.lower())
            if control.of not in variants:
                hint = nearest(control.of, variants)
                raise ValueError(f"{name}: there is no variant {control.of!r}{hint}")
            if control.kind == "identity" and not can_be_frozen(variants[control.of]):
                raise ValueError(
                    f"{name}: {control.of} is not the base network with grafts, so there is no "
                    "identity control of it"
                )
            recipe = info.data.get("recipe")
            if control.kind == "widened" and recipe and (recipe.pretrained or recipe.checkpoint):
                raise ValueError(
                    f"{name}: the recipe starts from trained weights, which a wider network cannot "
                    "take; leave the control out, or train from random weights"
                )
        return controls

    @field_validator("baseline")
    @classmethod
    def _baseline_is_no_variant(cls, baseline: str, info: ValidationInfo) -> str:
        _check_name(baseline)
        others = (*info.data.get("variants", ()), *info.data.get("controls", ()))
        if baseline.lower() in (name.lower() for name in others):
            raise ValueError(
                f"there is a variant {baseline!r}; the trials without grafts have this name, "
                "rename the variant or set baseline"
            )
        return baseline

    @field_validator("metric")
    @classmethod
    def _metric_is_of_the_task(cls, metric: str, info: ValidationInfo) -> str:
        recipe: Recipe | None = info.data.get("recipe")
        tasks = [task_metrics(recipe.task)] if recipe else list(TASK_METRICS.values())
        if not metric:
            return tasks[0].default
        legal = list(dict.fromkeys(name for task in tasks for name in task.metrics))
        if metric not in legal:
            whose = f" ({recipe.task})" if recipe else ""
            raise ValueError(
                f"must be one of {', '.join(legal)}{whose}, got {metric!r}{nearest(metric, legal)}"
            )
        return metric

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("must differ from each other")
        return seeds


@dataclass(frozen=True)
class TrialSpec:
    """One training run of a study.

    Attributes:
        variant: Name of the variant, or of the baseline.
        seed: One of the study's seeds.
        recipe: What to train, the variant's network and the seed filled in.
    """

    variant: str
    seed: int
    recipe: Recipe


def trials(study: Study) -> list[TrialSpec]:
    """Returns the training runs of a study, in the order in which they are taken up.

    All networks of a seed come before the next seed, so that early results are already paired.
    """
    names = (study.baseline, *study.variants, *study.controls)
    return [trial_spec(study, name, seed) for seed in study.seeds for name in names]


def trial_spec(study: Study, name: str, seed: int) -> TrialSpec:
    """Returns the training run of one network of a study, the baseline included, with a seed."""
    variant = _network(study, name)
    network = {
        "grafts": variant.grafts,
        "model": variant.model or study.recipe.model,
        "model_args": study.recipe.model_args | (variant.model_args or {}),
    }
    return TrialSpec(name, seed, study.recipe.model_copy(update={**network, "seed": seed}))


def _network(study: Study, name: str) -> Variant:
    """Returns what a network changes; nothing for a control as long as its width is open."""
    control = study.controls.get(name)
    if control is None:
        return study.variants.get(name, Variant(grafts=()))
    if control.kind == "widened":
        return Variant(model_args=control.model_args or {})
    frozen = {"start": "identity", "learns": False}
    grafts = study.variants[control.of].grafts
    return Variant(grafts=tuple(graft.model_copy(update=frozen) for graft in grafts))


def list_studies() -> list[str]:
    """Returns the names of the studies that come with visgraft, sorted."""
    folder = files("visgraft") / "recipes" / "studies"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load_study(source: str | Path | Mapping[str, Any] | Study, **overrides: Any) -> Study:
    """Returns the study of a name, a YAML file or a mapping, with some fields changed.

    Args:
        source: A name of `list_studies`, a file, or the fields themselves.
        overrides: Fields of the study or of its recipe that take the place of the source's.

    Raises:
        StudyError: There is no such study, or it is wrong; all errors are named at once, each
            with its place.

    Example:
        >>> load_study("demo", seeds=5, epochs=2).seeds
        (0, 1, 2, 3, 4)
    """
    if isinstance(source, Study):
        owner, values = "study", source.model_dump()
    elif isinstance(source, Mapping):
        owner, values = "study", dict(source)
    else:
        owner, values = f"study {source}", _read(source)
    for_recipe = {n: v for n, v in overrides.items() if n not in Study.model_fields}
    values |= {n: v for n, v in overrides.items() if n in Study.model_fields}
    if for_recipe:
        values = {n: v for n, v in values.items() if n not in for_recipe}
        values["recipe"] = _override(values.get("recipe", {}), for_recipe)
    try:
        return Study(**values)
    except ValidationError as error:
        problems = _problems(error, values)
        count = f"{len(problems)} error{'s' if len(problems) > 1 else ''}"
        raise StudyError("\n  ".join([f"{owner}: {count}", *problems])) from None


def _is_single_graft(value: Mapping[str, Any]) -> bool:
    return "grafts" not in value and bool(value.keys() & GraftSpec.model_fields.keys())


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise ValueError(f"the name {name!r} is no text; put it in quotes")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be the name of a folder; use letters, digits and . _ + -, at most 64"
        )


def _override(recipe: Any, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe given by name, file, fields or object as fields, some of them changed."""
    if isinstance(recipe, Recipe):
        recipe = recipe.model_dump()
    return (dict(recipe) if isinstance(recipe, Mapping) else {"base": recipe}) | dict(overrides)


def _read(source: str | Path) -> dict[str, Any]:
    """Reads the fields of a shipped study or of a file."""
    names = list_studies()
    if str(source) in names:
        path = Path(str(files("visgraft") / "recipes" / "studies" / f"{source}.yaml"))
    else:
        path = Path(source)
        if not path.is_file():
            raise StudyError(
                f"study {source} is neither a file nor one of {', '.join(names)}"
                f"{nearest(str(source), names)}"
            )
    try:
        values = read_yaml_mapping(path)
    except ValueError as error:
        raise StudyError(f"study {error}") from error
    recipe = values.get("recipe")
    if isinstance(recipe, str) and (path.parent / recipe).is_file():
        values["recipe"] = str(path.parent / recipe)
    return values


def _problems(error: ValidationError, values: Mapping[str, Any]) -> list[str]:
    """Returns one sentence for each thing that is wrong, starting with its place in the file."""
    problems = []
    for detail, sentence in zip(error.errors(), sentences(error, Study), strict=True):
        place = detail["loc"]
        name = str(place[-1])
        where = _locate(place, values)
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, RecipeError):
            owner = "recipe." if cause.owner == "recipe" else f"{cause.owner}: "
            problems += [owner + problem for problem in cause.problems]
        elif detail["type"] == "extra_forbidden" and name in Recipe.model_fields:
            problems.append(
                f"{where}: a variant may change the network only; set recipe.{name}, which all "
                "variants share"
                if place[0] == "variants"
                else f"{where}: there is no such field at the top; set recipe.{name}"
            )
        else:
            written = ".".join(str(step) for step in place)
            problems.append(where + sentence.removeprefix(written))
    return problems


def _locate(place: tuple[str | int, ...], values: Mapping[str, Any]) -> str:
    """Writes a place as it stands in the file: ``variants.cot.grafts[0].at``."""
    if place[0] == "variants" and len(place) > 3:
        variants = values["variants"]
        if isinstance(variants, Mapping) and _is_single_graft(variants[place[1]]):
            place = (*place[:2], *place[4:])
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return "".join(steps).removeprefix(".")
