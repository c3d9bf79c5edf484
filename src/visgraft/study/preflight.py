"""Builds every network of a study once, so that a mistake costs seconds and not hours."""

from visgraft.study.errors import StudyError
from visgraft.study.facts import TrialFacts, gather_facts
from visgraft.study.matching import check_match
from visgraft.study.plan import Study, TrialSpec, trials
from visgraft.tasks.building import build_model
from visgraft.tasks.images import RunData

__all__ = ["preflight"]


def preflight(study: Study, data: RunData) -> None:
    """Builds the network of each variant and control as its first trial will.

    Raises:
        StudyError: Some cannot be built; all of them are named, each with its place in the study.
    """
    baseline, *others = trials(study)[: 1 + len(study.variants) + len(study.controls)]
    facts: dict[str, TrialFacts] = {}
    problems = _problems(baseline, "recipe", data, facts)
    if not problems:  # else all others would fail for the same reason
        for spec in others:
            group = "controls" if spec.variant in study.controls else "variants"
            problems += _problems(spec, f"{group}.{spec.variant}", data, facts)
        problems += check_match(study, facts)
    if problems:
        count = f"{len(problems)} error{'s' if len(problems) > 1 else ''}"
        raise StudyError("\n  ".join([f"study {study.name}: {count}", *problems]))


def _problems(
    spec: TrialSpec, place: str, data: RunData, facts: dict[str, TrialFacts]
) -> list[str]:
    """Returns what is wrong with a network, or notes its facts."""
    try:
        facts[spec.variant] = gather_facts(spec.recipe, data)
    except (ValueError, KeyError) as error:
        return [f"{place}{_failing_graft(spec, data)}: {error}"]
    return []


def _failing_graft(spec: TrialSpec, data: RunData) -> str:
    """Returns which of several grafts is the first that fails, as ``.grafts[i]``."""
    grafts = spec.recipe.grafts
    for count in range(1, len(grafts) + 1) if len(grafts) > 1 else ():
        try:
            build_model(spec.recipe.model_copy(update={"grafts": grafts[:count]}), data)
        except (ValueError, KeyError):
            return f".grafts[{count - 1}]"
    return ""
