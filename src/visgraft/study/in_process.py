"""Runs trials one by one in the process of the caller, for a debugger or a test."""

import time
from collections.abc import Callable

import torch

from visgraft.study.claims import claim_next, sweep
from visgraft.study.store import Store
from visgraft.study.trial import work_on

__all__ = ["InProcessExecutor"]

POLL_SECONDS = 0.5


class InProcessExecutor:
    """Runs one trial after the other in this process.

    Args:
        threads: CPU threads of torch while it works.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def run(self, store: Store, on_tick: Callable[[], None]) -> None:
        """Returns when every trial of the store is finished or failed, whoever worked on it.

        Args:
            store: The study.
            on_tick: Called after each epoch.
        """
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            while True:
                if claim := claim_next(store):
                    work_on(claim, on_tick)
                elif any(trial.status == "running" for trial in store.trials()):
                    time.sleep(POLL_SECONDS)
                    sweep(store)
                else:
                    return
                on_tick()
        finally:
            torch.set_num_threads(before)
