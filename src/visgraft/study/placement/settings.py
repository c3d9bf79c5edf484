"""The settings of a placement, kept in its folder so that a second call asks the same question."""

import json
from pathlib import Path
from typing import Any

import yaml

from visgraft.study.errors import StudyError
from visgraft.study.placement.plan import PlacementPlan
from visgraft.study.store import DATABASE
from visgraft.tasks.files import locked, write_atomically
from visgraft.tasks.recipe import differing_fields, dump_recipe, load_recipe
from visgraft.tasks.yaml_mapping import read_yaml_mapping

__all__ = ["RECIPE", "SETTINGS", "keep_settings"]

SETTINGS = "placement.yaml"
RECIPE = "recipe.yaml"
_HEADER = "# Written by visgraft: the settings of this placement, resolved.\n"


def keep_settings(folder: Path, plan: PlacementPlan) -> None:
    """Makes a folder that of a placement, or sees to it that it is.

    Raises:
        StudyError: It holds a placement with other settings, or something else.
    """
    path = folder / SETTINGS
    if (folder / DATABASE).exists() and not path.exists():
        raise StudyError(
            f"place: {folder} holds a study, not a placement; choose another folder (--folder)."
        )
    now = _settings(plan)
    try:
        with locked(folder):
            if not path.exists():
                write_atomically(folder / RECIPE, dump_recipe(plan.recipe).encode())
                write_atomically(path, (_HEADER + yaml.safe_dump(now, sort_keys=False)).encode())
                return
    except OSError as error:
        raise StudyError(f"place: {folder} cannot be written to: {error}.") from error
    found = _changes(path, now, plan)
    if found:
        raise StudyError(
            f"place: {folder} was begun with other settings ({'; '.join(found)}); give the same "
            "ones to go on, or another folder (--folder)."
        )


def _settings(plan: PlacementPlan) -> dict[str, Any]:
    """Returns the settings as YAML holds them."""
    wish = plan.wish
    values = {
        "block": wish.block,
        "how": wish.how,
        "start": wish.start,
        "options": wish.options,
        "candidates": {c.name: c.at for c in plan.candidates.usable},
        "survivors": plan.survivors,
        "seeds": plan.seeds,
        "screening": {
            rung.name: {"candidates": rung.candidates, "epochs": rung.epochs, "seeds": rung.seeds}
            for rung in plan.rungs
        },
        "controls": plan.controls,
        "metric": plan.metric,
        "recipe": plan.recipe.model_dump(mode="json"),
    }
    return json.loads(json.dumps(values))


def _changes(path: Path, now: dict[str, Any], plan: PlacementPlan) -> list[str]:
    """Returns what differs from the settings in a file, a phrase each."""
    try:
        before = read_yaml_mapping(path)
        recipe = load_recipe(before["recipe"])
    except (ValueError, KeyError) as error:
        raise StudyError(
            f"place: {path} cannot be read ({error}); mend it, or choose another folder."
        ) from error
    found = [
        f"recipe.{name} was {getattr(recipe, name)!r} and is {getattr(plan.recipe, name)!r}"
        for name in differing_fields(recipe, plan.recipe)
    ]
    return found + [
        f"{name} was {before.get(name)} and is {value}"
        for name, value in now.items()
        if name != "recipe" and before.get(name) != value
    ]
