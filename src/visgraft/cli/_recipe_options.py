"""One command-line option for each field of a recipe."""

import argparse
from argparse import ArgumentParser, Namespace
from typing import Any

__all__ = ["add_recipe_options", "recipe_options"]

_PREFIX = "recipe_"


def add_recipe_options(parser: ArgumentParser, *, without: tuple[str, ...] = ()) -> None:
    """Adds ``--some-field VALUE`` for each field; lists and mappings are given as YAML.

    Without pydantic none is added, and the command says what to install instead of running.
    """
    try:
        from visgraft.tasks.recipe import Recipe
    except ModuleNotFoundError:
        parser.set_defaults(missing="pydantic")
        return
    group = parser.add_argument_group("fields of the recipe")
    for name, field in Recipe.model_fields.items():
        if name in without:
            continue
        settings: dict[str, Any] = {"metavar": "VALUE"}
        if field.annotation is bool:
            settings = {"action": argparse.BooleanOptionalAction}
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=_PREFIX + name,
            default=argparse.SUPPRESS,
            help=(field.description or "").replace("%", "%%"),
            **settings,
        )


def recipe_options(args: Namespace) -> dict[str, Any]:
    """Returns the fields that were given, ``none`` as None."""
    given = {k.removeprefix(_PREFIX): v for k, v in vars(args).items() if k.startswith(_PREFIX)}
    return {k: None if v in ("none", "null") and k != "schedule" else v for k, v in given.items()}
