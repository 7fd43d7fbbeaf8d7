"""How near to its hardware's limit a run goes: pure arithmetic over what workers say of themselves.

Each worker counts from its first summary to its last, by its own clock: loading, compiling, the start of
Ray and the wait of a worker that has nothing left to do are no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from annotator.summary import Work

DEVICE_STAGES = ("copy", "forward", "post-process")

_BUSY = 0.9  # of the time: then no other stage can be what holds a run up
_NOT_WORK = ("wait", *DEVICE_STAGES)


class Pace:
    """Adds up workers; `add` is told of each summary's work, in any order."""

    def __init__(self) -> None:
        self._first: dict[str, Work] = {}
        self._last: dict[str, Work] = {}

    def add(self, work: Work) -> None:
        """Take in what a worker has done so far."""
        first, last = self._first.setdefault(work.worker, work), self._last.setdefault(work.worker, work)
        self._first[work.worker] = min(first, work, key=lambda w: w.seconds)
        self._last[work.worker] = max(last, work, key=lambda w: w.seconds)

    @property
    def workers(self) -> int:
        """Processes that have labelled a shard."""
        return len(self._last)

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the workers, since their start."""
        return sum(work.cpu_s for work in self._last.values())

    @property
    def bytes_to_host(self) -> int:
        """Bytes of labels that came from the devices."""
        return sum(work.bytes_to_host for work in self._last.values())

    @property
    def peak_host_bytes(self) -> int:
        """The most memory that one worker has held."""
        return max((work.peak_host_bytes for work in self._last.values()), default=0)

    @property
    def peak_device_bytes(self) -> int:
        """The most device memory that one worker has held."""
        return max((work.peak_device_bytes for work in self._last.values()), default=0)

    @property
    def device_stages(self) -> dict[str, tuple[float, float]]:
        """(wall, CPU) seconds of the devices' stages, since the workers' start."""
        return {
            name: (
                sum(work.stages.get(name, (0.0, 0.0))[0] for work in self._last.values()),
                sum(work.stages.get(name, (0.0, 0.0))[1] for work in self._last.values()),
            )
            for name in DEVICE_STAGES
            if any(name in work.stages for work in self._last.values())
        }

    @property
    def idle(self) -> float | None:
        """The share of the time in which devices had nothing to do; None while no worker has two summaries."""
        busy_s = sum(_busy_s(self._last[name]) - _busy_s(first) for name, first in self._first.items())
        return None if not self._seconds else max(0.0, 1 - busy_s / self._seconds)

    @property
    def efficiency(self) -> float | None:
        """The speed as a share of what forward passes alone reach on the same devices; None as `idle`.

        None too where nobody measured forward passes alone.
        """
        bare_s = sum(self._last[name].bare_s - first.bare_s for name, first in self._first.items())
        return bare_s / self._seconds if self._seconds and bare_s else None

    @property
    def _seconds(self) -> float:
        """Seconds of all workers together, each from its first summary to its last."""
        return sum(self._last[name].seconds - first.seconds for name, first in self._first.items())


def _busy_s(work: Work) -> float:
    return sum(wall for wall, _ in work.stages.values())


def slowest(stages: Mapping[str, tuple[float, float]], idle: float | None) -> str | None:
    """Return the stage that holds a run up: of the device if that is busy, else the host's longest by wall time."""
    busy = idle is not None and 1 - idle >= _BUSY
    among = {n: wall for n, (wall, _) in stages.items() if (n in DEVICE_STAGES if busy else n not in _NOT_WORK)}
    return max(among, key=lambda name: among[name], default=None)
