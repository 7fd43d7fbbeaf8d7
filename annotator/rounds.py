"""What comes after a round: another one, a pause before it, last rounds, or the end.

A round gained something if fewer shards are left than before it, whoever did them. After one that did not:

    storage was in trouble        wait, then an ordinary round again; ten minutes of waiting in all
    a few images only could not   the same, for two minutes since the last gain: an image that always times out
      be had                      should not hold up the rest for long
    else                          last rounds: each image is decoded alone, and lone passing faults become rows
    it was a last round already   the end, with what is left
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from annotator.errors import TransientStorageError
from annotator.summary import Summary

T = TypeVar("T")

PATIENCE_S = 600.0
"""How long a run waits for storage, in all, since it last gained something."""

LONE_PATIENCE_S = 120.0
"""How long after its last gain a run still waits for a few images while all else can be had."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 60.0


class Patience:
    """Waits in growing pauses until patience is at its end; `renew` gives it back.

    `tell` is called before each pause, with its seconds and the reason.
    """

    def __init__(self, tell: Callable[[float, str], None]) -> None:
        self._tell = tell
        self.renew()

    def renew(self) -> None:
        self._waited_s, self._gained = 0.0, time.monotonic()

    def wait(self, why: str, *, lone: bool = False) -> bool:
        """Pause and return True; False at once when patience is at its end. `lone`: it is for a few images only."""
        left_s = PATIENCE_S - self._waited_s
        if lone:
            left_s = LONE_PATIENCE_S - (time.monotonic() - self._gained)
        if left_s <= 0:
            return False
        pause_s = min(max(self._waited_s, FIRST_PAUSE_S), LONGEST_PAUSE_S, left_s)
        self._tell(pause_s, why)
        time.sleep(pause_s)
        self._waited_s += pause_s
        return True

    def ask(self, call: Callable[[], T]) -> T:
        """Return call(), tried again while storage is away. Raises TransientStorageError when it stays away."""
        while True:
            try:
                return call()
            except TransientStorageError as err:
                if not self.wait(str(err)):
                    raise


class Rounds:
    """Decides whether a run goes on; `last` says how."""

    def __init__(self, patience: Patience) -> None:
        self.last = False
        self._patience = patience
        self._left = sys.maxsize
        self._trouble: str | None = None
        self._lone = True

    def add(self, summary: Summary) -> None:
        """Take note of how a shard of this round went."""
        if summary.passing:
            self._trouble = summary.deferred
            self._lone = self._lone and summary.lone

    def go_on(self, left: int) -> bool:
        """Return whether to do another round now that so many shards are left; pauses before it where that helps."""
        gained, trouble, lone = left < self._left, self._trouble, self._lone
        self._left, self._trouble, self._lone = left, None, True
        if gained:
            self._patience.renew()
            return left > 0
        if trouble is not None and self._patience.wait(trouble, lone=lone):
            return True
        goes_on = not self.last
        self.last = True
        return goes_on
