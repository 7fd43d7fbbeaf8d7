"""One seed of chaos: workers, nodes, drivers and the S3 server are lost, and no label is.

More of them: `make chaos SEEDS=20`; what came of it is in docs/reliability.md.
"""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chaos.corpus import corpus
from tests.chaos.run import COUNT, KINDS, SHARD_ROWS, TASKS, again, count_differences, schedule
from tests.conftest import S3_ENVIRONMENT
from tests.servers import rgw

SEED = 2


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whatever_is_lost_the_labels_are_those_of_an_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        rgw.install()
    except rgw.NotInstallableError as err:
        pytest.skip(f"no RADOS gateway: {err}")
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with corpus() as undisturbed:
        assert len(undisturbed.labels) == COUNT // SHARD_ROWS * len(TASKS)
        result = undisturbed.disturb(SEED, tmp_path)
    assert result.problems == [], f"{again(SEED)} runs it again; {result}"


def test_every_schedule_has_every_kind_of_event_while_there_is_work_to_do() -> None:
    for seed in range(50):
        events = schedule(seed)
        assert {event.kind for event in events} == set(KINDS)
        commits = [event.commits for event in events]
        assert commits == sorted(commits) and commits[-1] < COUNT // SHARD_ROWS * len(TASKS) * 3 // 4
        assert events == schedule(seed)


def test_differences_of_tables_are_counted_by_row() -> None:
    """What compares must not be blind: a row changed, one missing, a file missing, a file too many."""

    def file(*rows: bytes) -> bytes:
        sink = io.BytesIO()
        pq.write_table(pa.table({"row": list(range(len(rows))), "png": list(rows)}), sink)
        return sink.getvalue()

    ours = {"a": file(b"1", b"2", b"3"), "b": file(b"1", b"2")}
    changed, shorter, absent = {"a": file(b"1", b"x", b"3")}, {"a": file(b"1", b"2")}, {"a": ours["a"]}
    others: list[dict[str, bytes]] = [dict(ours), ours | changed, ours | shorter, absent, {}]
    assert [count_differences(ours, other) for other in others] == [0, 1, 1, 2, 5]
    assert [count_differences(other, ours) for other in others] == [0, 1, 1, 2, 5]
