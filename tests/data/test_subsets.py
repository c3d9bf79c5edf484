"""Properties of splits and subsets, for any names and labels."""

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from visgraft.data._subsets import balanced_subset, split_by_fraction

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def names_of(labels: list[int]) -> list[str]:
    return [f"{label}/{index}" for index, label in enumerate(labels)]


@given(LABELS, st.floats(0.01, 0.99), st.integers(0, 3))
def test_a_split_is_stratified(labels: list[int], fraction: float, seed: int) -> None:
    train, val = split_by_fraction(names_of(labels), labels, fraction, seed)
    assert sorted(train + val) == list(range(len(labels)))
    held_out = Counter(labels[index] for index in val)
    for label, count in Counter(labels).items():
        wanted = min(max(count * fraction, 1), count - 1)
        assert abs(held_out[label] - wanted) <= 0.5 + 1e-9


@given(LABELS, st.integers(1, 70), st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_subset_is_balanced_and_blind_to_order(
    labels: list[int], limit: int, seed: int, shuffler: Random
) -> None:
    names = names_of(labels)
    chosen = balanced_subset(names, labels, limit, seed)
    assert len(chosen) == min(limit, len(labels))
    assert chosen == sorted(set(chosen))
    total, kept = Counter(labels), Counter(labels[index] for index in chosen)
    fullest = max(kept.values())
    assert all(kept[label] >= min(fullest - 1, total[label]) for label in total)
    pairs = list(zip(names, labels, strict=True))
    shuffler.shuffle(pairs)
    again = balanced_subset([p[0] for p in pairs], [p[1] for p in pairs], limit, seed)
    assert {pairs[index][0] for index in again} == {names[index] for index in chosen}


@given(LABELS, st.integers(1, 60), st.integers(1, 60))
def test_a_larger_subset_contains_a_smaller_one(labels: list[int], a: int, b: int) -> None:
    small, large = (
        set(balanced_subset(names_of(labels), labels, limit, 0)) for limit in sorted((a, b))
    )
    assert small <= large
