"""Numbers of a verdict in words."""

from collections.abc import Sequence

__all__ = ["listed", "number", "size"]


def number(value: float, unit: str) -> str:
    """Returns a difference with its sign."""
    return f"{value:+.2f} {unit}".rstrip()


def size(differences: Sequence[float], unit: str) -> str:
    """Returns how large: "a difference of 0.52 points", "differences of 0.52 to 0.90 points"."""
    low, high = f"{min(differences):.2f}", f"{max(differences):.2f}"
    words = f"a difference of {low}" if low == high else f"differences of {low} to {high}"
    return f"{words} {unit}".rstrip()


def listed(seeds: Sequence[int]) -> str:
    """Returns at most six seeds, then a count."""
    shown = ", ".join(map(str, seeds[:6]))
    return shown if len(seeds) <= 6 else f"{shown} and {len(seeds) - 6} more"
