"""Where a trial reports to: its claim, or what carries the words to the holder of the claim."""

from collections.abc import Mapping
from typing import Any, Protocol

__all__ = ["Recorder"]


class Recorder(Protocol):
    """Takes down what becomes of one trial.

    Any of the methods may raise `LostClaimError`: then somebody else has the trial, and whoever
    works on it stops without a word.

    Attributes:
        variant: Name of the variant.
        seed: Seed of the trial.
    """

    variant: str
    seed: int

    def heartbeat(self) -> None:
        """Shows that the trial goes on."""
        ...

    def record_environment(self, facts: Mapping[str, Any]) -> None:
        """Takes down the versions and the machine that the trial runs with."""
        ...

    def record_facts(self, facts: Mapping[str, Any]) -> None:
        """Takes down what is known before training: params, macs, init_digest, order_digest."""
        ...

    def record_epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Takes down the metrics of an epoch whose checkpoint is on disk."""
        ...

    def finish(self, metrics: Mapping[int, Mapping[str, float]]) -> None:
        """Takes down that the trial is finished, and the metrics of every epoch."""
        ...

    def fail(self, error: str) -> None:
        """Takes down that the trial failed, with the traceback."""
        ...

    def release(self) -> None:
        """Gives the trial back unfinished."""
        ...
