"""Types of the fields of a recipe, with what the command line and YAML may write for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from visgraft.tasks.yaml_mapping import parse_yaml

__all__ = [
    "Arguments",
    "Chance",
    "Pair",
    "PathText",
    "Rate",
    "Sides",
    "as_tuple",
    "from_text",
    "split_words",
]


def from_text(value: Any) -> Any:
    """Reads a value that a command line passed as text, such as ``{eps: 1e-6}``."""
    return parse_yaml(value) if isinstance(value, str) else value


def as_tuple(value: Any) -> Any:
    """Makes one text or mapping a tuple of one."""
    return (value,) if isinstance(value, str | Mapping) else value


def split_words(value: Any) -> Any:
    """Reads words with commas between them; ``none`` is no word."""
    words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
    return () if words in (None, [], ["none"], ["csv"]) else words


def _as_path_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _as_list(value: Any) -> Any:
    if isinstance(value, str):
        return from_text(value if value.lstrip().startswith("[") else f"[{value}]")
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return [value] if is_one else value


Arguments = Annotated[dict[str, Any], BeforeValidator(from_text)]
PathText = Annotated[str, BeforeValidator(_as_path_text), Field(min_length=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Chance = Annotated[float, Field(ge=0, le=1)]
Pair = Annotated[tuple[float, float], BeforeValidator(_as_list)]
Sides = Annotated[
    tuple[Annotated[int, Field(gt=0)], ...], BeforeValidator(_as_list), Field(min_length=1)
]
