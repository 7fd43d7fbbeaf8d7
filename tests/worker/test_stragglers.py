"""Images that can't be had for now: few of a shard, or so many that storage must be in trouble."""

from __future__ import annotations

from pathlib import Path

import pytest

import annotator
from annotator import rounds
from annotator.envelope import Row
from annotator.errors import ImageError, StorageError, TransientStorageError
from annotator.stages.fetch import Fetcher
from annotator.watch import Silent
from tests.running.make import is_whole, make_job, write_manifest
from tests.worker.support import label_all, rows_by_name


def absent(number: int) -> str:
    return f"absent-{number:03d}.png"


def job_of_absent(folder: Path, checkpoints: dict[str, Path], rows: int) -> annotator.Job:
    """Return a job of one shard, of images that are not there."""
    job = make_job(folder, checkpoints, count=0, tasks=("seg",), shard_rows=64)
    write_manifest(folder / "manifest", [absent(i) for i in range(rows)])
    return job


@pytest.mark.parametrize(
    ("rows", "num_faults", "lone"),
    [
        (5, 2, True),  # max(2, 5 %) of 5 rows is 2
        (5, 3, False),
        (60, 3, True),  # and of 60 rows 3
        (60, 4, False),
        (4, 2, False),  # of so few, two say nothing of storage as a whole
        (1, 1, False),
    ],
)
@pytest.mark.parametrize("first", [0, 1])
def test_few_of_a_shard_are_told_from_trouble_of_storage_and_neither_is_committed(
    first: int,
    rows: int,
    num_faults: int,
    lone: bool,
    tmp_path: Path,
    tiny_checkpoints: dict[str, Path],
    faults: dict[str, StorageError],
) -> None:
    """Wherever among its images they are."""
    faults |= {absent((7 * i + first) % rows): TransientStorageError("timed out") for i in range(num_faults)}
    (summary,) = label_all(job_of_absent(tmp_path, tiny_checkpoints, rows))
    assert (summary.done, summary.created, summary.passing, summary.lone) == (False, (), True, lone)
    assert "fetch_timeout: timed out" in str(summary.deferred)


@pytest.mark.parametrize(
    ("rows", "num_faults", "done"),
    [
        (5, 2, True),  # max(2, 5 %) of 5 rows is 2
        (5, 3, False),
        (60, 3, True),  # and of 60 rows 3
        (60, 4, False),
    ],
)
def test_the_last_round_forgives_two_stragglers_or_five_percent(
    rows: int,
    num_faults: int,
    done: bool,
    tmp_path: Path,
    tiny_checkpoints: dict[str, Path],
    faults: dict[str, StorageError],
) -> None:
    faults |= {absent(7 * i % rows): TransientStorageError("timed out") for i in range(num_faults)}
    (summary,) = label_all(job_of_absent(tmp_path, tiny_checkpoints, rows), last_round=True)
    assert summary.done is done
    assert summary.errors == ({"fetch_timeout": num_faults, "not_found": rows - num_faults} if done else {})


def test_what_is_no_fault_of_storage_is_not_waited_for(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's memory is full: a pause of the run changes nothing about that."""
    real = Fetcher.__call__

    def fetch(self: Fetcher, row: Row) -> bytes:
        if row.index == 1:
            raise ImageError("unreadable", "out_of_memory", "no memory for its pixels", transient=True)
        return real(self, row)

    monkeypatch.setattr(Fetcher, "__call__", fetch)
    job = make_job(tmp_path, tiny_checkpoints, count=5, tasks=("seg",))
    (summary,) = label_all(job)
    assert (summary.done, summary.passing) == (False, False)
    assert "out_of_memory" in str(summary.deferred)


def test_a_picture_that_always_times_out_holds_nobody_up_for_long(
    tmp_path: Path,
    tiny_checkpoints: dict[str, Path],
    faults: dict[str, StorageError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two minutes by default, a tenth of a second here; the ten minutes for storage are not touched."""
    waits: list[str] = []

    class Told(Silent):
        def waiting(self, seconds: float, why: str) -> None:
            waits.append(why)

    monkeypatch.setattr(rounds, "LONE_PATIENCE_S", 0.1)
    monkeypatch.setattr(rounds, "FIRST_PAUSE_S", 0.01)
    job = make_job(tmp_path, tiny_checkpoints, count=10, tasks=("seg",))
    faults["image-0007.png"] = TransientStorageError("s3://b/image-0007.png: timed out (after 4 attempts)")
    report = annotator.run(job, ray=False, watcher=Told())
    assert (report.state, report.images, report.errors) == ("done", 10, {"fetch_timeout": 1})
    assert all("image-0007.png: timed out" in why for why in waits)
    assert {name for name, row in rows_by_name(job).items() if row["status"] != "ok"} == {"image-0007.png"}
    faults.clear()
    assert annotator.retry(job.output, ["fetch_timeout"], ray=False).statuses == {"seg": {"ok": 1}}
    assert is_whole(job)
