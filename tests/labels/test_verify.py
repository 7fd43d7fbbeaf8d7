"""`verify` proves a clean output clean, and names what was done to a damaged one."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annotator.errors import OutputError, TransientStorageError
from annotator.job import StorageOptions
from annotator.labels.findings import MAX_LISTED, VerifyReport
from annotator.labels.verify import verify
from annotator.storage import Storage
from tests.labels.make_output import Output, Row, flip_byte, label_bytes, make_output, make_records

Change = Callable[[list[Row]], list[Row]]


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return make_output(str(tmp_path), tasks=("seg", "depth"))


def found(report: VerifyReport) -> dict[str, str]:
    """Return where each kind of problem was found, as the end of its uri."""
    return {p.kind: p.where.removeprefix(report.output + "/") for p in report.problems}


def short(output: Output, task: str, index: int) -> str:
    return output.label(task, index).removeprefix(output.uri + "/")


def test_a_clean_output_is_clean(clean: Output) -> None:
    """47 rows = shards of 16, 16, 8 and 7; images 3, 5, 6 are in both manifest files, image 33 in one."""
    report = verify(clean.uri)
    assert report.ok and report.problems == ()
    assert [(t.task, t.shards, t.shards_expected, t.rows) for t in report.tasks] == [
        ("depth", 4, 4, 47),
        ("normal", 4, 4, 47),
        ("seg", 4, 4, 47),
    ]
    bad = {"failed": 1, "no_person": 2, "ok": 40, "rejected": 2, "unreadable": 2}
    assert [t.statuses for t in report.tasks] == [bad] * 3


def test_progress_counts_the_label_files(clean: Output) -> None:
    seen: list[tuple[int, int]] = []
    verify(clean.uri, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 12) for n in range(1, 13)]


def test_an_output_whose_where_leaves_rows_out_is_clean(tmp_path: Path) -> None:
    """size >= 20 leaves out every row of the second manifest file and of the first shard: files without rows."""
    output = make_output(str(tmp_path), where="size >= 20 and size != 30")
    report = verify(output.uri)
    assert report.ok
    assert [t.rows for t in report.tasks] == [19] * 3


def test_a_row_that_where_leaves_out_must_not_be_there(tmp_path: Path) -> None:
    output = make_output(str(tmp_path), where="size != 17", tasks=("depth",))
    output.rewrite("depth", 1, lambda rows: [{**rows[0], "row": 17}, *rows[1:]])
    report = verify(output.uri)
    assert report.counts == {"wrong_rows": 1}
    assert "1 missing (first 16), 1 not of this shard (first 17)" in report.problems[0].message


def test_a_manifest_that_is_gone_leaves_where_unproven_and_says_so(tmp_path: Path) -> None:
    output = make_output(str(tmp_path), where="size >= 0")
    gone = output.manifest.files[0].uri
    os.unlink(gone)
    report = verify(output.uri)
    assert report.counts == {"manifest": 1}
    assert report.problems[0].where == gone


def test_a_folder_that_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        verify(str(tmp_path))


# -- rows --------------------------------------------------------------------------------------


def _mistype(rows: list[Row]) -> list[Row]:
    return [{**rows[0], "status": "fine"}, *rows[1:]]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda rows: rows[:4] + rows[5:], "wrong_rows", "15 rows, expected 16: 1 missing (first 20)"),
        (lambda rows: [*rows[:5], rows[4], *rows[5:]], "wrong_rows", "1 more than once (first 20)"),
        (lambda rows: [rows[1], rows[0], *rows[2:]], "wrong_rows", "1 out of order (first 16)"),
        (lambda rows: rows[:-1], "wrong_rows", "1 missing (first 31)"),
        (lambda _rows: [], "wrong_rows", "0 rows, expected 16: 16 missing (first 16)"),
        (lambda rows: [*rows, {**rows[-1], "row": 32}], "wrong_rows", "1 not of this shard (first 32)"),
        (lambda rows: [{**rows[0], "row": None}, *rows[1:]], "wrong_rows", "1 not of this shard (first -1)"),
        (lambda rows: [{**r, "shard": "other/000000000000-000000000016"} for r in rows], "wrong_shard", "of other/"),
        (lambda rows: [{**rows[0], "shard": None}, *rows[1:]], "wrong_shard", "holds rows of None"),
        (lambda rows: [{**rows[0], "image_id": None}, *rows[1:]], "image_id", "first row 16"),
        (lambda rows: [rows[0], {**rows[1], "image_id": ""}, *rows[2:]], "image_id", "first row 17"),
        (_mistype, "status", "first row 16"),
        (lambda rows: [{**rows[0], "status": "failed"}, *rows[1:]], "map", "first row 16"),
        (lambda rows: [rows[0], {**rows[1], "mask": None}, *rows[2:]], "map", "first row 17"),
        (lambda rows: [{**rows[0], "mask": {"bytes": b"", "path": None}}, *rows[1:]], "map", "1 of 16 rows"),
    ],
)
def test_rows_other_than_those_of_the_shard_are_named(output: Output, change: Change, kind: str, message: str) -> None:
    """The second shard holds rows 16 to 31."""
    output.rewrite("seg", 1, change)
    report = verify(output.uri)
    assert kind in report.counts
    problem = next(p for p in report.problems if p.kind == kind)
    assert problem.where == output.label("seg", 1)
    assert message in problem.message


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(picks=st.lists(st.integers(0, 15), min_size=12, max_size=18))
def test_only_all_rows_once_and_in_order_pass(output: Output, picks: list[int]) -> None:
    """Rows of the first shard, any of them any number of times; and the right ones with one place taken."""
    whole = pq.ParquetFile(output.path("depth", 0)).read().to_pylist()
    try:
        for chosen in (picks, sorted(set(picks)), list(range(16))):
            output.rewrite("depth", 0, lambda _rows, chosen=chosen: [whole[i] for i in chosen])  # type: ignore[misc]
            assert verify(output.uri).ok == (chosen == list(range(16)))
    finally:
        output.rewrite("depth", 0, lambda _rows: whole)


# -- files -------------------------------------------------------------------------------------


def test_a_flipped_byte_in_a_map_is_a_checksum_problem(output: Output) -> None:
    png = pq.read_table(output.path("seg", 2))["mask"][5].as_py()["bytes"]
    flip_byte(output.path("seg", 2), png)
    report = verify(output.uri)
    assert report.counts == {"checksum": 1}
    assert found(report) == {"checksum": short(output, "seg", 2)}


def test_a_flipped_byte_in_any_column_is_found(output: Output) -> None:
    """Every column chunk of the file, in the middle of the last page: past the page's header."""
    path = output.path("depth", 0)
    whole = path.read_bytes()
    group = pq.ParquetFile(path).metadata.row_group(0)
    for i in range(group.num_columns):
        column = group.column(i)
        if column.path_in_schema == "depth.path":
            continue  # all null: a page of three bytes
        start = column.dictionary_page_offset or column.data_page_offset
        data = bytearray(whole)
        data[start + column.total_compressed_size - 2] ^= 1
        path.write_bytes(data)
        assert not verify(output.uri).ok, column.path_in_schema


@pytest.mark.parametrize("keep", [0, 3, 40, 0.5, 0.99])
def test_a_truncated_file_is_unreadable(output: Output, keep: float) -> None:
    path = output.path("depth", 3)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    report = verify(output.uri)
    assert found(report) == {"unreadable": short(output, "depth", 3)}


def test_text_in_place_of_labels_is_unreadable(output: Output) -> None:
    output.path("depth", 3).write_bytes(b"<html>504 Gateway Timeout</html>" * 40)
    assert found(verify(output.uri)) == {"unreadable": short(output, "depth", 3)}


def test_missing_shards_are_one_problem_a_task_and_all_counted(output: Output) -> None:
    for task, index in (("seg", 1), ("seg", 3), ("depth", 0)):
        output.path(task, index).unlink()
    report = verify(output.uri)
    assert report.counts == {"missing_shard": 3}
    assert [p.where for p in report.problems] == [f"{output.uri}/labels/depth", f"{output.uri}/labels/seg"]
    assert f"2 of 4 shards, the first is {output.shards()[1]}" in report.problems[1].message
    assert [t.shards for t in report.tasks] == [3, 2]


def test_swapped_files_are_named_both(output: Output) -> None:
    a, b = output.path("seg", 0), output.path("seg", 1)
    one, two = a.read_bytes(), b.read_bytes()
    a.write_bytes(two)
    b.write_bytes(one)
    report = verify(output.uri)
    assert report.counts == {"wrong_rows": 2, "wrong_shard": 2}
    assert {p.where for p in report.problems} == {str(a), str(b)}


def test_a_file_of_another_task_is_named(output: Output) -> None:
    output.path("seg", 0).write_bytes(output.path("depth", 0).read_bytes())
    assert verify(output.uri).counts == {"fingerprint": 1, "schema": 1}


@pytest.mark.parametrize(
    "name",
    [
        "labels/_SUCCESS",
        "labels/seg/notes.txt",
        "labels/seg/{key}/000000000000-000000000016.parquet.tmp",
        "labels/seg/{key}/000000000000-000000000015.parquet",
        "labels/seg/{key}/000000000016-000000000048.parquet",
        "labels/seg/{key}/000000000040-000000000056.parquet",
        "labels/seg/part-9-00000000/000000000000-000000000016.parquet",
        "labels/pose/{key}/000000000000-000000000016.parquet",
        "labels/seg/a/b/000000000000-000000000016.parquet",
    ],
)
def test_a_foreign_file_is_named(output: Output, name: str) -> None:
    place = Path(output.uri) / name.format(key=output.manifest.files[0].key)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(output.path("seg", 0).read_bytes())
    report = verify(output.uri)
    assert report.counts == {"foreign_file": 1}
    assert report.problems[0].where == str(place)


def test_a_pin_that_is_gone_turns_its_labels_into_foreign_files(output: Output) -> None:
    (Path(output.uri) / "_annotator" / "manifests" / f"{output.manifest.files[1].key}.json").unlink()
    report = verify(output.uri)
    assert report.counts == {"foreign_file": 2}


def test_a_wrong_count_in_a_pin_is_found(output: Output) -> None:
    """Pinned with 23 rows instead of 7: shards 0-16 and 16-23 are expected, 0-7 is none of them."""
    pin = Path(output.uri) / "_annotator" / "manifests" / f"{output.manifest.files[1].key}.json"
    pin.write_text(json.dumps(json.loads(pin.read_text()) | {"rows": 23}))
    assert verify(output.uri).counts == {"foreign_file": 2, "missing_shard": 4}


# -- schema and fingerprint --------------------------------------------------------------------


def test_a_file_of_another_fingerprint_is_named(output: Output) -> None:
    other = make_records(("seg",), sha256="0bad" * 16)["seg"]
    rows = pq.read_table(output.path("seg", 1)).to_pylist()
    output.path("seg", 1).write_bytes(label_bytes(rows, other.file_schema))
    report = verify(output.uri)
    assert found(report) == {"fingerprint": short(output, "seg", 1)}
    assert other.fingerprint_digest[:12] in report.problems[0].message


def test_a_file_that_says_nothing_of_itself_is_named(output: Output) -> None:
    table = pq.read_table(output.path("seg", 1))
    for metadata in ({}, {"annotator": "{"}, {"annotator": "[1]"}):
        output.path("seg", 1).write_bytes(label_bytes(table.to_pylist(), table.schema.with_metadata(metadata)))
        assert verify(output.uri).counts == {"fingerprint": 1}


def test_a_file_whose_meaning_was_edited_is_named(output: Output) -> None:
    table = pq.read_table(output.path("seg", 1))
    header = {**output.records["seg"].header, "meaning": {"what": "shoes"}}
    schema = table.schema.with_metadata({"annotator": json.dumps(header)})
    output.path("seg", 1).write_bytes(label_bytes(table.to_pylist(), schema))
    report = verify(output.uri)
    assert report.counts == {"metadata": 1}
    assert "meaning" in report.problems[0].message


def test_columns_of_another_name_type_or_order_are_named(output: Output) -> None:
    schema = output.records["seg"].file_schema
    rows = pq.read_table(output.path("seg", 1)).to_pylist()
    at = schema.get_field_index("row")
    cases = {
        "the type of column row is int32": schema.set(at, pa.field("row", pa.int32())),
        "column 2 is line": schema.set(at, pa.field("line", pa.int64())),
        "is nothing, expected confidence": schema.remove(len(schema) - 1),
        "is extra, expected nothing": schema.append(pa.field("extra", pa.int8())),
    }
    for message, other in cases.items():
        output.path("seg", 1).write_bytes(label_bytes([{**r, "line": r["row"]} for r in rows], other))
        report = verify(output.uri)
        assert report.counts == {"schema": 1}
        assert message in report.problems[0].message


def test_row_groups_that_are_too_large_are_named(output: Output) -> None:
    rows = pq.read_table(output.path("seg", 0)).to_pylist() + pq.read_table(output.path("seg", 1)).to_pylist()
    data = label_bytes(rows, output.records["seg"].file_schema, row_group_rows=32)
    output.path("seg", 0).write_bytes(data)
    assert "row_groups" in verify(output.uri).counts


# -- the report --------------------------------------------------------------------------------


def test_a_thousand_problems_of_one_kind_are_counted_and_a_few_listed(output: Output) -> None:
    folder = Path(output.uri) / "labels" / "seg"
    for i in range(MAX_LISTED + 20):
        (folder / f"{i:03}.txt").write_text("not a label")
    report = verify(output.uri)
    assert report.counts == {"foreign_file": MAX_LISTED + 20}
    assert len(report.problems) == MAX_LISTED


@pytest.mark.s3
def test_verify_and_its_findings_are_the_same_on_s3(moto_s3: StorageOptions, s3_bucket: str) -> None:
    storage = Storage(options=moto_s3)
    output = make_output(s3_bucket, storage, tasks=("depth",), skip=[("depth", 3)])
    storage.replace(b"PAR1", output.label("depth", 1), output=output.uri)
    storage.replace(b"x", f"{output.uri}/labels/x.txt", output=output.uri)
    report = verify(output.uri, storage)
    assert report.counts == {"foreign_file": 1, "missing_shard": 1, "unreadable": 1}
    assert [(t.shards, t.rows) for t in report.tasks] == [(3, 24)]


@pytest.mark.parametrize("whole_bytes", [0, 10**9])
def test_a_storage_fault_ends_verify_and_is_no_finding(
    output: Output, monkeypatch: pytest.MonkeyPatch, whole_bytes: int
) -> None:
    """Read whole or in parts: what storage could not say must not pass for damage."""

    class Faulty(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise TransientStorageError("throttled")

    def fail(_self: Storage, uri: str, **_: object) -> bytes:
        if "/labels/" in uri.removeprefix(output.uri):
            raise TransientStorageError("throttled")
        return Path(uri).read_bytes()

    monkeypatch.setattr("annotator.labels.scan.WHOLE_BYTES", whole_bytes)
    monkeypatch.setattr(Storage, "open", lambda _self, _uri, _info=None: Faulty(b"x" * 100))
    monkeypatch.setattr(Storage, "read", fail)
    with pytest.raises(TransientStorageError, match="throttled"):
        verify(output.uri)


@pytest.mark.parametrize("whole_bytes", [0, 5000])
def test_files_read_in_parts_are_judged_alike(
    output: Output, monkeypatch: pytest.MonkeyPatch, whole_bytes: int
) -> None:
    monkeypatch.setattr("annotator.labels.scan.WHOLE_BYTES", whole_bytes)
    monkeypatch.setattr("annotator.labels.check.WHOLE_BYTES", whole_bytes)
    assert verify(output.uri).ok
    flip_byte(output.path("seg", 2), pq.read_table(output.path("seg", 2))["mask"][5].as_py()["bytes"])
    assert verify(output.uri).counts == {"checksum": 1}
