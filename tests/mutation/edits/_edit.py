"""One wrong edit of one file."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Edit", "Table"]

Table = dict[str, dict[str, list[tuple[str, ...]]]]


@dataclass(frozen=True)
class Edit:
    """A text of a file that is replaced by another.

    Attributes:
        file: Below src/visgraft.
        name: What is wrong afterwards.
        old: A text that the file has once.
        new: What takes its place.
        equivalent: Why no value changes and no test can notice; empty for a wrong edit.
    """

    file: str
    name: str
    old: str
    new: str
    equivalent: str = ""

    def apply(self, package: Path) -> str:
        """Returns the text of the file after the edit.

        Raises:
            ValueError: The text to replace does not stand in the file exactly once.
        """
        text = (package / self.file).read_text()
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.file}: edit {self.name!r} replaces {text.count(self.old)} places, not 1"
            )
        return text.replace(self.old, self.new)
