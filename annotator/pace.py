"""How near to its hardware's limit a run goes: pure arithmetic over what workers say of themselves.

Each worker counts from its first summary to its last, by its own clock: loading, compiling, the start of
Ray and the wait of a worker that has nothing left to do are no part of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from annotator.summary import Work

DEVICE_STAGES = ("copy", "forward", "post-process")

_BUSY = 0.9  # of the time: then no other stage can be what holds a run up
_NOT_WORK = ("wait", *DEVICE_STAGES)


class Pace:
    """Adds up workers; `add` is told of each summary's work, in any order within a round.

    Each round has workers of its own, so one is told apart by round and name.
    """

    def __init__(self) -> None:
        self._round = 0
        self._first: dict[tuple[int, str], Work] = {}
        self._last: dict[tuple[int, str], Work] = {}

    def next_round(self) -> None:
        """From here on it is other workers that tell, even where they have the names of earlier ones."""
        self._round += 1

    def add(self, work: Work) -> None:
        """Take in what a worker has done so far."""
        key = self._round, work.worker
        first, last = self._first.setdefault(key, work), self._last.setdefault(key, work)
        self._first[key] = min(first, work, key=lambda w: w.seconds)
        self._last[key] = max(last, work, key=lambda w: w.seconds)

    @property
    def workers(self) -> int:
        """Processes that have labelled a shard, in the round that had most."""
        return max(Counter(number for number, _ in self._last).values(), default=0)

    @property
    def devices(self) -> tuple[str, ...]:
        """What the workers compute on, each kind once."""
        return tuple(sorted({work.device for work in self._last.values()}))

    @property
    def worker_s(self) -> float:
        """Seconds of all workers together, each from when it was ready to its last summary."""
        return sum(work.seconds for work in self._last.values())

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the workers' processes, since their start; one may hold the workers of several rounds."""
        processes: dict[str, float] = {}
        for (_, name), work in self._last.items():
            processes[name] = max(processes.get(name, 0.0), work.cpu_s)
        return sum(processes.values())

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
        busy_s = sum(_busy_s(self._last[key]) - _busy_s(first) for key, first in self._first.items())
        return None if not self._seconds else max(0.0, 1 - busy_s / self._seconds)

    @property
    def efficiency(self) -> float | None:
        """The speed as a share of what forward passes alone reach on the same devices; None as `idle`.

        None too where nobody measured forward passes alone.
        """
        bare_s = sum(self._last[key].bare_s - first.bare_s for key, first in self._first.items())
        return bare_s / self._seconds if self._seconds and bare_s else None

    @property
    def _seconds(self) -> float:
        """Seconds of all workers together, each from its first summary to its last."""
        return sum(self._last[key].seconds - first.seconds for key, first in self._first.items())


def _busy_s(work: Work) -> float:
    return sum(wall for wall, _ in work.stages.values())


def slowest(stages: Mapping[str, tuple[float, float]], idle: float | None) -> str | None:
    """Return the stage that holds a run up: of the device if that is busy, else the host's longest by wall time."""
    busy = idle is not None and 1 - idle >= _BUSY
    among = {n: wall for n, (wall, _) in stages.items() if (n in DEVICE_STAGES if busy else n not in _NOT_WORK)}
    return max(among, key=lambda name: among[name], default=None)
