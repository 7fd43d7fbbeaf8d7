"""What Prometheus sees of a run on Ray: each node exports it, under the names below with `ray_` before them.

Names and units follow Prometheus' conventions: base units, `_total` for what only grows. Workers tell what they did
from the summary of each shard; the driver tells how far the run is. What it means: docs/reference/metrics.md.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from annotator import faults
from annotator.planning import Plan
from annotator.report import Report, Watcher
from annotator.summary import Summary, Work

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge

COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "annotator_rows_total": ("label rows committed, a task's each", ("task", "status")),
    "annotator_images_total": ("images labelled, whatever the number of tasks", ()),
    "annotator_image_bytes_total": ("bytes of images fetched", ()),
    "annotator_label_bytes_total": ("bytes of label files committed", ()),
    "annotator_stage_seconds_total": ("wall time by stage, summed over threads", ("stage",)),
    "annotator_stage_cpu_seconds_total": ("CPU time by stage", ("stage",)),
    "annotator_shards_total": ("shards that workers gave back", ("outcome",)),
    "annotator_batches_total": ("batches that devices ran", ()),
    "annotator_batch_slots_total": ("places in those batches", ()),
    "annotator_batch_inputs_total": ("places in those batches that an input took", ()),
    "annotator_storage_retries_total": ("calls to storage tried again after a passing fault", ()),
    "annotator_storage_errors_total": ("calls to storage that failed, each try counted", ("error",)),
}
"""Name -> what it counts, and its labels."""

GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "annotator_queue_depth": ("inputs that wait for a worker's device", ("worker",)),
    "annotator_device_busy_ratio": ("share of the time that a device worked, since the last shard", ("worker",)),
    "annotator_device_memory_bytes": ("most device memory that a worker has held at once", ("worker",)),
    "annotator_host_memory_bytes": ("most memory that a worker's process has held at once", ("worker",)),
    "annotator_shards_done": ("shards that this run has finished", ()),
    "annotator_shards_left": ("shards that this run has left", ()),
}
"""Name -> what it says, and its labels."""

DEVICE_STAGES = ("copy", "forward", "post-process")


class _Metrics:
    """The metrics of this process; none is made before it is used, as Ray exports what it knows of."""

    def __init__(self) -> None:
        self._made: dict[str, Counter | Gauge] = {}

    def count(self, name: str, more: float, **labels: str) -> None:
        if more > 0:
            self._get(name).inc(more, tags=labels)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self._get(name).set(value, tags=labels)

    def _get(self, name: str) -> Counter | Gauge:
        if name not in self._made:
            from ray.util.metrics import Counter, Gauge

            kind, (text, labels) = (Counter, COUNTERS[name]) if name in COUNTERS else (Gauge, GAUGES[name])
            self._made[name] = kind(name, description=text, tag_keys=labels)
        return self._made[name]


class WorkerMetrics:
    """Takes in the summaries of one worker, from any of its threads, and exports what they add."""

    def __init__(self) -> None:
        self._metrics = _Metrics()
        self._lock = threading.Lock()
        self._last: Work | None = None
        self._faults: dict[str, int] = {}

    def add(self, summary: Summary) -> None:
        """Export a shard's outcome and what the worker did meanwhile."""
        with self._lock:
            self._add_shard(summary)
            if summary.work is not None:
                self._add_work(summary.work)
            self._add_faults()

    def _add_shard(self, summary: Summary) -> None:
        count = self._metrics.count
        outcome = "deferred" if not summary.done else "done" if summary.created else "existed"
        count("annotator_shards_total", 1, outcome=outcome)
        for task, statuses in summary.statuses.items():
            for status, rows in statuses.items():
                count("annotator_rows_total", rows, task=task, status=status)
        count("annotator_images_total", summary.rows if summary.created else 0)
        count("annotator_image_bytes_total", summary.bytes_in)
        count("annotator_label_bytes_total", summary.bytes_out)
        self._add_stages(summary.stages, {})

    def _add_stages(self, stages: Mapping[str, tuple[float, float]], before: Mapping[str, tuple[float, float]]) -> None:
        for stage, (wall, cpu) in stages.items():
            wall_before, cpu_before = before.get(stage, (0.0, 0.0))
            self._metrics.count("annotator_stage_seconds_total", wall - wall_before, stage=stage)
            self._metrics.count("annotator_stage_cpu_seconds_total", cpu - cpu_before, stage=stage)

    def _add_work(self, work: Work) -> None:
        last, self._last = self._last, work
        if last is not None and work.seconds <= last.seconds:
            self._last = last  # the summary of the other thread came first
            return
        count, gauge = self._metrics.count, partial(self._metrics.gauge, worker=work.worker)
        stages_before = last.stages if last is not None else {}
        self._add_stages(work.stages, stages_before)
        for name, value in _batches(work).items():
            count(name, value - (_batches(last)[name] if last is not None else 0))
        seconds = work.seconds - (last.seconds if last is not None else 0.0)
        busy_s = _busy_s(work.stages) - _busy_s(stages_before)
        gauge("annotator_device_busy_ratio", min(1.0, busy_s / seconds) if seconds > 0 else 0.0)
        gauge("annotator_queue_depth", work.waiting)
        gauge("annotator_device_memory_bytes", work.peak_device_bytes)
        gauge("annotator_host_memory_bytes", work.peak_host_bytes)

    def _add_faults(self) -> None:
        before, self._faults = self._faults, dict(faults.met)
        for error, number in self._faults.items():
            more = number - before.get(error, 0)
            if error == faults.RETRIED:
                self._metrics.count("annotator_storage_retries_total", more)
            else:
                self._metrics.count("annotator_storage_errors_total", more, error=error)


class Measured:
    """A watcher that hands on what it is told, and exports from the driver how far the run is."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher, self._metrics = watcher, _Metrics()

    def planned(self, plan: Plan, report: Report) -> None:
        self._watcher.planned(plan, report)

    def progressed(self, report: Report) -> None:
        self._metrics.gauge("annotator_shards_done", report.shards)
        self._metrics.gauge("annotator_shards_left", report.shards_left)
        self._watcher.progressed(report)

    def waiting(self, seconds: float, why: str) -> None:
        self._watcher.waiting(seconds, why)

    def ended(self, report: Report) -> None:
        self._watcher.ended(report)


def _batches(work: Work) -> dict[str, int]:
    return {
        "annotator_batches_total": work.batches,
        "annotator_batch_slots_total": work.batch_slots,
        "annotator_batch_inputs_total": work.batch_inputs,
    }


def _busy_s(stages: Mapping[str, tuple[float, float]]) -> float:
    return sum(stages[name][0] for name in DEVICE_STAGES if name in stages)
