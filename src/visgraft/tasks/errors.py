"""The complaints of this room; each text says what to change."""

from collections.abc import Sequence

__all__ = ["CheckpointError", "RecipeError", "TrainingError", "TrainingInterrupted"]


class RecipeError(ValueError):
    """A recipe is wrong; the text has one line per error.

    Args:
        owner: Which recipe, for the first line.
        problems: One sentence per error, each starting with the field.
    """

    def __init__(self, owner: str, problems: Sequence[str]) -> None:
        self.owner = owner
        self.problems = tuple(problems)
        count = f"{len(problems)} error{'s' if len(problems) > 1 else ''}"
        super().__init__("\n  ".join([f"{owner}: {count}", *problems]))

    def __reduce__(self) -> tuple[type["RecipeError"], tuple[str, tuple[str, ...]]]:
        return type(self), (self.owner, self.problems)


class TrainingError(ValueError):
    """A training run cannot start or go on."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C; the text says how to go on."""
