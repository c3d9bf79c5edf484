"""Successive halving: cheap looks at many candidates, longer ones at those that did well.

Paper: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
    Optimization", AISTATS 2016, https://arxiv.org/abs/1502.07943, algorithm 1 (here with a budget
    in epochs that is tied to the full one, a share ``1 / eta`` that goes on, and an end before a
    single one is left).

The rule, for n candidates, K survivors, a full budget of E epochs and ``eta`` of 2 or 3:

1. Of c candidates in a rung, ``max(K, ceil(c / eta))`` go on. There are as many rungs, R, as it
   takes to come to K; none where n = K.
2. Rung r trains for ``floor(E / eta^(R - r + 1))`` epochs: the last one for E / eta, each one
   before for an ``eta``-th of the next. That must be at least one epoch.
3. The seeds of rung r are ``1000 r``, ``1000 r + 1``, ...; those of the final study are 0, 1, ....
   No two rungs and no rung and the final study share one: who was lucky is not lucky again.
4. Candidates are ranked by the mean paired difference to the baseline of the same rung; of equal
   ones the one with fewer parameters comes first, then the order of the network decides. One
   without a number comes last.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from visgraft.study.errors import StudyError

__all__ = ["Rung", "final_seeds", "plan_rungs", "rank", "rung_recipe_changes"]

ETAS = (2, 3)
SEED_STEP = 1000
"""Seeds of a rung begin at its number times this."""


@dataclass(frozen=True)
class Rung:
    """One round of screening.

    Attributes:
        number: From 1.
        candidates: How many enter.
        survivors: How many go on.
        epochs: Of each training run.
        seeds: Of each candidate and the baseline.
    """

    number: int
    candidates: int
    survivors: int
    epochs: int
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"rung{self.number}"

    @property
    def total_epochs(self) -> int:
        """Epochs of all its training runs, those of the baseline included."""
        return (self.candidates + 1) * len(self.seeds) * self.epochs


def plan_rungs(
    candidates: int, survivors: int, epochs: int, *, seeds: int = 2, eta: int = 2
) -> tuple[Rung, ...]:
    """Returns the rounds of screening by the rule in the module's header.

    Args:
        candidates: That can be grafted.
        survivors: For the final study.
        epochs: Of the final study.
        seeds: Of each rung.
        eta: One of so many goes on, and the next rung is so many times as long.

    Raises:
        StudyError: There are fewer candidates than survivors, or too few epochs for a first rung.

    Example:
        >>> [(rung.candidates, rung.survivors, rung.epochs) for rung in plan_rungs(10, 3, 8)]
        [(10, 5, 2), (5, 3, 4)]
    """
    if eta not in ETAS:
        raise StudyError(f"place: eta must be 2 or 3, got {eta}.")
    if not 1 <= seeds <= SEED_STEP:
        raise StudyError(f"place: screening_seeds must be 1 to {SEED_STEP}, got {seeds}.")
    if survivors < 1:
        raise StudyError(f"place: survivors must be at least 1, got {survivors}.")
    if survivors > candidates:
        raise StudyError(
            f"place: {survivors} survivors are more than the {candidates} candidates that can be "
            "grafted; ask for fewer."
        )
    counts = [candidates]
    while counts[-1] > survivors:
        counts.append(max(survivors, math.ceil(counts[-1] / eta)))
    rounds = len(counts) - 1
    if epochs < eta**rounds:
        raise StudyError(
            f"place: {candidates} candidates come down to {survivors} in {rounds} "
            f"{'rung' if rounds == 1 else 'rungs'}, which takes a recipe of at least "
            f"{eta**rounds} epochs, got {epochs}; train longer, or let more survive."
        )
    return tuple(
        Rung(
            number=number,
            candidates=counts[number - 1],
            survivors=counts[number],
            epochs=epochs // eta ** (rounds - number + 1),
            seeds=tuple(SEED_STEP * number + i for i in range(seeds)),
        )
        for number in range(1, rounds + 1)
    )


def final_seeds(count: int) -> tuple[int, ...]:
    """Returns the seeds of the final study, which no rung has.

    Raises:
        StudyError: So few give no verdict, or so many would meet those of the screening.
    """
    if not 2 <= count <= SEED_STEP:
        raise StudyError(
            f"place: seeds must be 2 to {SEED_STEP}, got {count}; a verdict rests on the spread "
            "over seeds."
        )
    return tuple(range(count))


def rank(
    differences: Mapping[str, float | None],
    params: Mapping[str, int | None],
    *,
    higher_is_better: bool = True,
) -> list[str]:
    """Returns the candidates, best first.

    Args:
        differences: Mean paired difference to the baseline; None or NaN where there is none. The
            order of the network.
        params: Of each grafted network, by the same names.
        higher_is_better: The direction of the metric.

    Example:
        >>> rank({"a": 0.1, "b": None, "c": 0.4}, {"a": 1, "b": 1, "c": 1})
        ['c', 'a', 'b']
    """

    def key(name: str) -> tuple[float, int]:
        difference = differences[name]
        worth = math.nan if difference is None else difference
        worst_first = -worth if higher_is_better else worth
        return (math.inf if math.isnan(worst_first) else worst_first, params[name] or 0)

    return sorted(differences, key=key)


def rung_recipe_changes(
    epochs: int, full_epochs: int, *, warmup_epochs: float, warmup_updates: int
) -> dict[str, float | int]:
    """Returns what a rung changes in the recipe: its length, and its warm-up in proportion."""
    share = epochs / full_epochs
    changes: dict[str, float | int] = {"epochs": epochs}
    if warmup_epochs:
        changes["warmup_epochs"] = warmup_epochs * share
    if warmup_updates:
        changes["warmup_updates"] = max(1, round(warmup_updates * share))
    return changes
