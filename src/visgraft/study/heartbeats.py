"""Signs of life of a process that holds a claim."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from visgraft.study.claims import HEARTBEAT_SECONDS, LostClaimError
from visgraft.study.errors import StudyError

__all__ = ["heartbeats"]


@contextmanager
def heartbeats(beat: Callable[[], None]) -> Iterator[None]:
    """Shows signs of life from a thread of its own, as long as its body runs.

    Args:
        beat: Shows one.
    """
    done = threading.Event()

    def keep_on() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            try:
                beat()
            except LostClaimError:
                return  # whatever is recorded next finds out, too
            except StudyError:
                continue  # a disk that is full or away for a moment

    thread = threading.Thread(target=keep_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
