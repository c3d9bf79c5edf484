"""A progress bar with the time left, on standard error; one line per epoch stays behind."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.control import Control
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.segment import ControlType

__all__ = ["Bar", "counting_bar", "wipe_bar"]


class Bar:
    """A bar over a known number of steps, and the time that the rest will take.

    Where standard error is no terminal, only `say` writes.

    Args:
        text: Stands before the bar.
        steps: In all.
        done: Steps that an earlier process made.
        shown: False writes nothing at all.
    """

    def __init__(self, text: str, steps: int, *, done: int = 0, shown: bool = True) -> None:
        self._console = Console(file=sys.stderr, quiet=not shown)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]} left"),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            refresh_per_second=4,
            transient=True,
            disable=not (shown and self._console.is_terminal),
        )
        self._task = self._progress.add_task(text, total=steps, completed=done, left="?", note="")
        self._steps, self._done, self._first = steps, done, done
        self._start = time.monotonic()

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, to: int | None = None) -> None:
        """Counts one step, or says how many are done."""
        self._done = self._done + 1 if to is None else to
        if self._progress.disable or self._done == self._first:
            return
        spent = time.monotonic() - self._start
        left = spent / (self._done - self._first) * (self._steps - self._done)
        self._progress.update(self._task, completed=self._done, left=_clock(left))

    def describe(self, text: str, note: str) -> None:
        """Changes what stands before and behind the bar."""
        self._progress.update(self._task, description=text, note=note)

    def say(self, line: str) -> None:
        """Writes a line that stays."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def wipe_bar() -> None:
    """Takes away what is left of the bar of another process that was ended in between."""
    console = Console(file=sys.stderr)
    if console.is_terminal:
        console.control(Control((ControlType.ERASE_IN_LINE, 2), ControlType.CARRIAGE_RETURN))
        console.show_cursor()


@contextmanager
def counting_bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (done, total) that shows a bar from its first call on."""
    with ExitStack() as stack:
        bar: Bar | None = None

        def count(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(Bar(text, total))
            bar.advance(to=done)

        yield count


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
