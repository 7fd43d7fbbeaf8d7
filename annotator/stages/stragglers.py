"""Stragglers: images of a shard that met passing faults, and what becomes of the shard.

more than max(2, 5 %) of it          given up at once: storage is in trouble, and the run waits for it
fewer, and most others can be had    lone ones: in a last round rows, before that the shard comes up again
"""

from __future__ import annotations

from annotator.errors import ImageError, TransientStorageError


class DeferredError(Exception):
    """The shard is not committed this time; the message says why."""


class LoneFaultError(TransientStorageError):
    """Few of a shard's images met passing faults of storage and most met none: storage as a whole is well."""


def allowed_faults(num_rows: int) -> int:
    """Return how many of so many rows may fail in passing before their shard had better wait (DESIGN 2.6)."""
    return max(2, num_rows * 5 // 100)


class Stragglers:
    """Counts the passing faults among a shard's images; `forgiven`: those that are allowed become rows."""

    def __init__(self, allowed: int, *, forgiven: bool) -> None:
        self._allowed, self._forgiven = allowed, forgiven
        self._faults: list[ImageError] = []
        self._seen = 0

    def add(self, fault: ImageError | None) -> None:
        """Take note of how an image went. Raises what puts the shard off when that is one fault too many."""
        self._seen += 1
        if fault is None:
            return
        self._faults.append(fault)
        if len(self._faults) > self._allowed:
            raise _error(fault, lone=False)

    def end(self) -> None:
        """Raise what puts the shard off for lone faults, now that all its images were seen."""
        if self._faults and not self._forgiven:
            of_storage = (fault for fault in self._faults if _is_of_storage(fault))
            raise _error(next(of_storage, self._faults[0]), lone=2 * len(self._faults) < self._seen)


def _error(fault: ImageError, *, lone: bool) -> Exception:
    text = f"{fault.error_class}: {fault}"
    if not _is_of_storage(fault):
        return DeferredError(text)
    return LoneFaultError(text) if lone else TransientStorageError(text)


def _is_of_storage(fault: ImageError) -> bool:
    return isinstance(fault.__cause__, TransientStorageError)
