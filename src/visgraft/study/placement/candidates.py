"""Where a block could go in a network: the places that are worth a comparison, and their price."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from visgraft.blocks import block_info
from visgraft.study.errors import StudyError
from visgraft.study.placement.network import NetworkMap, last_block, map_network
from visgraft.study.pricing import count_macs, count_parameters
from visgraft.surgery._select import select
from visgraft.surgery.sites import KINDS, Site, Survey, survey
from visgraft.tasks.building import add_grafts, build_base, network_of, resolve_input
from visgraft.tasks.graft_spec import GraftSpec
from visgraft.tasks.images import RunData
from visgraft.tasks.recipe import Recipe

__all__ = ["Candidate", "Candidates", "Proposal", "derive_places", "find_candidates"]

_KIND_WORDS = {
    "block_end": "block ends",
    "conv3x3": "3 x 3 convolutions",
    "downsample": "strided convolutions",
    "stage_end": "stage ends",
}
_LONGEST_NAME = 64
Proposal = tuple[tuple[str, ...], str, list[Site]]
"""Patterns of a place, the place in words, its sites."""


@dataclass(frozen=True)
class Candidate:
    """A place, or several at once, for a block.

    Attributes:
        name: Short, the name of the variant in the studies.
        at: What `visgraft.graft` takes.
        words: The place for a reader.
        paths: Of the layers.
        blocks: Indices in the map of the blocks that the layers belong to.
        params: Of the grafted network; None where the graft is impossible.
        macs: The same, for one image.
        reason: Why the block cannot go there, or why the place is not compared; empty if it is.
    """

    name: str
    at: tuple[str, ...]
    words: str
    paths: tuple[str, ...]
    blocks: tuple[int, ...]
    params: int | None = None
    macs: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Candidates:
    """All places that were thought of.

    Attributes:
        network: Its blocks.
        found: The candidates, in the order of the network.
        params: Of the network without a block.
        macs: The same, for one image.
    """

    network: NetworkMap
    found: tuple[Candidate, ...]
    params: int
    macs: int

    @property
    def usable(self) -> tuple[Candidate, ...]:
        """Those that the block fits."""
        return tuple(c for c in self.found if not c.reason)


def find_candidates(
    recipe: Recipe,
    data: RunData,
    wish: Callable[[tuple[str, ...]], GraftSpec],
    at: Sequence[tuple[str, ...]] = (),
) -> Candidates:
    """Lists the places in the network of a recipe, tries the graft at each, and prices it.

    Without ``at``: the places of the block's habit (block ends for gates, 3 x 3 convolutions for
    mixers, strided ones for downsampling blocks), stage by stage and in all stages, each time in
    all blocks and in the last one alone. The stem of a residual network counts for strided
    convolutions only.

    Args:
        recipe: Of the network without grafts.
        data: That it learns from.
        wish: Returns the graft for patterns of places.
        at: Patterns of the candidates, instead.

    Raises:
        StudyError: A pattern names nothing, or there is no candidate.
    """
    model = build_base(recipe, data)
    size = resolve_input(recipe, data).size
    bare = network_of(model, recipe)
    try:
        found = survey("place", bare, (2, data.in_chans, *size))
    except ValueError as error:
        cause = str(error).partition("; pass example=")[0]
        raise StudyError(f"{cause}; another image_size in the recipe may help") from error
    proposed = _given(found, at) if at else derive_places(found, wish(("*",)), recipe.model)
    extra = [site for _, _, sites in proposed.values() for site in sites]
    network = map_network(found, extra)
    params, macs = count_parameters(model), count_macs(model, recipe, data)
    candidates: list[Candidate] = []
    for name, (patterns, words, sites) in proposed.items():
        paths = tuple(site.path for site in sites)
        blocks = tuple(dict.fromkeys(network.index_of(path) for path in paths))
        one = Candidate(name, patterns, words, paths, blocks)
        twin = next((c.name for c in candidates if set(c.paths) == set(paths)), None)
        if twin:
            candidates.append(replace(one, reason=f"the same layers as {twin}"))
            continue
        grafted = recipe.model_copy(update={"grafts": (wish(patterns),)})
        try:
            grafts = add_grafts(model, grafted, data)
        except ValueError as error:
            candidates.append(replace(one, reason=_reason(error)))
            continue
        candidates.append(
            replace(one, params=count_parameters(model), macs=count_macs(model, grafted, data))
        )
        for graft in reversed(grafts):
            graft.undo()
    return Candidates(network, tuple(candidates), params, macs)


def _given(found: Survey, at: Sequence[tuple[str, ...]]) -> dict[str, Proposal]:
    """Returns the candidates that the caller named."""
    proposed: dict[str, Proposal] = {}
    for patterns in at:
        try:
            sites = select(found, patterns)
        except ValueError as error:
            raise StudyError(f"place: {_reason(error)}") from error
        name = _unlike("+".join(map(_slug, patterns))[:_LONGEST_NAME], proposed)
        proposed[name] = (patterns, ", ".join(patterns), sites)
    return proposed


def derive_places(found: Survey, wish: GraftSpec, model: str) -> dict[str, Proposal]:
    """Returns the candidates that follow from a network and a block's habit, by name.

    Args:
        found: The network and its sites.
        wish: The graft, its place left open.
        model: Name of the network, for the error.

    Raises:
        StudyError: There is none.
    """
    kind = _kind(wish)
    sites = [site for site in found.sites if site.kind == kind]
    if any(site.kind == "block_end" for site in found.sites) and kind != "downsample":
        sites = [site for site in sites if site.stage > 0]
    if not sites:
        others = [k for k in KINDS if any(site.kind == k for site in found.sites)]
        has = f"it has {', '.join(_KIND_WORDS[k] for k in others)}" if others else "it has no sites"
        raise StudyError(
            f"place: {wish.block} goes to {_KIND_WORDS[kind]}, and {model} has none outside its "
            f"stem ({has}); name places with at (--at), or another how (--how)"
        )
    network = map_network(found)
    stages = {site.stage: [s for s in sites if s.stage == site.stage] for site in sites}
    ends = {stage: last_block(network, own) for stage, own in stages.items()}
    words = _KIND_WORDS[kind]
    proposed: dict[str, Proposal] = {}
    for stage, own in stages.items():
        name, where = f"stage{stage}", f"of stage {stage}"
        if stage == 0 and network.residual:
            name, where = "stem", "of the stem"
        end = ends[stage]
        if len(end) < len(own):
            last = tuple(site.path for site in end)
            proposed[f"{name}_last"] = (last, f"{words} {where}, last block", end)
        proposed[name] = ((f"stage{stage}/{kind}",), f"{words} {where}", own)
    if len(stages) > 1:
        if any(len(ends[stage]) < len(own) for stage, own in stages.items()):
            every = [site for end in ends.values() for site in end]
            last = tuple(site.path for site in every)
            proposed["all_last"] = (last, f"{words} of the last block of every stage", every)
        all_stages = tuple(f"stage{stage}/{kind}" for stage in stages)
        proposed["all"] = (all_stages, f"all {words}", sites)
    return proposed


def _kind(wish: GraftSpec) -> str:
    """Returns the kind of places that a block goes to."""
    role = block_info(wish.block).role
    if wish.how == "after" or (role == "gate" and wish.how is None):
        return "block_end"
    return "downsample" if role == "downsample" else "conv3x3"


def _slug(pattern: str) -> str:
    """Returns a pattern as a part of a name: ``layer4.x.conv2``, ``stage4-conv3x3``."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", pattern.replace("*", "x")).strip("-._") or "x"


def _unlike(name: str, taken: dict[str, Proposal]) -> str:
    """Returns the name, or one with a number where it is taken in any capitals."""
    lowered = {other.lower() for other in taken} | {"baseline"}
    found, count = name, 1
    while found.lower() in lowered:
        count += 1
        found = f"{name[: _LONGEST_NAME - 4]}-{count}"
    return found


def _reason(error: ValueError) -> str:
    """Returns why a graft is impossible, without the advice to whoever calls it."""
    return str(error).removeprefix("graft: ").removesuffix("; strict=False leaves these out")
