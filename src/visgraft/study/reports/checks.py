"""Was the comparison fair? Asked of the digests and counts that every trial recorded."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visgraft.study.reports.data import StudyData

__all__ = ["Check", "check_fairness"]


_DECISIVE = {"visgraft", "torch", "timm", "torchvision", "cpu_capability", "gpu", "threads"}
"""Facts of an environment that may move the numbers."""


@dataclass(frozen=True)
class Check:
    """One condition of a fair comparison.

    Attributes:
        name: The condition.
        passed: Whether it holds; ``None`` while too little is recorded to say.
        finding: What was found, a sentence.
    """

    name: str
    passed: bool | None
    finding: str


def check_fairness(data: "StudyData") -> tuple[Check, ...]:
    """Returns the checks of a study, in the order in which a reader wants them."""
    starts = {
        (t.variant, t.seed): t.init_digest
        for t in data.trials
        if t.init_digest and t.variant not in data.other_networks
    }
    orders = {(t.variant, t.seed): t.order_digest for t in data.trials if t.order_digest}
    return (
        _same_within_seeds("Same start", "initial weights outside the grafts", starts),
        _same_within_seeds("Same data order", "order of the training images", orders),
        _seeds_differ(starts, orders),
        _same_budget(data),
        _same_environment(data),
        *([_same_numbers(data)] if data.frozen else ()),
    )


def _same_within_seeds(name: str, what: str, digests: Mapping[tuple[str, int], str]) -> Check:
    by_seed = _by_seed(digests)
    shared = {seed: found for seed, found in by_seed.items() if len(found) > 1}
    wrong = [seed for seed, found in shared.items() if len(set(found.values())) > 1]
    if wrong:
        return Check(name, False, f"The {what} differ between variants of {_seeds(wrong)}.")
    if not shared:
        return Check(name, None, f"No seed has two trials yet whose {what} could be compared.")
    one = next(iter(next(iter(shared.values())).values()))
    where = "the one seed" if len(shared) == 1 else f"each of {len(shared)} seeds"
    return Check(
        name,
        True,
        f"Within {where}, all variants have the same {what} "
        f"({_seeds([next(iter(shared))])}: {one[:12]}).",
    )


def _seeds_differ(
    starts: Mapping[tuple[str, int], str], orders: Mapping[tuple[str, int], str]
) -> Check:
    name = "Seeds differ"
    distinct = [
        {seed: next(iter(found.values())) for seed, found in _by_seed(digests).items()}
        for digests in (starts, orders)
    ]
    count = max(map(len, distinct))
    if count < 2:
        return Check(name, None, "Fewer than two seeds have started.")
    differing = [
        what
        for what, found in zip(("initial weights", "data order"), distinct, strict=True)
        if len(found) == count and len(set(found.values())) == count
    ]
    if not differing:
        return Check(name, False, "Some seeds share initial weights and data order: they repeat.")
    return Check(name, True, f"All {count} seeds differ in {' and '.join(differing)}.")


def _same_budget(data: "StudyData") -> Check:
    name = "Same budget"
    epochs = sorted({t.epochs for t in data.trials if t.status == "finished"})
    if not epochs:
        return Check(name, None, "No trial has finished.")
    if len(epochs) > 1:
        return Check(name, False, f"Finished trials have {_listed(epochs)} epochs.")
    return Check(name, True, f"Every finished trial has {epochs[0]} epochs of the same recipe.")


def _same_environment(data: "StudyData") -> Check:
    name = "Same environment"
    if not data.environments:
        return Check(name, None, "No trial has started.")
    first, *others = data.environments
    differing = {
        key
        for other in others
        for key in first.keys() | other.keys()
        if first.get(key) != other.get(key)
    }
    if differing & _DECISIVE:
        listed = _listed(sorted(differing & _DECISIVE))
        return Check(name, False, f"Trials ran in {len(others) + 1} environments, by {listed}.")
    rest = f" ({_listed(sorted(differing))} differ)" if differing else ""
    return Check(name, True, f"All trials ran with the same versions and kind of device{rest}.")


def _same_numbers(data: "StudyData") -> Check:
    """Blocks that cannot learn should change nothing; a GPU may add noise of its own."""
    name = "Identity control"
    values = data.values
    gaps = [
        abs(values[control, seed] - values[data.baseline, seed])
        for control in data.frozen
        for seed in data.seeds
        if (control, seed) in values and (data.baseline, seed) in values
    ]
    if not gaps:
        return Check(name, None, "No identity control has finished together with the baseline.")
    if max(gaps) == 0:
        pairs = "pair is" if len(gaps) == 1 else "pairs are"
        return Check(name, True, f"{len(gaps)} {pairs} equal to the last digit.")
    return Check(
        name,
        None,
        f"Blocks that cannot learn differ from the baseline by up to {max(gaps):.3g}: so much is "
        "noise of the device or of the insertion; differences of variants of that size mean "
        "nothing.",
    )


def _by_seed(digests: Mapping[tuple[str, int], str]) -> dict[int, dict[str, str]]:
    found: dict[int, dict[str, str]] = {}
    for (variant, seed), digest in digests.items():
        found.setdefault(seed, {})[variant] = digest
    return found


def _seeds(seeds: list[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {_listed(seeds[:8])}"


def _listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))
