"""The meaning of ``at``: path patterns, kinds, stages and predicates."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from visgraft.surgery.sites import KINDS, Site, Survey

__all__ = ["At", "select"]

Item = str | Callable[[Site], bool]
At = Item | Sequence[Item]
STAGE = re.compile(r"stage(\d+)/(.+)")


def select(survey: Survey, at: At) -> list[Site]:
    """Returns the sites that ``at`` names, each layer once, in the order in which they are run.

    Raises:
        ValueError: An item of ``at`` names nothing; the text says what there is.
    """
    items: list[Any] = list(at) if isinstance(at, (list, tuple)) else [at]
    if not items or not all(isinstance(item, str) or callable(item) for item in items):
        raise ValueError(
            "graft: at must be a path pattern, a site kind, 'stage<n>/' and one of the two, a "
            f"predicate on Site, or a list of them, got {at!r}"
        )
    found: dict[str, Site] = {}
    for item in items:
        if isinstance(item, str):
            sites = _named(survey, item)
        else:
            sites = [site for site in survey.sites if item(site)]
        if not sites:
            raise ValueError(_nothing(survey, item))
        for site in sites:
            found.setdefault(site.path, site)
    calls = survey.run.calls
    return sorted(found.values(), key=lambda s: calls[s.path][0].end)


def _named(survey: Survey, text: str) -> list[Site]:
    staged = STAGE.fullmatch(text)
    name = staged[2] if staged else text
    if name in KINDS:
        sites = [s for s in survey.sites if s.kind == name]
    else:
        sites = [s for p in _outermost(survey, name) if (s := survey.at_path(p)) is not None]
    return [s for s in sites if staged is None or s.stage == int(staged[1])]


def _matches(survey: Survey, pattern: str) -> list[str]:
    """Returns the first names of the modules of which some name matches."""
    return [
        names[0]
        for names in survey.run.names.values()
        if names[0] not in survey.run.opaque and any(n and fnmatchcase(n, pattern) for n in names)
    ]


def _outermost(survey: Survey, pattern: str) -> list[str]:
    """Returns the matching layers that give a map and are not inside another such layer."""
    matches = [p for p in _matches(survey, pattern) if survey.at_path(p) is not None]
    return [p for p in matches if not any(p.startswith(f"{outer}.") for outer in matches)]


def _nothing(survey: Survey, item: Item) -> str:
    """Returns the sentence for an item of ``at`` that names nothing."""
    counts = Counter(site.kind for site in survey.sites)
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if kind in counts) or "none"
    there_is = f"sites of this model: {kinds}"
    if counts:
        there_is += f" in stages {', '.join(map(str, sorted({s.stage for s in survey.sites})))}"
    if not isinstance(item, str):
        return f"graft: the predicate at={item!r} accepts no site; {there_is}"
    staged = STAGE.fullmatch(item)
    pattern = staged[2] if staged else item
    silent = _matches(survey, pattern)
    if silent and not _outermost(survey, pattern):
        path = silent[0]
        why = "returns no map (B, C, H, W)" if path in survey.run.calls else "is never called"
        return f"graft: at={item!r} names {path!r}, which {why} when the model runs; {there_is}"
    paths = [p for p in survey.run.calls if p and p not in survey.run.opaque]
    near = get_close_matches(pattern, [*KINDS, *paths], n=3)
    if pattern in KINDS or silent:
        hint = ""
    elif near:
        hint = f"; nearest: {', '.join(near)}"
    else:
        tops = [p for p in paths if "." not in p]
        hint = f"; top-level layers: {', '.join(tops[:8])}"
    return f"graft: at={item!r} matches nothing{hint}; {there_is}"
