"""A sound output, tampered with in every way we could think of: each is named by kind and file; none is a crash."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import annotator
from annotator.errors import AnnotatorError, OutputError
from annotator.fingerprint import read_task_records
from annotator.job import StorageOptions
from annotator.labels.check import check_file
from annotator.labels.scan import label_files
from annotator.labels.verify import verify
from annotator.manifest import read_pins
from annotator.storage import Storage, join
from tests.labels.make_output import Row, label_bytes
from tests.running.make import make_job

TASKS = ("seg", "depth")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoints: dict[str, Path]) -> annotator.Job:
    """The output of a real run: 12 pictures, shards of 5, 5 and 2, two tasks."""
    job = make_job(tmp_path_factory.mktemp("made"), tiny_checkpoints, count=12, tasks=TASKS)
    annotator.run(job, ray=False)
    assert verify(job.output).ok
    return job


@pytest.fixture
def output(made: annotator.Job, tmp_path: Path) -> Path:
    """A copy of it to tamper with."""
    return Path(shutil.copytree(made.output, tmp_path / "labels-out"))


def labels(output: Path, task: str) -> list[Path]:
    return sorted((output / "labels" / task).rglob("*.parquet"))


def rewrite(path: Path, change: Callable[[list[Row]], list[Row]]) -> None:
    """Write a label file again with other rows, as sound as any."""
    rows, schema = pq.ParquetFile(path).read().to_pylist(), pq.read_schema(path)
    path.write_bytes(label_bytes(change(rows), schema))


# -- the ten ways ------------------------------------------------------------------------------


def drop_a_row(output: Path) -> Path:
    path = labels(output, "seg")[0]
    rewrite(path, lambda rows: rows[:2] + rows[3:])
    return path


def double_a_row(output: Path) -> Path:
    path = labels(output, "seg")[0]
    rewrite(path, lambda rows: [*rows, rows[0]])
    return path


def flip_a_byte(output: Path) -> Path:
    path = labels(output, "depth")[1]
    png = pq.read_table(path)["depth"][2].as_py()["bytes"]
    data = bytearray(path.read_bytes())
    data[bytes(data).index(png) + len(png) // 2] ^= 1
    path.write_bytes(data)
    return path


def take_a_file_of_other_weights(output: Path) -> Path:
    path = labels(output, "seg")[1]
    schema = pq.read_schema(path)
    header = json.loads(schema.metadata[b"annotator"])
    header["fingerprint"]["weights"]["sha256"] = "0bad" * 16
    header["fingerprint_digest"] = "beef" * 16
    schema = schema.with_metadata({**schema.metadata, b"annotator": json.dumps(header).encode()})
    path.write_bytes(label_bytes(pq.ParquetFile(path).read().to_pylist(), schema))
    return path


def remove_a_shard(output: Path) -> Path:
    labels(output, "depth")[2].unlink()
    return output / "labels" / "depth"


def add_a_file(output: Path) -> Path:
    path = labels(output, "seg")[0]
    extra = path.with_name("000000000000-000000000004.parquet")
    shutil.copy(path, extra)
    return extra


def change_the_schema(output: Path) -> Path:
    path = labels(output, "seg")[2]
    table = pq.ParquetFile(path).read()
    at = table.schema.get_field_index("width")
    table = table.set_column(at, "width", table["width"].cast(pa.int64()))
    path.write_bytes(label_bytes(table.to_pylist(), table.schema))
    return path


def swap_two_files(output: Path) -> Path:
    one, two = labels(output, "seg")[:2]
    temporary = output / "swapped"
    one.rename(temporary)
    two.rename(one)
    temporary.rename(two)
    return one


def cut_a_file_short(output: Path) -> Path:
    path = labels(output, "depth")[0]
    path.write_bytes(path.read_bytes()[:-100])
    return path


def miscount_the_manifest(output: Path) -> Path:
    """The pin says 13 rows: the last shard should end there."""
    pin = next((output / "_annotator" / "manifests").glob("*.json"))
    pin.write_text(json.dumps(json.loads(pin.read_text()) | {"rows": 13}))
    return labels(output, "seg")[2]


TEN = {
    "a row dropped": (drop_a_row, {"wrong_rows"}),
    "a row twice": (double_a_row, {"wrong_rows"}),
    "a byte flipped": (flip_a_byte, {"checksum"}),
    "a file of another fingerprint": (take_a_file_of_other_weights, {"fingerprint"}),
    "a missing shard": (remove_a_shard, {"missing_shard"}),
    "an extra file": (add_a_file, {"foreign_file"}),
    "a wrong schema": (change_the_schema, {"schema"}),
    "swapped files": (swap_two_files, {"wrong_shard", "wrong_rows"}),
    "a truncated file": (cut_a_file_short, {"unreadable"}),
    "a wrong count": (miscount_the_manifest, {"foreign_file", "missing_shard"}),
}


@pytest.mark.parametrize("way", TEN)
def test_what_was_done_is_named_with_its_file(output: Path, way: str) -> None:
    tamper, kinds = TEN[way]
    where = tamper(output)
    report = verify(str(output))
    assert set(report.counts) == kinds
    assert {p.kind for p in report.problems if p.where == str(where)} <= kinds
    assert str(where) in {p.where for p in report.problems}


def test_two_things_at_once_are_both_named(output: Path) -> None:
    flipped, extra = flip_a_byte(output), add_a_file(output)
    report = verify(str(output))
    assert {(p.kind, p.where) for p in report.problems} == {("checksum", str(flipped)), ("foreign_file", str(extra))}


@pytest.mark.s3
@pytest.mark.parametrize("way", ["a row twice", "a byte flipped", "an extra file", "a truncated file"])
def test_on_s3_it_is_named_as_well(output: Path, way: str, moto_s3: StorageOptions, s3_bucket: str) -> None:
    tamper, kinds = TEN[way]
    where = tamper(output)
    storage = Storage(options=moto_s3)
    remote = join(s3_bucket, "labels-out")
    for path in (p for p in output.rglob("*") if p.is_file()):
        storage.create(path.read_bytes(), join(remote, *path.relative_to(output).parts), output=remote)
    report = verify(remote, storage)
    assert {(p.kind, p.where) for p in report.problems} == {
        (kind, join(remote, *where.relative_to(output).parts)) for kind in kinds
    }


@pytest.mark.s3
def test_a_file_that_is_replaced_while_verify_runs_is_read_again(
    made: annotator.Job, moto_s3: StorageOptions, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed as it was, read in parts: the store refuses to mix two versions."""
    monkeypatch.setattr("annotator.labels.scan.WHOLE_BYTES", 0)
    storage, output, place = Storage(options=moto_s3), Path(made.output), labels(Path(made.output), "seg")[0]
    remote = join(s3_bucket, "labels-out", place.name)
    storage.create(place.read_bytes() + b"PAR1", remote, output=s3_bucket)
    files = label_files(
        Storage(), str(output), read_pins(str(output), Storage()), read_task_records(Storage(), str(output)), ignore
    )
    file = next(f for f in files if f.info.uri == str(place))
    stale = replace(file, info=storage.info(remote))
    assert [kind for kind, _ in check_file(storage, stale).problems] == ["unreadable"]
    storage.replace(place.read_bytes(), remote, output=s3_bucket)
    assert check_file(storage, stale).problems == []


def ignore(kind: str, where: str, message: str, *, task: str = "") -> None:
    pass


# -- bytes -------------------------------------------------------------------------------------


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found_or_changes_nothing_that_arrow_reads(output: Path, data: st.DataObject) -> None:
    """What is not found lies in parts that no Arrow reader uses: table, schema and filters give what they gave."""
    path = labels(output, data.draw(st.sampled_from(TASKS)))[2]
    whole = path.read_bytes()
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    before = everything(path)
    changed = bytearray(whole)
    changed[at] ^= 1 << bit
    try:
        path.write_bytes(changed)
        report = verify(str(output))
        if report.ok:
            assert everything(path) == before
        else:
            assert {p.where for p in report.problems} == {str(path)}
    finally:
        path.write_bytes(whole)


def everything(path: Path) -> list[Any]:
    """Return a label file as readers get it: rows, descriptions, and the rows that filters on each column find."""
    table = pq.ParquetFile(path).read()
    schema = [str(pq.read_schema(path).metadata), table.schema.to_string(truncate_metadata=False)]
    dataset = ds.dataset(path, format="parquet")
    rows = []
    for name in ("row", "image_id", "uri", "width", "height", "status", "map_width"):
        for value in set(table[name].to_pylist()):
            rows.append(dataset.to_table(filter=ds.field(name) == value, columns=["row"])["row"].to_pylist())
        rows.append(dataset.count_rows(filter=ds.field(name).is_null()))
    return [*schema, table.to_pylist(), rows]


def test_statistics_that_would_hide_rows_from_a_filter_are_found(output: Path) -> None:
    """Written with the statistics of other rows, by flipping a byte of `image_id` in the footer."""
    path = labels(output, "seg")[2]
    data = bytearray(path.read_bytes())
    first = pq.ParquetFile(path).metadata.row_group(0).column(2).statistics.min.encode()
    at = bytes(data).rindex(first)
    data[at] = ord("~")
    path.write_bytes(data)
    report = verify(str(output))
    assert report.counts == {"statistics": 1}
    assert "column image_id of row group 0" in report.problems[0].message


def test_an_edited_description_of_a_column_is_found(output: Path) -> None:
    path = labels(output, "depth")[0]
    table = pq.ParquetFile(path).read()
    at = table.schema.get_field_index("depth_scale")
    other = table.schema.field(at).with_metadata({b"unit": b"metre"})
    path.write_bytes(label_bytes(table.to_pylist(), table.schema.set(at, other)))
    report = verify(str(output))
    assert report.counts == {"metadata": 1}
    assert "column depth_scale" in report.problems[0].message


# -- what an output is pinned to ---------------------------------------------------------------


def edited(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


PINNED = {
    "job.json": [{"shard_rows": 0}, {"shard_rows": "5"}, {"where": 5}, {"root": None}],
    "manifests/*.json": [{"rows": -1}, {"rows": "12"}, {"key": "other-00000000"}, {"uri": 7}],
    "tasks/seg.json": [{"task": "depth"}, {"task": 3}, {"fingerprint": {}}, {"schema": "AAAA"}, {"fingerprint": None}],
}


@pytest.mark.parametrize(
    ("name", "values"), [(name, values) for name, edits in PINNED.items() for values in edits], ids=str
)
def test_an_edited_pin_is_named(output: Path, name: str, values: dict[str, Any]) -> None:
    path = next((output / "_annotator").glob(name))
    edited(path, **values)
    with pytest.raises(OutputError, match=path.name):
        verify(str(output))


@pytest.mark.parametrize("name", PINNED)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"', b"{}"])
def test_a_pin_that_is_no_longer_one_is_named(output: Path, name: str, content: bytes) -> None:
    path = next((output / "_annotator").glob(name))
    path.write_bytes(content)
    with pytest.raises(OutputError, match=path.name):
        verify(str(output))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_in_a_pin_never_ends_in_a_traceback(output: Path, data: st.DataObject) -> None:
    """It is refused, or found in the labels, or harmless: a word that only people read, or the manifest's own place."""
    path = next((output / "_annotator").glob(data.draw(st.sampled_from(sorted(PINNED)))))
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        path.write_bytes(changed)
        verify(str(output))
    except AnnotatorError as err:
        assert str(path) in str(err)
    finally:
        path.write_bytes(whole)


def test_an_edited_meaning_of_a_task_is_found_in_every_file(output: Path) -> None:
    edited(output / "_annotator" / "tasks" / "seg.json", meaning={"what": "shoes"})
    report = verify(str(output))
    assert report.counts == {"metadata": 3}


def test_an_edited_where_is_found(output: Path) -> None:
    """The labels were made of all rows; a filter that leaves some out, or makes no sense, does not fit them."""
    pin = output / "_annotator" / "job.json"
    edited(pin, where="uri != '../images/image-0003.png'")
    assert verify(str(output)).counts == {"wrong_rows": 2}
    edited(pin, where="no_such_column > 1")
    assert verify(str(output)).counts == {"manifest": 1}


def test_labels_that_lost_their_record_are_named(output: Path) -> None:
    os.unlink(output / "_annotator" / "tasks" / "seg.json")
    report = verify(str(output))
    assert report.counts == {"foreign_file": 3}
    assert "no record of a task 'seg'" in report.problems[0].message


def test_an_output_that_is_empty_but_for_its_pins_lacks_every_shard(output: Path) -> None:
    shutil.rmtree(output / "labels")
    assert verify(str(output)).counts == {"missing_shard": 6}
