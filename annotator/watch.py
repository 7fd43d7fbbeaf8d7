"""Watchers: nobody, a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from annotator.planning import Plan
from annotator.report import Report, Watcher

LINE_EVERY_S = 10.0


class Silent:
    """Says nothing."""

    def planned(self, plan: Plan, report: Report) -> None: ...

    def progressed(self, report: Report) -> None: ...

    def waiting(self, seconds: float, why: str) -> None: ...

    def ended(self, report: Report) -> None: ...


class Bar:
    """A bar: images, images a second, time left, bad rows."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[bad]}"),
            console=console,
        )
        self._task: TaskID | None = None

    def planned(self, plan: Plan, report: Report) -> None:
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("images", total=plan.rows_left, rate="starting", bad="")
        else:
            self._progress.console.print(f"round {report.rounds}: {len(plan)} shards left")

    def progressed(self, report: Report) -> None:
        if self._task is not None:
            bad = f"{report.bad_rows} bad rows" if report.bad_rows else ""
            rate = _rate(report)
            self._progress.update(self._task, completed=report.images + report.found, rate=rate, bad=bad)

    def waiting(self, seconds: float, why: str) -> None:
        self._progress.console.print(_waiting(seconds, why), markup=False)

    def ended(self, report: Report) -> None:
        self._progress.stop()


class Lines:
    """A line a round and one every ten seconds, for logs."""

    def __init__(self) -> None:
        self._spoke = 0.0

    def planned(self, plan: Plan, report: Report) -> None:
        self._say(f"round {report.rounds}: {plan.rows_left} images in {len(plan)} shards left (run {report.run_id})")

    def progressed(self, report: Report) -> None:
        if time.monotonic() - self._spoke >= LINE_EVERY_S or not report.shards_left:
            self._say(f"{report.images} images, {report.images_left} left, {_rate(report)}, {report.bad_rows} bad rows")

    def waiting(self, seconds: float, why: str) -> None:
        self._say(_waiting(seconds, why))

    def ended(self, report: Report) -> None: ...

    def _say(self, text: str) -> None:
        self._spoke = time.monotonic()
        print(text, file=sys.stderr, flush=True)


def _rate(report: Report) -> str:
    slowest = f", slowest: {report.slowest}" if report.slowest else ""
    return f"{report.images_per_s:.1f} images/s{slowest}"


def _waiting(seconds: float, why: str) -> str:
    return f"storage is in trouble; going on in {seconds:.0f} s ({why})"


def terminal_watcher(*, quiet: bool = False) -> Watcher:
    """Return the watcher that suits standard error: a bar on a terminal, else lines."""
    if quiet:
        return Silent()
    console = Console(stderr=True)
    return Bar(console) if console.is_terminal else Lines()


@contextmanager
def counting(what: str) -> Iterator[Callable[[int], None]]:
    """Yield a callback that is told how many things are done so far, and shows it on standard error."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(f"0 {what}") as spinner:
            yield lambda count: spinner.update(f"{count} {what}")
        return
    spoke = time.monotonic()

    def say(count: int) -> None:
        nonlocal spoke
        if time.monotonic() - spoke >= LINE_EVERY_S:
            spoke = time.monotonic()
            print(f"{count} {what}", file=sys.stderr, flush=True)

    yield say


@contextmanager
def measuring(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that is told how many things are done, of how many, and shows it on standard error."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    spoke = time.monotonic()

    def say(done: int, total: int) -> None:
        nonlocal spoke
        if time.monotonic() - spoke >= LINE_EVERY_S:
            spoke = time.monotonic()
            print(f"{done} of {total} {what}", file=sys.stderr, flush=True)

    yield say


@contextmanager
def doing(what: str | None) -> Iterator[None]:
    """Show on a terminal's standard error what goes on meanwhile; nothing for None."""
    console = Console(stderr=True)
    if what is None or not console.is_terminal:
        yield
        return
    with console.status(what):
        yield
