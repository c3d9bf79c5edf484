"""The versions of ultralytics that the bridge knows."""

from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["ultralytics_module"]

SUPPORTED = ">=8.4.190,<8.5"
FIRST, BEYOND = (8, 4, 190), (8, 5)


def ultralytics_module(owner: str, name: str) -> Any:
    """Returns a module of ultralytics, ``name`` being its path inside.

    Raises:
        ImportError: ultralytics is not installed, does not import, or has another version;
            ``owner`` complains.
    """
    try:
        library = import_module("ultralytics")
        module = import_module(f"ultralytics.{name}")
    except ImportError as error:
        raise ImportError(
            f"{owner}: ultralytics cannot be imported ({error}); install it with "
            "pip install 'visgraft[yolo]' (its licence is AGPL-3.0)"
        ) from error
    version = _version(library)
    if not FIRST <= version < BEYOND:
        raise ImportError(
            f"{owner}: works with ultralytics{SUPPORTED}, whose insides it relies on, got "
            f"{library.__version__}; install a version of that range"
        )
    return module


def _version(library: ModuleType) -> tuple[int, ...]:
    numbers = []
    for part in str(library.__version__).split(".")[:3]:
        digits = "".join(c for c in part if c.isdigit())
        numbers.append(int(digits or 0))
    return tuple(numbers)
