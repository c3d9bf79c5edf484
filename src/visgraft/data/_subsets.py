"""Choosing images by the hash of their names: the same everywhere, whatever order a disk lists.

A hash gives each name a fixed place in a random order, so that adding a file to a folder moves
hardly any other file between training and validation, and a larger subset contains a smaller one.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

__all__ = ["balanced_subset", "split_by_fraction"]


def split_by_fraction(
    names: Sequence[str], labels: Sequence[int], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Returns the indices for training and, ``fraction`` of each class, for validation.

    Each class gives at least one image to each part; a class of one image gives it to training.
    """
    val: list[int] = []
    for members in _shuffled_classes(names, labels, f"split {seed}"):
        wanted = max(1, int(len(members) * fraction + 0.5))
        val += members[: min(wanted, len(members) - 1)]
    held_out = set(val)
    return [index for index in range(len(names)) if index not in held_out], sorted(val)


def balanced_subset(
    names: Sequence[str], labels: Sequence[int], limit: int, seed: int
) -> list[int]:
    """Returns the indices of at most ``limit`` images, as evenly over the classes as they allow."""
    turns = [
        (turn, position, index)
        for position, members in enumerate(_shuffled_classes(names, labels, f"subset {seed}"))
        for turn, index in enumerate(members)
    ]
    return sorted(index for _, _, index in sorted(turns)[:limit])


def _shuffled_classes(names: Sequence[str], labels: Sequence[int], salt: str) -> list[list[int]]:
    """Returns the indices of each class in the order of the hashes of their names."""
    members: defaultdict[int, list[tuple[bytes, int]]] = defaultdict(list)
    for index, (name, label) in enumerate(zip(names, labels, strict=True)):
        text = f"{salt}/{name}".encode("utf-8", "surrogateescape")
        members[label].append((hashlib.blake2b(text, digest_size=16).digest(), index))
    return [[index for _, index in sorted(members[label])] for label in sorted(members)]
