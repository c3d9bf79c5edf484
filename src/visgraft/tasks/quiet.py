"""Keeps Lightning's own remarks off the screen while a run lasts, and nobody else's."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_fabric.utilities.warnings import PossibleUserWarning

__all__ = ["quiet_lightning"]

_LOGGERS = ("pytorch_lightning", "lightning_fabric", "lightning")


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hides Lightning's log lines below errors, and the warnings that it raises itself."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\b")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
