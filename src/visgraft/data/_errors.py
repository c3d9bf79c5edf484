"""The one exception of this room."""

__all__ = ["DataError"]


class DataError(ValueError):
    """Data that cannot be used as asked; the text names the file or folder and the way out."""
