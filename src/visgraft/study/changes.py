"""What of a study may change once trials have begun, and what stays."""

from visgraft.study.control import Control
from visgraft.study.plan import Study, Variant
from visgraft.tasks.recipe import differing_fields

__all__ = ["begun_part", "changes", "keep_widths"]


def changes(old: Study, new: Study) -> list[str]:
    """Returns what makes the trials of ``old`` useless for ``new``, a phrase each.

    More variants, controls and seeds do not, nor do the name and the metric.
    """
    found = [
        f"recipe.{field} was {getattr(old.recipe, field)!r} and is {getattr(new.recipe, field)!r}"
        for field in differing_fields(old.recipe, new.recipe)
    ]
    if old.baseline != new.baseline:
        found.append(f"baseline was {old.baseline!r} and is {new.baseline!r}")
    for group in ("variants", "controls"):
        now = getattr(new, group)
        for name, was in getattr(old, group).items():
            if name not in now:
                found.append(f"{group}.{name} is missing")
            elif was != now[name]:
                found.append(f"{group}.{name} was {_short(was)} and is {_short(now[name])}")
    lost = [str(seed) for seed in old.seeds if seed not in new.seeds]
    if lost:
        found.append(f"seeds {', '.join(lost)} are missing")
    return found


def begun_part(study: Study, begun: frozenset[tuple[str, int]]) -> Study:
    """Returns a study without the variants, controls and seeds that no trial was begun of.

    A variant that a begun control was matched to stays.
    """
    names = {name for name, _ in begun}
    seeds = {seed for _, seed in begun}
    controls = {name: c for name, c in study.controls.items() if name in names}
    names |= {control.of for control in controls.values()}
    return study.model_copy(
        update={
            "variants": {name: v for name, v in study.variants.items() if name in names},
            "controls": controls,
            "seeds": tuple(seed for seed in study.seeds if seed in seeds),
        }
    )


def keep_widths(old: Study, new: Study) -> Study:
    """Returns ``new`` with the widths that ``old`` has found for the same controls."""
    if differing_fields(old.recipe, new.recipe):
        return new
    kept: dict[str, Control] = {}
    for name, control in new.controls.items():
        known = old.controls.get(name)
        same_variant = old.variants.get(control.of) == new.variants[control.of]
        if control.is_open and known and same_variant:
            filled = control.model_copy(update={"model_args": known.model_args})
            kept[name] = filled if filled == known else control
    return new.model_copy(update={"controls": new.controls | kept})


def _short(part: Variant | Control) -> str:
    return str(part.model_dump(mode="json", exclude_defaults=True))
