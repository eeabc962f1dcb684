"""Progress of a command on stderr: a bar in a terminal; elsewhere, such as in a log, a line now and then."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

# Seconds before the first line and between two, until this share of the time that has passed is longer.
EVERY, SHARE = 10.0, 0.1

# In a terminal of fewer columns there are numbers only.
WIDE = 80


@contextmanager
def progress(silent: bool) -> Iterator[Callable[[float, str], None]]:
    """Gives a function to call with the share of the work that is done, and a text: the stage, or the stage, a colon
    and more.
    """
    console = Console(stderr=True)
    if silent:
        yield lambda done, text: None
    elif not console.is_terminal:
        yield Lines(lambda line: print(f"polylosses: {line}", file=sys.stderr, flush=True))
    else:
        description = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=False))
        bar: list[ProgressColumn] = [BarColumn(20)] if console.width >= WIDE else []
        times: list[ProgressColumn] = [TimeElapsedColumn(), TimeRemainingColumn()]
        with Progress(description, *bar, TaskProgressColumn(), *times, console=console, transient=True) as shown:
            task = shown.add_task("", total=1.0)
            yield lambda done, text: shown.update(task, completed=done, description=text)


class Lines:
    """Lines for a log: the first after ``EVERY`` seconds, then one whenever the stage changes and, less and less often,
    in between.

    Args:
        write: is given each line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._start = time.monotonic()
        self._due = self._start + EVERY
        self._stage = ""
        self._from = (self._start, 0.0)
        """When the stage began, and with which share done."""

    def __call__(self, done: float, text: str) -> None:
        """Takes the share of the work that is done, and a text; see :func:`progress`."""
        now = time.monotonic()
        passed = now - self._start
        stage = text.partition(":")[0]
        if stage != self._stage:
            self._stage, self._from = stage, (now, done)
            self._due = min(self._due, max(now, self._start + EVERY))
        if now < self._due:
            return
        self._due = now + max(EVERY, SHARE * passed)
        began, before = self._from
        left = f", {_clock((1 - done) * (now - began) / (done - before))} left" if done > before else ""
        self._write(f"{text}; {_clock(passed)} elapsed{left}")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
