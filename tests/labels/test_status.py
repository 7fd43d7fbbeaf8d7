"""`status` counts what is there, while a run goes on or after, and reads little for it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from annotator.errors import OutputError
from annotator.job import StorageOptions
from annotator.labels.status import MAX_RUNS, status
from annotator.storage import Storage
from tests.labels.make_output import Output, make_output


def test_a_complete_output_is_done_and_counted(clean: Output) -> None:
    report = status(clean.uri)
    bad = {"failed": 1, "no_person": 2, "ok": 40, "rejected": 2, "unreadable": 2}
    assert report.done
    assert [(t.task, t.shards, t.shards_total, t.rows, t.rows_total) for t in report.tasks] == [
        (task, 4, 4, 47, 47) for task in ("depth", "normal", "seg")
    ]
    assert [t.statuses for t in report.tasks] == [bad] * 3
    assert report.runs == ()


def test_an_output_on_its_way_says_how_far_it_is(tmp_path: Path) -> None:
    output = make_output(str(tmp_path), tasks=("seg", "depth"), skip=[("seg", 0), ("seg", 3)])
    report = status(output.uri)
    assert not report.done
    assert [(t.task, t.shards, t.rows) for t in report.tasks] == [("depth", 4, 47), ("seg", 2, 24)]


def test_what_is_no_label_file_of_this_output_is_not_counted(tmp_path: Path) -> None:
    output = make_output(str(tmp_path), tasks=("seg",))
    folder = output.path("seg").parent
    for name in ("000000000040-000000000056.parquet", "000000000000-000000000008.parquet", "notes.txt"):
        (folder / name).write_bytes(output.path("seg").read_bytes())
    (task,) = status(output.uri).tasks
    assert (task.shards, task.rows, task.unreadable) == (4, 47, 0)


def test_a_file_that_cannot_be_read_is_counted_as_such(tmp_path: Path) -> None:
    output = make_output(str(tmp_path), tasks=("seg",))
    output.path("seg", 1).write_bytes(b"not Parquet")
    output.rewrite("seg", 2, lambda rows: [{**rows[0], "status": "fine"}, *rows[1:]])
    (task,) = status(output.uri).tasks
    assert (task.shards, task.rows, task.unreadable) == (4, 23, 2)


def test_a_footer_that_contradicts_itself_is_counted_not_run_into(tmp_path: Path) -> None:
    """Arrow ends the process where the statistics of such a column are asked for."""
    output = make_output(str(tmp_path), tasks=("seg",))
    path = output.path("seg", 1)
    path.write_bytes(_with_another_type(path, b"status"))
    (task,) = status(output.uri).tasks
    assert (task.shards, task.unreadable) == (4, 1)


def _with_another_type(path: Path, name: bytes) -> bytes:
    """Return a label file whose footer says of a text column's part that it holds INT32."""
    whole = path.read_bytes()
    found = re.search(rb"\x15\x0c(?=\x19.{,8}\x06" + name + rb")", whole, re.DOTALL)  # Thrift: type 6, encodings, path
    assert found is not None
    return whole[: found.start()] + b"\x15\x02" + whole[found.end() :]


def test_with_where_the_number_of_rows_is_not_guessed(tmp_path: Path) -> None:
    output = make_output(str(tmp_path), tasks=("seg",), where="size < 10")
    (task,) = status(output.uri).tasks
    assert (task.shards, task.shards_total, task.rows, task.rows_total) == (4, 4, 17, None)


def test_the_latest_runs_are_told_oldest_first(tmp_path: Path) -> None:
    output = make_output(str(tmp_path), tasks=("seg",))
    runs = Path(output.uri) / "_annotator" / "runs"
    runs.mkdir()
    for day in range(1, MAX_RUNS + 4):
        record = {"run_id": f"202611{day:02}", "state": "done", "images_per_s": day, "updated": "then"}
        (runs / f"202611{day:02}.json").write_text(json.dumps(record))
    (runs / "20261130.json").write_text('{"state": "runni')  # somebody else's half file
    (runs / "20261129.json").write_text("{}")
    report = status(output.uri)
    assert [run.run_id for run in report.runs[-3:]] == ["20261112", "20261113", "20261129"]
    assert (report.runs[-2].state, report.runs[-2].images_per_s, report.runs[-2].updated) == ("done", 13.0, "then")
    assert (report.runs[-1].state, report.runs[-1].images_per_s) == ("unknown", None)


def test_an_output_before_its_first_label_has_no_tasks(tmp_path: Path) -> None:
    output = make_output(str(tmp_path), tasks=("seg",), skip=[("seg", i) for i in range(4)])
    (Path(output.uri) / "_annotator" / "tasks" / "seg.json").unlink()
    report = status(output.uri)
    assert report.tasks == () and not report.done


def test_a_folder_that_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        status(str(tmp_path))


@pytest.mark.s3
def test_status_is_the_same_on_s3(moto_s3: StorageOptions, s3_bucket: str) -> None:
    storage = Storage(options=moto_s3)
    statuses = {2: "failed"}
    output = make_output(
        s3_bucket, storage, tasks=("depth",), skip=[("depth", 3)], status=lambda _task, row: statuses.get(row, "ok")
    )
    (task,) = status(output.uri, storage).tasks
    assert (task.shards, task.shards_total, task.statuses) == (3, 4, {"failed": 1, "ok": 39})
