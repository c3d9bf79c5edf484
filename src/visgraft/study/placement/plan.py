"""What a placement will do: which places, how they are screened, and what is trained in the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from visgraft.study.errors import StudyError
from visgraft.study.placement.candidates import Candidate, Candidates, find_candidates
from visgraft.study.placement.halving import Rung, final_seeds, plan_rungs, rung_recipe_changes
from visgraft.study.plan import Study, load_study
from visgraft.tasks.graft_spec import GraftSpec
from visgraft.tasks.images import load_images
from visgraft.tasks.recipe import Recipe, load_recipe
from visgraft.tasks.validation import sentences

__all__ = ["PlacementPlan", "plan_placement"]

SURVIVORS = 3


@dataclass(frozen=True)
class PlacementPlan:
    """A placement before anything is trained.

    Attributes:
        wish: The graft, its place left open.
        recipe: Of the final study; the rungs train by it for fewer epochs.
        candidates: All places, with their price.
        rungs: Of the screening.
        survivors: How many places come to the final study.
        seeds: Of the final study.
        controls: Of the final study.
        metric: That decides.
        eta: Of the halving.
        at: The places that were named; none where they follow from the network.
    """

    wish: GraftSpec
    recipe: Recipe
    candidates: Candidates
    rungs: tuple[Rung, ...]
    survivors: int
    seeds: tuple[int, ...]
    controls: tuple[str, ...]
    metric: str
    eta: int
    at: tuple[tuple[str, ...], ...] = ()

    @property
    def title(self) -> str:
        """What is asked, a phrase."""
        return f"Where to put {self.wish.block} in {self.recipe.model}"

    @property
    def by_name(self) -> dict[str, Candidate]:
        """All candidates, those that cannot be grafted included."""
        return {candidate.name: candidate for candidate in self.candidates.found}

    @property
    def final_epochs(self) -> int:
        """Epochs of all training runs of the final study."""
        networks = 1 + self.survivors * (1 + len(self.controls))
        return networks * len(self.seeds) * self.recipe.epochs

    @property
    def total_epochs(self) -> int:
        """Epochs of all training runs, screening and final study."""
        return self.final_epochs + sum(rung.total_epochs for rung in self.rungs)

    @property
    def exhaustive_epochs(self) -> int:
        """Epochs of the final study, had all candidates been in it."""
        networks = 1 + len(self.candidates.usable) * (1 + len(self.controls))
        return networks * len(self.seeds) * self.recipe.epochs

    def screening_study(self, rung: Rung, names: Sequence[str]) -> Study:
        """Returns the study of a rung."""
        changes = rung_recipe_changes(
            rung.epochs,
            self.recipe.epochs,
            warmup_epochs=self.recipe.warmup_epochs,
            warmup_updates=self.recipe.warmup_updates,
        )
        title = f"{self.title}, screening, rung {rung.number} of {len(self.rungs)}"
        return self._study(title, load_recipe(self.recipe, **changes), names, rung.seeds, ())

    def final_study(self, names: Sequence[str]) -> Study:
        """Returns the study of the survivors."""
        return self._study(self.title, self.recipe, names, self.seeds, self.controls)

    def _study(
        self,
        title: str,
        recipe: Recipe,
        names: Sequence[str],
        seeds: Sequence[int],
        controls: Sequence[str],
    ) -> Study:
        grafts = {
            name: self.wish.model_copy(update={"at": self.by_name[name].at}).model_dump()
            for name in names
        }
        fields = {
            "name": title,
            "recipe": recipe,
            "variants": {name: {"grafts": [graft]} for name, graft in grafts.items()},
            "controls": list(controls),
            "seeds": list(seeds),
            "metric": self.metric,
        }
        return load_study(fields)


def plan_placement(
    block: str,
    *,
    recipe: str | Path | Mapping[str, Any] | Recipe = "cpu_small",
    at: Sequence[str | Sequence[str]] = (),
    how: Literal["replace", "after", "parallel"] | None = None,
    start: Literal["identity", "paper"] = "identity",
    options: Mapping[str, Any] | None = None,
    survivors: int | None = None,
    seeds: int = 5,
    screening_seeds: int = 2,
    eta: int = 2,
    controls: Sequence[str] = (),
    metric: str = "",
    **overrides: Any,
) -> PlacementPlan:
    """Lists the places where a block can go in a network, and how they will be compared.

    Args:
        block: Name in the catalogue.
        recipe: How the networks of the final study are trained, as `load_recipe` takes it.
        at: Places to compare, each as `visgraft.graft` takes it; by default they are derived from
            the network.
        how: As `visgraft.graft` takes it.
        start: The same.
        options: Of the block.
        survivors: Places in the final study; by default 3, or all where there are fewer.
        seeds: How many the final study has.
        screening_seeds: How many each rung of the screening has.
        eta: One of so many places survives a rung, and the next is so many times as long; 2 or 3.
        controls: Of the final study: ``"widened"``, ``"identity"``.
        metric: That decides; by default the task's own.
        overrides: Fields of the recipe, such as ``model``, ``data`` and ``epochs``.

    Raises:
        StudyError: The question makes no sense; nothing was written.
        RecipeError: The recipe is wrong.
        DataError: The images cannot be used.

    Example:
        >>> plan = plan_placement("coord_attention", model="resnet10_small", data="fashion_mini")
        >>> [candidate.name for candidate in plan.candidates.usable]
        ['stage1', 'stage2', 'stage3', 'stage4', 'all']
        >>> [(rung.candidates, rung.epochs) for rung in plan.rungs]
        [(5, 2)]
    """
    wish = _wish(block, how, start, options or {})
    places = tuple((one,) if isinstance(one, str) else tuple(one) for one in at)
    chosen = final_seeds(seeds)
    least = 1 if survivors is None else survivors
    plan_rungs(least, least, 1, seeds=screening_seeds, eta=eta)
    resolved = load_recipe(recipe, **overrides)
    load_study(
        {
            "recipe": resolved,
            "variants": {"place": {"grafts": [wish.model_dump()]}},
            "controls": list(controls),
            "metric": metric,
        }
    )
    data = load_images(resolved, progress=False)
    found = find_candidates(
        resolved, data, lambda patterns: wish.model_copy(update={"at": patterns}), places
    )
    usable = found.usable
    if not usable:
        reasons = "; ".join(f"{c.name}: {c.reason}" for c in found.found)
        raise StudyError(
            f"place: {block} fits none of the {len(found.found)} candidates ({reasons})."
        )
    wanted = min(SURVIVORS, len(usable)) if survivors is None else survivors
    rungs = plan_rungs(len(usable), wanted, resolved.epochs, seeds=screening_seeds, eta=eta)
    return PlacementPlan(
        wish=wish,
        recipe=resolved,
        candidates=found,
        rungs=rungs,
        survivors=wanted,
        seeds=chosen,
        controls=tuple(controls),
        metric=metric,
        eta=eta,
        at=places,
    )


def _wish(block: str, how: Any, start: Any, options: Mapping[str, Any]) -> GraftSpec:
    """Returns the graft, its place left open.

    Raises:
        StudyError: It cannot be.
    """
    try:
        fields = {"block": block, "at": "*", "how": how, "start": start, "options": dict(options)}
        return GraftSpec(**fields)
    except ValidationError as error:
        raise StudyError(f"place: {'; '.join(sentences(error, GraftSpec))}.") from None
    except LookupError as error:
        raise StudyError(f"place: {error}.") from None
