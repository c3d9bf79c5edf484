"""The complaint of this room."""

__all__ = ["StudyError"]


class StudyError(ValueError):
    """A study cannot be read, started or continued; the text says why and what to do."""
