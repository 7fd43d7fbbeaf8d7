"""Where a shard's seconds went, by stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class StageTimes:
    """Wall and CPU seconds by stage, summed over the threads of one shard."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, list[float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body as part of the stage."""
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
            with self._lock:
                total = self._seconds.setdefault(name, [0.0, 0.0])
                total[0] += wall
                total[1] += cpu

    def seconds(self) -> dict[str, tuple[float, float]]:
        """Return (wall, CPU) seconds by stage."""
        with self._lock:
            return {name: (wall, cpu) for name, (wall, cpu) in self._seconds.items()}
