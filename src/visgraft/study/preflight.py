"""Builds every network of a study once, so that a mistake costs seconds and not hours."""

from visgraft.data import ImageData
from visgraft.study.errors import StudyError
from visgraft.study.facts import gather_facts
from visgraft.study.plan import Study, TrialSpec, trials
from visgraft.tasks.building import build_model

__all__ = ["preflight"]


def preflight(study: Study, data: ImageData) -> None:
    """Builds the network of each variant as its first trial will.

    Raises:
        StudyError: Some cannot be built; all of them are named, each with its place in the study.
    """
    baseline, *variants = trials(study)[: len(study.variants) + 1]
    problems = _problems(baseline, "recipe", data)
    if not problems:  # else all others would fail for the same reason
        for spec in variants:
            problems += _problems(spec, f"variants.{spec.variant}", data)
    if problems:
        count = f"{len(problems)} error{'s' if len(problems) > 1 else ''}"
        raise StudyError("\n  ".join([f"study {study.name}: {count}", *problems]))


def _problems(spec: TrialSpec, place: str, data: ImageData) -> list[str]:
    try:
        gather_facts(spec.recipe, data)
    except (ValueError, KeyError) as error:
        return [f"{place}{_failing_graft(spec, data)}: {error}"]
    return []


def _failing_graft(spec: TrialSpec, data: ImageData) -> str:
    """Returns which of several grafts is the first that fails, as ``.grafts[i]``."""
    grafts = spec.recipe.grafts
    for count in range(1, len(grafts) + 1) if len(grafts) > 1 else ():
        try:
            build_model(spec.recipe.model_copy(update={"grafts": grafts[:count]}), data)
        except (ValueError, KeyError):
            return f".grafts[{count - 1}]"
    return ""
