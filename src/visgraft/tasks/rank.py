"""One of the processes that train a run on several devices.

Started as ``python -m visgraft.tasks.rank LINE JOB`` by `visgraft.tasks.distributed`, not by hand.
It listens for the end of its caller before it imports what takes long.
"""

import json
import os
import pickle
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

__all__ = ["Caller", "main"]


class Caller:
    """The process that started this one.

    Args:
        line: On which it is told things.
    """

    def __init__(self, line: Connection) -> None:
        self._line = line
        self._answered = threading.Semaphore(0)
        self._has_error = False

    def listen(self) -> None:
        """Takes in answers; ends this process at once when the caller is gone.

        At once is safe: whatever is on disk must bear a loss of power anyway.
        """
        while os.read(sys.stdin.fileno(), 1):
            self._answered.release()
        os._exit(0)

    def tell_epoch(self, row: dict[str, float]) -> None:
        """Tells the metrics of an epoch and waits until the caller has dealt with them."""
        self._line.send(("epoch", row))
        self._answered.acquire()

    def tell_error(self, error: BaseException) -> None:
        """Tells the first error, with its place in the code."""
        if self._has_error:
            return
        self._has_error = True
        where = "".join(traceback.format_exception(error))
        try:
            packed = pickle.dumps(error)
            pickle.loads(packed)
        except Exception:  # an error class may do anything
            packed = pickle.dumps(RuntimeError(str(error)))
        with suppress(OSError):  # the caller is gone
            self._line.send(("error", (packed, where)))

    def tell_end(self) -> None:
        """Tells that the last epoch is over."""
        self._line.send(("done", None))


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains this process's part of a run."""
    number, job = arguments or sys.argv[1:]
    caller = Caller(Connection(int(number), readable=False))
    threading.Thread(target=caller.listen, daemon=True).start()
    try:
        from visgraft.tasks.rank_training import train_part  # imports Lightning

        train_part(json.loads(job), caller)
    except BaseException as error:
        caller.tell_error(error)
        sys.stderr.flush()
        os._exit(1)  # a lost connection to the other devices could keep this process from its end
    caller.tell_end()


if __name__ == "__main__":
    main()
