"""The digests behind a fair comparison, seed by seed: who started alike, who saw what order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visgraft.study.reports.data import StudyData

__all__ = ["LISTED", "SeedDigest", "SeedRow", "seed_rows"]

LISTED = 40
"""So many seeds at most are listed; the digests of all trials are in trials.csv."""


@dataclass(frozen=True)
class SeedDigest:
    """One digest of a seed.

    Attributes:
        digest: In full.
        networks: Names of those that have it.
        others: Other seeds that have it, too.
    """

    digest: str
    networks: tuple[str, ...]
    others: tuple[int, ...]

    @property
    def short(self) -> str:
        """Its first twelve digits."""
        return self.digest[:12]


@dataclass(frozen=True)
class SeedRow:
    """What is known of one seed.

    Attributes:
        seed: The seed.
        starts: Digests of the initial weights outside the grafts; one, if the seed is fair.
        own: Networks of another shape, which cannot start from these weights, with their digests.
        orders: Digests of the order of the training images; one, if the seed is fair.
    """

    seed: int
    starts: tuple[SeedDigest, ...]
    own: tuple[SeedDigest, ...]
    orders: tuple[SeedDigest, ...]


def seed_rows(data: "StudyData") -> tuple[SeedRow, ...]:
    """Returns a row for each seed of which a trial has started."""
    starts: dict[int, dict[str, list[str]]] = {}
    own: dict[int, dict[str, list[str]]] = {}
    orders: dict[int, dict[str, list[str]]] = {}
    for trial in data.trials:
        if trial.init_digest:
            group = own if trial.variant in data.other_networks else starts
            _note(group, trial.seed, trial.init_digest, trial.variant)
        if trial.order_digest:
            _note(orders, trial.seed, trial.order_digest, trial.variant)
    seeds_of = [_seeds_by_digest(group) for group in (starts, own, orders)]
    begun = starts.keys() | own.keys() | orders.keys()
    return tuple(
        SeedRow(
            seed,
            *(
                _digests(group.get(seed, {}), seed, seeds)
                for group, seeds in zip((starts, own, orders), seeds_of, strict=True)
            ),
        )
        for seed in data.seeds
        if seed in begun
    )


def _note(group: dict[int, dict[str, list[str]]], seed: int, digest: str, network: str) -> None:
    group.setdefault(seed, {}).setdefault(digest, []).append(network)


def _seeds_by_digest(group: Mapping[int, Mapping[str, Sequence[str]]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for seed, digests in group.items():
        for digest in digests:
            found.setdefault(digest, []).append(seed)
    return found


def _digests(
    found: Mapping[str, Sequence[str]], seed: int, seeds: Mapping[str, Sequence[int]]
) -> tuple[SeedDigest, ...]:
    return tuple(
        SeedDigest(digest, tuple(names), tuple(s for s in seeds[digest] if s != seed))
        for digest, names in found.items()
    )
