"""Maps in tar files (`dense: tar`) are the maps of the default layout, for every reader, at one ranged read each."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import annotator
from annotator import fast_get, local
from annotator.errors import FingerprintMismatchError, InvalidInputError, NotFoundError, OutputError
from annotator.fingerprint import read_task_records
from annotator.job import StorageOptions
from annotator.storage import Storage
from annotator.tars import TarWriter, member_name, read_members
from tests.labels.counting import s3_requests
from tests.labels.in_tars import TASKS, Pair, in_tars, output, pair
from tests.running.make import file_bytes, is_whole, table

__all__ = ["output", "pair"]


def rows(job: annotator.Job, task: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table(job.output, task).to_pylist()
    return found


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_those_of_the_default_layout(pair: Pair, task: str) -> None:
    """Depth's background is cut away by seg's mask of the same pass. A bad row has no map."""
    ours, theirs = rows(pair.tar, task), rows(pair.plain, task)
    maps = annotator.load_maps(annotator.open_labels(pair.tar.output, task), task, root=pair.tar.output)
    expected = annotator.load_maps(annotator.open_labels(pair.plain.output, task), task)
    for number, (found, wanted) in enumerate(zip(maps, expected, strict=True)):
        assert (found is None) == (wanted is None) == (number == 3)
        assert found is None or np.array_equal(found, wanted, equal_nan=True)  # type: ignore[arg-type]
    column = next(name for name in ("mask", "depth", "normal") if name in ours[0])
    assert [row.pop(column) is None for row in ours] == [row.pop(column) is None for row in theirs]
    assert ours == theirs


def test_only_label_files_lie_under_labels_and_tar_files_name_task_shard_and_attempt(pair: Pair) -> None:
    root = Path(pair.tar.output)
    assert {path.suffix for path in (root / "labels").rglob("*") if path.is_file()} == {".parquet"}
    labels = {str(path.relative_to(root / "labels").with_suffix("")) for path in (root / "labels").rglob("*.parquet")}
    tars = [str(path.relative_to(root / "png")) for path in (root / "png").rglob("*") if path.is_file()]
    assert len(tars) == len(labels) == 2 * len(TASKS)
    assert {name[: -len("-0123456789abcdef.tar")] for name in tars} == labels
    column = pq.read_schema(next((root / "labels" / "seg").rglob("*.parquet"))).field("mask")
    assert column.type == pa.struct([("path", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
    assert column.metadata[b"encoding"] == b"8-bit palette PNG"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves tar files open
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_webdataset_reads_the_store_and_its_keys_are_the_rows(pair: Pair) -> None:
    import webdataset

    tars = sorted(str(path) for path in Path(pair.tar.output, "png", "normal").rglob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
    plain = [row for row in rows(pair.plain, "normal") if row["status"] == "ok"]
    assert [sample["normal.png"] for sample in samples] == [row["normal"]["bytes"] for row in plain]
    keys = [f"{row['shard'].split('/')[0]}-{row['row']:012d}" for row in plain]
    assert [sample["__key__"] for sample in samples] == keys


def test_the_same_labels_give_the_same_bytes(pair: Pair, tmp_path: Path) -> None:
    """Label files and tar files, their names included: an attempt is named by what it wrote."""
    again = in_tars(pair.plain, tmp_path / "again")
    with pair.empty_picture():
        annotator.run(again, ray=False)
    assert file_bytes(again.output, TASKS) == file_bytes(pair.tar.output, TASKS)

    def tars(job: annotator.Job) -> dict[str, bytes]:
        root = Path(job.output, "png")
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.tar")}

    assert tars(again) == tars(pair.tar)


@pytest.mark.parametrize("first", ["tar", "plain"])
def test_a_run_with_the_other_layout_is_refused_by_name(pair: Pair, first: str) -> None:
    there, other = (pair.tar, pair.plain) if first == "tar" else (pair.plain, pair.tar)
    words = r"dense = (tar|parquet), this job has (tar|parquet); use another output"
    with pytest.raises(FingerprintMismatchError, match=words):
        annotator.run(there.model_copy(update={"tasks": other.tasks}), ray=False)


def test_the_layout_is_no_part_of_the_fingerprint(pair: Pair) -> None:
    """Labels of both are the same labels, and outputs made before the option are still theirs."""
    records = [read_task_records(Storage(), job.output) for job in (pair.tar, pair.plain)]
    assert [r.fingerprint for r in records[0].values()] == [r.fingerprint for r in records[1].values()]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=12), st.sampled_from(["seg", "a.module." + "x" * 90]))
def test_each_map_lies_where_it_was_said_to(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], task: str
) -> None:
    """Whatever the sizes; names too long for one header as well."""
    folder = tmp_path_factory.mktemp("written")
    path = folder / "png" / task / "part-0" / f"{0:012d}-{99:012d}-{0:016x}.tar"
    path.parent.mkdir(parents=True)
    writer = TarWriter(path)
    datas = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    ends = [writer.add(member_name(task, "part-0", number), data) for number, data in enumerate(datas)]
    writer.close()
    with tarfile.open(path) as tar:
        assert [(m.name, m.offset_data, m.size) for m in tar] == [
            (member_name(task, "part-0", number), *end) for number, end in enumerate(ends)
        ]
    places = [{"path": str(path.relative_to(folder)), "offset": at, "size": size} for at, size in ends]
    for chosen in (places, places[::2], places[::-1]):
        members = read_members(Storage(), str(folder), chosen)
        numbers = [places.index(place) for place in chosen]
        assert [member.data for member in members] == [datas[number] for number in numbers]
        problems = [m.problem(member_name(task, "part-0", n), sizes[n]) for m, n in zip(members, numbers, strict=True)]
        assert problems == [None] * len(chosen)


# -- one map ---------------------------------------------------------------------------------------


def test_a_map_on_a_disk_is_one_read_of_its_own_bytes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[str, int, int | None, int]] = []
    real = local.read_plain

    def read(path: str, start: int, length: int | None) -> bytes:
        data = real(path, start, length)
        reads.append((path, start, length, len(data)))
        return data

    monkeypatch.setattr(local, "read_plain", read)
    for task, column in (("seg", "mask"), ("depth", "depth"), ("normal", "normal")):
        row = rows(pair.tar, task)[4]
        reads.clear()
        annotator.load_map(row, task, root=pair.tar.output)
        place = row[column]
        path = f"{pair.tar.output}/{place['path']}"
        assert reads == [(path, place["offset"], place["size"], place["size"])]


@pytest.fixture
def remote(pair: Pair, moto_s3: StorageOptions, s3_bucket: str) -> tuple[str, Storage]:
    """The output on S3, and the way there."""
    storage, root = Storage(options=moto_s3), Path(pair.tar.output)
    for path in root.rglob("*"):
        if path.is_file():
            storage.create(path, f"{s3_bucket}/out/{path.relative_to(root)}", output=s3_bucket)
    return f"{s3_bucket}/out", storage


@pytest.mark.s3
def test_a_map_on_s3_is_one_request_for_its_own_bytes(
    pair: Pair, remote: tuple[str, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, storage = remote
    row = annotator.find_label(uri, "depth", rows(pair.tar, "depth")[5]["image_id"], storage=storage)
    expected = annotator.load_map(row, "depth", root=pair.tar.output)
    by_obstore = annotator.load_map(row, "depth", root=uri, storage=storage)
    monkeypatch.setattr(fast_get, "is_installed", lambda: False)
    with s3_requests() as requests:
        by_s3fs = annotator.load_map(row, "depth", root=uri, storage=storage)
    [(method, key, ranges)] = requests
    place = row["depth"]
    assert (method, ranges) == ("get_object", [(place["offset"], place["size"])])
    assert key.endswith(place["path"])
    assert np.array_equal(by_obstore, expected, equal_nan=True) and np.array_equal(by_s3fs, expected, equal_nan=True)
    with s3_requests() as requests:
        list(annotator.load_maps(annotator.open_labels(uri, "seg", storage=storage), "seg", root=uri, storage=storage))
    assert sum(key.endswith(".tar") for _, key, _ in requests) == 6  # of 7 rows, one is bad
    assert annotator.verify(uri, storage, deep=True).ok


READERS: dict[str, Callable[[str], Any]] = {
    "pandas": lambda folder: pd.read_parquet(folder).sort_values("row").iloc[4],
    "polars": lambda folder: pl.read_parquet(f"{folder}/**/*.parquet").sort("row").row(4, named=True),
    "duckdb": lambda folder: duckdb.execute(f"from '{folder}/*/*.parquet' order by row").df().iloc[4],
    "datasets": lambda folder: _of_datasets(folder),
}


def _of_datasets(folder: str) -> dict[str, Any]:
    import datasets

    files = sorted(str(path) for path in Path(folder).rglob("*.parquet"))
    features = datasets.Features.from_arrow_schema(pq.read_schema(files[0]))
    rows = datasets.Dataset.from_parquet(files, features=features, cache_dir=f"{folder}/../cache", keep_in_memory=True)
    row: dict[str, Any] = rows[4]
    return row


@pytest.mark.parametrize("reader", READERS)
def test_a_row_of_any_reader_leads_to_its_map(pair: Pair, output: Path, reader: str) -> None:
    found = annotator.load_map(READERS[reader](str(output / "labels" / "normal")), "normal", root=str(output))
    assert np.array_equal(found, annotator.load_map(rows(pair.plain, "normal")[4], "normal"), equal_nan=True)


def test_what_keeps_a_map_from_being_read_is_said(output: Path) -> None:
    row = annotator.open_labels(str(output), "seg").head(1).to_pylist()[0]
    with pytest.raises(InvalidInputError, match="has no seg map; give root"):
        annotator.load_map(row, "seg")
    outside = f"png/../../{0:012d}-{5:012d}-{0:016x}.tar"
    for place in ({"path": outside}, {"path": "/etc/passwd"}, {"offset": 7}, {"size": None}):
        with pytest.raises(InvalidInputError, match=r"damaged seg map: .*(is no tar file|no map of)"):
            annotator.load_map({**row, "mask": {**row["mask"], **place}}, "seg", root=str(output))
    path = output / row["mask"]["path"]
    path.write_bytes(path.read_bytes()[: row["mask"]["offset"] + 5])
    with pytest.raises(InvalidInputError, match="ends after 5 of the map's"):
        annotator.load_map(row, "seg", root=str(output))
    path.unlink()
    with pytest.raises(NotFoundError, match=path.name):
        annotator.load_map(row, "seg", root=str(output))
    with pytest.raises(OutputError, match=r"run annotator verify"):
        annotator.export(str(output), output.parent / "exported", "png")


# -- every reader of ours ----------------------------------------------------------------------------


def _tree(folder: Path) -> dict[str, bytes]:
    """Return what an export holds, but for what says which output it is of."""
    inner = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in inner.items() if "_export" not in name.parts}


@pytest.mark.parametrize("format", ["png", "webdataset", "huggingface", "coco-segmentation", "manifest"])
def test_an_export_is_that_of_the_default_layout(pair: Pair, tmp_path: Path, format: Any) -> None:
    found = []
    for name, job in (("tar", pair.tar), ("plain", pair.plain)):
        annotator.export(job.output, tmp_path / name, format)
        tree = _tree(tmp_path / name)
        found.append({path: data.replace(job.output.encode(), b"OUT") for path, data in tree.items()})
    assert found[0] == found[1] != {}


def test_query_find_join_and_preview_work_before_and_after_compacting(pair: Pair, output: Path) -> None:
    out, plain = str(output), pair.plain.output
    expected = [annotator.load_map(row, "seg") for row in rows(pair.plain, "seg") if row["status"] == "ok"]
    preview = annotator.preview(plain, output.parent / "plain.png").read_bytes()
    for compacted in (False, True):
        if compacted:
            annotator.compact(out)
        sql = "select status, mask from seg where status = 'ok' order by row"
        found = [
            annotator.query(out, sql),
            annotator.join(out, columns=["seg"], filter="seg.status == 'ok'").read_all(),
        ]
        places = [found[0].to_pylist(), [row["seg"] for row in found[1].to_pylist()]]
        ids = [row["image_id"] for row in rows(pair.plain, "seg") if row["status"] == "ok"]
        places.append([annotator.find_label(out, "seg", image_id) for image_id in ids])
        for found_rows in places:
            maps = list(annotator.load_maps(found_rows, "seg", root=out))
            assert all(np.array_equal(a, b) for a, b in zip(maps, expected, strict=True))  # type: ignore[arg-type]
        ours = annotator.preview(out, output.parent / "ours.png").read_bytes()
        assert (ours == preview) == (not compacted)  # a snapshot has another order
    assert is_whole(pair.tar.model_copy(update={"output": out}))


def test_a_joined_stream_leaves_maps_out_unless_they_are_named(pair: Pair) -> None:
    for job in (pair.tar, pair.plain):
        schema = annotator.join(job.output, ["seg"]).schema
        assert "mask" not in [child.name for child in schema.field("seg").type]
