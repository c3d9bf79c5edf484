"""Keeps ultralytics from asking a host for its font where it knows that it is offline.

``YOLO_OFFLINE=true`` stops everything else; ``check_font`` sends a request all the same before each
training and validation, and waits for its failure.
"""

from functools import wraps
from typing import Any

from visgraft.tasks.yolo._library import ultralytics_module

__all__ = ["ask_no_host"]

WRAPPED = "visgraft_original"


def ask_no_host() -> None:
    """Lets ``is_url(..., check=True)`` answer no when offline; again is no change."""
    downloads = ultralytics_module("ask_no_host", "utils.downloads")
    library = ultralytics_module("ask_no_host", "utils")
    original = downloads.is_url
    if hasattr(original, WRAPPED):
        return

    @wraps(original)
    def is_url(url: Any, check: bool = False) -> bool:
        return False if check and not library.ONLINE else original(url, check)

    setattr(is_url, WRAPPED, original)
    downloads.is_url = is_url
