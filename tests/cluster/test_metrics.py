"""What a worker's summaries add to the metrics: each thing once, whatever comes twice or late."""

from __future__ import annotations

from collections import Counter

import pytest

from annotator import faults
from annotator.errors import NotFoundError
from annotator.metrics import WorkerMetrics
from annotator.shards import Shard
from annotator.summary import Summary, Work

SHARD = Shard(file_key="a-00000000", first=0, end=5)


class Recorder:
    """Stands where Ray's metrics stand, which count only while a session is open."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.gauges: dict[str, float] = {}

    def count(self, name: str, more: float, **labels: str) -> None:
        assert more >= 0, name
        self.counts[" ".join([name.removeprefix("annotator_"), *labels.values()])] += more  # type: ignore[assignment]

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self.gauges[name.removeprefix("annotator_")] = value


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> WorkerMetrics:
    monkeypatch.setattr(faults, "met", Counter())
    made = WorkerMetrics()
    monkeypatch.setattr(made, "_metrics", Recorder())
    return made


def recorded(metrics: WorkerMetrics) -> Recorder:
    found = metrics._metrics
    assert isinstance(found, Recorder)
    return found


def work(seconds: float, busy_s: float, batches: int) -> Work:
    return Work(
        worker="host/1",
        seconds=seconds,
        cpu_s=1.0,
        stages={"forward": (busy_s, 0.5)},
        bare_s=0.0,
        bytes_to_host=0,
        peak_host_bytes=1000,
        peak_device_bytes=2000,
        waiting=3,
        batches=batches,
        batch_slots=4 * batches,
        batch_inputs=3 * batches,
    )


def done(**fields: object) -> Summary:
    return Summary(shard=SHARD, created=("seg",), rows=5, statuses={"seg": {"ok": 4, "unreadable": 1}}, **fields)  # type: ignore[arg-type]


def test_a_shard_is_counted_by_task_status_and_outcome(metrics: WorkerMetrics) -> None:
    metrics.add(done(bytes_in=10, bytes_out=20, stages={"fetch": (2.0, 1.0)}))
    metrics.add(Summary(shard=SHARD, deferred="storage is away"))
    metrics.add(Summary(shard=SHARD, existed=("seg",)))
    counts = recorded(metrics).counts
    assert {counts[f"shards_total {outcome}"] for outcome in ("done", "deferred", "existed")} == {1}
    assert (counts["rows_total seg ok"], counts["rows_total seg unreadable"], counts["images_total"]) == (4, 1, 5)
    assert (counts["image_bytes_total"], counts["label_bytes_total"]) == (10, 20)
    assert (counts["stage_seconds_total fetch"], counts["stage_cpu_seconds_total fetch"]) == (2, 1)


def test_what_a_worker_did_so_far_is_not_counted_again_and_a_late_summary_takes_nothing_back(
    metrics: WorkerMetrics,
) -> None:
    """10 s with 5 s busy, then 4 s with 4 s busy: the ratio is of the last 4 s."""
    for so_far in (work(10, 5, 7), work(14, 9, 9), work(12, 7, 8)):
        metrics.add(done(work=so_far))
    found = recorded(metrics)
    assert found.counts["stage_seconds_total forward"] == 9
    assert [found.counts[f"batch{name}_total"] for name in ("es", "_slots", "_inputs")] == [9, 36, 27]
    assert (found.gauges["device_busy_ratio"], found.gauges["queue_depth"]) == (1.0, 3)
    assert (found.gauges["device_memory_bytes"], found.gauges["host_memory_bytes"]) == (2000, 1000)


def test_faults_of_storage_are_counted_by_class_and_retries_apart(metrics: WorkerMetrics) -> None:
    calls = iter([ConnectionResetError(), ConnectionResetError(), FileNotFoundError(2, "gone")])

    def call() -> None:
        raise next(calls)

    with pytest.raises(NotFoundError), pytest.MonkeyPatch.context() as patch:
        patch.setattr("annotator.faults.time.sleep", lambda _: None)
        faults.retry(call, "s3://bucket/key", 4)
    for _ in range(2):
        metrics.add(done())
    counts = recorded(metrics).counts
    assert counts["storage_errors_total TransientStorageError"] == counts["storage_retries_total"] == 2
    assert counts["storage_errors_total NotFoundError"] == 1
