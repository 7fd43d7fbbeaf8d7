"""Where the seconds went, by stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StageTimes:
    """Wall and CPU seconds by stage, summed over threads; safe to use from many.

    CPU is that of the thread which runs the stage: what it has done by threads of a library is not seen.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, tuple[float, float]] = {}

    @contextmanager
    def stage(self, name: str, *, count_wall: bool = True) -> Iterator[None]:
        """Time the body as part of the stage; without `count_wall` the wall time is told by `add`."""
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
            self.add(name, wall=wall if count_wall else 0.0, cpu=cpu)

    def add(self, name: str, *, wall: float = 0.0, cpu: float = 0.0) -> None:
        """Count seconds that were measured elsewhere."""
        with self._lock:
            before = self._seconds.get(name, (0.0, 0.0))
            self._seconds[name] = (before[0] + wall, before[1] + cpu)

    def seconds(self) -> dict[str, tuple[float, float]]:
        """Return (wall, CPU) seconds by stage."""
        with self._lock:
            return dict(self._seconds)


def peak_memory() -> int:
    """Return the most bytes that this process has held in memory at once; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")  # getrusage would count a parent before exec
    except OSError:
        return 0
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
