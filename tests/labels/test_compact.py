"""A snapshot holds what the label files hold, sorted; it is used while it is current, and never trusted after."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import annotator
from annotator.errors import OutputError
from annotator.job import StorageOptions
from annotator.labels import compact as compacting
from annotator.labels.find import find_label
from annotator.labels.tables import open_labels
from annotator.storage import Storage
from tests.labels.counting import s3_requests
from tests.labels.make_output import Output, Plan, label_bytes, make_output, write_shard


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """64 images in 4 label files, ids in no order; one label file is still missing."""
    made = make_output(str(tmp_path), tasks=("seg", "depth"), rows=(64,), skip=[("seg", 3)])
    for task, indices in (("seg", range(3)), ("depth", range(4))):
        for index in indices:
            made.rewrite(task, index, lambda rows: [{**row, "image_id": shuffled(row["row"])} for row in rows])
    return made


def shuffled(row: int) -> str:
    """Return the id of a row: random digits, the same for 7 and 39."""
    return f"{random.Random(7 if row == 39 else row).randrange(10**9):09d}"


def tables(output: Output, task: str = "seg") -> list[Path]:
    return sorted(Path(output.uri, "tables", task).glob("[!_]*.parquet"))


def is_used(output: Output, task: str = "seg") -> bool:
    dataset = open_labels(output.uri, task)
    inside = {f"/tables/{task}/" in path for path in dataset.files}
    assert len(inside) == 1
    return inside.pop()


def by_place(table: pa.Table) -> list[dict[str, Any]]:
    return sorted(table.to_pylist(), key=lambda row: (row["shard"], row["row"]))


def plain(output: Output, task: str = "seg") -> list[dict[str, Any]]:
    return by_place(ds.dataset(f"{output.uri}/labels/{task}").to_table())


def test_a_snapshot_holds_the_same_rows_sorted_by_id(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compacting, "FILE_BYTES", 6000)
    monkeypatch.setattr(compacting, "GROUP_BYTES", 2000)
    monkeypatch.setattr(compacting, "_BUFFER_BYTES", 3000)
    before = plain(output)
    (done,) = annotator.compact(output.uri, tasks=["seg"])
    assert (done.label_files, done.copied, done.rows) == (3, 3, 48)
    assert done.files == len(tables(output)) > 2
    assert pq.ParquetFile(tables(output)[0]).num_row_groups > 1
    assert is_used(output)
    table = open_labels(output.uri, "seg").to_table()
    ids = table["image_id"].to_pylist()
    assert ids == sorted(ids)
    assert by_place(table) == before == plain(output)
    assert table.schema.equals(output.records["seg"].file_schema, check_metadata=False)
    assert by_place(ds.dataset(f"{output.uri}/tables/seg").to_table()) == before


def test_query_and_verify_take_no_notice_of_where_rows_are(output: Output) -> None:
    sql = "select status, count(*), sum(confidence) from seg group by all"
    before, problems = annotator.query(output.uri, sql), annotator.verify(output.uri).counts
    annotator.compact(output.uri)
    assert annotator.query(output.uri, sql).equals(before)
    assert annotator.verify(output.uri).counts == problems
    assert annotator.status(output.uri).tasks[1].rows == 48


def test_a_snapshot_that_is_out_of_date_is_not_used(output: Output) -> None:
    annotator.compact(output.uri)
    assert is_used(output)
    output.rewrite("seg", 1, lambda rows: [{**row, "confidence": 0.25} for row in rows])
    assert not is_used(output)
    assert annotator.query(output.uri, "select count(*) n from seg where confidence = 0.25")["n"].to_pylist() == [16]
    assert is_used(output, "depth")
    annotator.compact(output.uri)
    assert is_used(output)
    assert annotator.query(output.uri, "select count(*) n from seg where confidence = 0.25")["n"].to_pylist() == [16]


def test_only_what_is_new_is_copied(tmp_path: Path) -> None:
    made = make_output(str(tmp_path), tasks=("seg",), rows=(160,), skip=[("seg", 8), ("seg", 9)])
    assert [c.copied for c in annotator.compact(made.uri)] == [8]
    assert [c.copied for c in annotator.compact(made.uri)] == [0]
    first = tables(made)
    for index, copied in ((8, 1), (9, 2)):  # the second takes the small segment of the first along
        write_shard(made, Plan(), "seg", made.shards()[index])
        assert [c.copied for c in annotator.compact(made.uri)] == [copied]
        assert is_used(made)
        assert by_place(open_labels(made.uri, "seg").to_table()) == plain(made)
    assert set(first) < set(tables(made))


def test_old_files_are_removed_by_the_call_after_the_next(output: Output) -> None:
    """Readers that have the old snapshot open go on; what no snapshot names goes."""
    annotator.compact(output.uri, tasks=["seg"])
    opened, old = open_labels(output.uri, "seg"), tables(output)
    for value in (0.25, 0.5):
        output.rewrite("seg", 1, lambda rows: [{**row, "confidence": value} for row in rows])  # noqa: B023
        annotator.compact(output.uri, tasks=["seg"])
        if value == 0.25:
            assert opened.to_table().num_rows == 48
    assert not set(old) & set(tables(output))
    assert len(tables(output)) == 2


@pytest.mark.parametrize("call", ["create", "replace"])
def test_a_kill_leaves_the_old_snapshot(output: Output, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    annotator.compact(output.uri, tasks=["seg"])
    snapshot = Path(output.uri, "tables", "seg", "_snapshot.json").read_bytes()
    changed = output.path("seg", 0).read_bytes()
    status = output.path("seg", 0).stat()
    output.rewrite("seg", 0, lambda rows: [{**row, "confidence": 0.25} for row in rows])
    with monkeypatch.context() as patch:

        def die(*_args: Any, **_more: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(Storage, call, die)
        with pytest.raises(KeyboardInterrupt):
            annotator.compact(output.uri, tasks=["seg"])
    assert Path(output.uri, "tables", "seg", "_snapshot.json").read_bytes() == snapshot
    assert not is_used(output)
    output.path("seg", 0).write_bytes(changed)  # the same file, as it was
    os.utime(output.path("seg", 0), ns=(status.st_atime_ns, status.st_mtime_ns))
    assert is_used(output)
    assert by_place(open_labels(output.uri, "seg").to_table()) == plain(output)


def test_a_snapshot_that_lacks_a_file_is_not_used_and_is_mended(output: Output) -> None:
    annotator.compact(output.uri, tasks=["seg"])
    tables(output)[0].unlink()
    assert not is_used(output)
    annotator.compact(output.uri, tasks=["seg"])
    assert is_used(output)


def test_a_row_is_found_by_its_id_without_the_manifest(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    annotator.compact(output.uri)
    monkeypatch.setattr("annotator.labels.find._find_row", lambda *_: pytest.fail("searched the manifest"))
    assert find_label(output.uri, "seg", shuffled(20))["row"] == 20
    assert find_label(output.uri, "seg", shuffled(39))["row"] == 7, "of two with one id the first"


def test_a_row_that_the_snapshot_does_not_know_yet_is_found_all_the_same(tmp_path: Path) -> None:
    made = make_output(str(tmp_path), tasks=("seg",), rows=(32,), skip=[("seg", 1)])
    annotator.compact(made.uri)
    write_shard(made, Plan(), "seg", made.shards()[1])
    made.rewrite("seg", 0, lambda rows: [{**row, "confidence": 0.25} for row in rows])
    assert find_label(made.uri, "seg", "image-0-20")["row"] == 20
    assert find_label(made.uri, "seg", "image-0-2")["confidence"] == 0.25, "rows come from label files"


def test_what_can_not_be_compacted_is_said(output: Output) -> None:
    with pytest.raises(OutputError, match="no pose labels"):
        annotator.compact(output.uri, tasks=["pose"])
    output.path("depth", 0).with_name("mine.parquet").write_bytes(label_bytes([], output.records["depth"].file_schema))
    with pytest.raises(OutputError, match=r"mine\.parquet: is no label file of ours"):
        annotator.compact(output.uri, tasks=["depth"])
    output.path("seg", 1).write_bytes(b"PAR1 but no more")
    with pytest.raises(OutputError, match="run annotator verify"):
        annotator.compact(output.uri, tasks=["seg"])


def test_a_task_without_label_files_has_an_empty_snapshot(tmp_path: Path) -> None:
    made = make_output(str(tmp_path), tasks=("seg",), rows=(4,), skip=[("seg", 0)])
    assert [c.rows for c in annotator.compact(made.uri)] == [0]
    assert open_labels(made.uri, "seg").count_rows() == 0


@pytest.mark.s3
def test_a_snapshot_lies_on_s3_beside_the_labels(moto_s3: StorageOptions, s3_bucket: str) -> None:
    storage = Storage(options=moto_s3)
    made = make_output(s3_bucket, storage, tasks=("seg",), rows=(32,))
    annotator.compact(made.uri, storage=storage)
    found = open_labels(made.uri, "seg", storage=storage)
    assert "/tables/seg/" in found.files[0]
    assert found.count_rows() == 32
    with s3_requests() as requests:
        assert find_label(made.uri, "seg", "image-0-20", storage=storage)["row"] == 20
    assert len(requests) <= 12
    assert not [key for _, key, _ in requests if "/manifest/" in key or key.startswith("manifest/")]
    data = storage.read(made.label("seg"))
    for _ in range(2):  # and old files go
        storage.replace(data, made.label("seg"), output=made.uri)
        storage.replace(data + b"", made.label("seg"), output=made.uri)
        annotator.compact(made.uri, storage=storage)
    assert open_labels(made.uri, "seg", storage=storage).count_rows() == 32


def test_the_command_says_what_it_did(output: Output) -> None:
    from annotator.cli import app

    first = CliRunner().invoke(app, ["compact", output.uri, "--task", "seg", "--json"])
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout) == [{"task": "seg", "label_files": 3, "copied": 3, "files": 1, "rows": 48}]
    again = CliRunner().invoke(app, ["compact", output.uri])
    assert again.exit_code == 0, again.output
    assert "depth" in again.stdout
