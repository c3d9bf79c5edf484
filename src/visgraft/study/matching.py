"""Finds the widths of a study's widened controls, and checks them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from visgraft.study.control import Control
from visgraft.study.errors import StudyError
from visgraft.study.facts import TrialFacts
from visgraft.study.plan import Study, TrialSpec, trials
from visgraft.study.pricing import count_macs, count_parameters, counted_part
from visgraft.study.widening import TOLERANCE, WideningError, widen
from visgraft.tasks.building import build_base, build_model
from visgraft.tasks.images import RunData
from visgraft.tasks.recipe import Recipe

__all__ = ["check_match", "find_widths"]


def find_widths(study: Study, data: RunData) -> Study:
    """Returns the study with the width of every widened control.

    Raises:
        StudyError: A width cannot be found; all such controls are named.
    """
    specs = {spec.variant: spec for spec in reversed(trials(study))}  # those of the first seed
    base = specs[study.baseline].recipe
    found: dict[str, Control] = {}
    problems: list[str] = []
    for name, control in study.controls.items():
        if not control.is_open:
            continue
        try:
            arguments = _find(control, base, specs[control.of], data)
            found[name] = control.model_copy(update={"model_args": arguments})
        except WideningError as error:
            problems.append(f"controls.{name}: {error}")
    if problems:
        count = f"{len(problems)} error{'s' if len(problems) > 1 else ''}"
        raise StudyError("\n  ".join([f"study {study.name}: {count}", *problems]))
    return study.model_copy(update={"controls": study.controls | found})


def check_match(study: Study, facts: Mapping[str, TrialFacts]) -> list[str]:
    """Returns a sentence for each widened control that is not as large as its variant.

    Args:
        study: With all widths.
        facts: By name of the network.
    """
    problems = []
    for name, control in study.controls.items():
        if control.kind != "widened" or name not in facts or control.of not in facts:
            continue
        own, wanted = _size(facts[name], control), _size(facts[control.of], control)
        if abs(own - wanted) > TOLERANCE * wanted:
            problems.append(
                f"controls.{name}: has {own:,} {_UNITS[control.measure]}, {control.of} has "
                f"{wanted:,}; leave model_args out to have the width found"
            )
    return problems


_UNITS = {"parameters": "parameters", "macs": "MACs"}


def _size(facts: TrialFacts, control: Control) -> int:
    return facts.params if control.measure == "parameters" else facts.macs


def _find(control: Control, base: Recipe, variant: TrialSpec, data: RunData) -> dict[str, Any]:
    """Returns the arguments that make the base network as large as the variant."""

    def size_of(model: nn.Module) -> int:
        if control.measure == "macs":
            return count_macs(model, base, data)
        return count_parameters(counted_part(model, base))

    def measure(arguments: Mapping[str, Any]) -> int:
        recipe = base.model_copy(update={"model_args": dict(arguments)})
        with torch.device("meta"):
            return size_of(build_base(recipe, data))

    target = size_of(build_model(variant.recipe, data)[0])
    return widen(base.model, base.model_args, target, measure).arguments
