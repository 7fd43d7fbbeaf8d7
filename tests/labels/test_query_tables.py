"""Label tables open lazily, join by place, give one row by its image's id; maps are read when they are asked for."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

import annotator
from annotator.errors import InvalidInputError, OutputError
from annotator.job import StorageOptions
from annotator.labels.find import find_label
from annotator.labels.join import join
from annotator.labels.maps import load_map
from annotator.labels.tables import open_labels
from annotator.storage import Storage
from tests.labels.counting import FOOTER_GUESS, bytes_read, local_reads, map_ranges, s3_requests
from tests.labels.make_output import Output, expected_map, make_output

# -- open_labels -----------------------------------------------------------------------------------


def test_open_labels_gives_every_row_and_the_records_schema(clean: Output) -> None:
    dataset = open_labels(clean.uri, "seg")
    assert isinstance(dataset, ds.Dataset)
    assert dataset.count_rows() == 47
    assert dataset.schema.equals(clean.records["seg"].file_schema, check_metadata=True)
    assert dataset.to_table()["row"].to_pylist() == [*range(40), *range(7)]


def test_it_equals_what_a_plain_reader_sees(clean: Output) -> None:
    plain = ds.dataset(f"{clean.uri}/labels/seg").to_table()
    assert open_labels(clean.uri, "seg").to_table().equals(plain)


def test_an_output_without_label_files_opens_empty(tmp_path: Path) -> None:
    output = make_output(str(tmp_path), tasks=("seg",), rows=(4,), skip=[("seg", 0)])
    table = open_labels(output.uri, "seg", filter="confidence > 0").to_table()
    assert table.num_rows == 0
    assert table.schema.equals(output.records["seg"].schema)


def test_an_unknown_task_is_answered_with_those_there_are(clean: Output, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no pose labels; it has depth, normal, seg"):
        open_labels(clean.uri, "pose")
    with pytest.raises(OutputError, match="holds no labels"):
        open_labels(str(tmp_path), "seg")


def test_columns_leave_only_these_and_those_of_the_filter(clean: Output) -> None:
    dataset = open_labels(clean.uri, "seg", columns=["image_id", "confidence"], filter=pc.field("row") >= 39)
    assert dataset.schema.names == ["image_id", "confidence", "row"]
    assert dataset.to_table().to_pylist() == [{"image_id": "image-0-39", "confidence": 0.75, "row": 39}]


def test_a_filter_is_text_or_an_expression(clean: Output) -> None:
    text = open_labels(clean.uri, "depth", filter="status != 'ok' and row < 6")
    expression = open_labels(clean.uri, "depth", filter=(pc.field("status") != "ok") & (pc.field("row") < 6))
    assert text.to_table().equals(expression.to_table())
    assert text.count_rows() == 4


def test_unknown_columns_are_answered_with_those_there_are(clean: Output) -> None:
    with pytest.raises(InvalidInputError, match="no column 'size'; columns are shard, row, image_id"):
        open_labels(clean.uri, "seg", columns=["size"])
    with pytest.raises(InvalidInputError, match=r"size.*columns are shard, row"):
        open_labels(clean.uri, "seg", filter=pc.field("size") > 3)


def test_duckdb_and_polars_read_the_dataset(clean: Output) -> None:
    labels = open_labels(clean.uri, "seg", columns=["status", "confidence"])
    counted = duckdb.execute("select status, count(*) n from labels group by 1 order by 1").fetchall()
    assert counted == [("failed", 1), ("no_person", 2), ("ok", 40), ("rejected", 2), ("unreadable", 2)]
    assert pl.scan_pyarrow_dataset(labels).select(pl.len()).collect().item() == 47


def test_a_dataset_travels_to_another_process(clean: Output) -> None:
    assert pickle.loads(pickle.dumps(open_labels(clean.uri, "seg"))).count_rows() == 47


# -- bytes that are read ---------------------------------------------------------------------------


def noisy(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    """Let every map be noise, which no PNG makes smaller."""
    noise = np.random.default_rng(0).integers(0, 28, (side, side), dtype=np.uint8)
    monkeypatch.setattr("tests.labels.make_output.expected_map", lambda _task, _row: noise)


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A label file of 1024 rows with maps of 7 KB, 7.8 MB in all."""
    noisy(monkeypatch, 96)
    return make_output(str(tmp_path), tasks=("seg",), rows=(1024,), shard_rows=1024).path("seg")


def test_reading_scores_touches_none_of_the_maps(large: Path) -> None:
    """Not one byte of them, but what the guess at the footer may take of the last ones."""
    with local_reads() as reads:
        table = open_labels(_output_of(large), "seg", columns=["confidence"], filter="status == 'ok'").to_table()
    maps, size = map_ranges(large), large.stat().st_size
    assert table.num_rows == 1024
    assert sum(b - a for a, b in maps) > 0.95 * size
    assert reads.overlap(maps, size) == 0
    assert reads.bytes < size / 25


@pytest.mark.slow
def test_the_scores_of_a_million_rows_are_read_without_their_maps(large: Path) -> None:
    """977 such files, links of one: of 7.6 GB 244 MB are read, which are footers by far the most.

    A file costs 64 KiB for the guess at its footer, the footer (which 1024 rows in groups of 16 make as large), and 64
    pages of scores: 250 KB of 7.8 MB.
    """
    for i in range(1, 977):
        os.link(large, large.with_name(f"{i * 1024:012d}-{(i + 1) * 1024:012d}.parquet"))
    before = bytes_read()
    table = open_labels(_output_of(large), "seg", columns=["confidence"]).to_table()
    taken = bytes_read() - before
    assert table.num_rows == 977 * 1024 >= 10**6
    assert 10**8 < taken < 3 * 10**8 < 977 * large.stat().st_size / 25


def _output_of(path: Path) -> str:
    return str(path.parents[3])


@pytest.mark.s3
def test_scores_are_read_without_their_maps_on_s3(
    moto_s3: StorageOptions, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 files of 16 row groups: their sizes, footers, and one request a row group."""
    noisy(monkeypatch, 64)
    storage = Storage(options=moto_s3)
    output = make_output(s3_bucket, storage, tasks=("seg",), rows=(768,), shard_rows=256)
    with s3_requests() as requests:
        table = open_labels(output.uri, "seg", columns=["confidence"], storage=storage).to_table()
    assert table.num_rows == 768
    data = storage.read(output.label("seg"))
    maps = map_ranges(io.BytesIO(data))
    of_labels = [reads for _, key, reads in requests if key.endswith(".parquet")]
    assert sum(b - a for a, b in maps) > 5 * FOOTER_GUESS
    assert sum(reads.overlap(maps, len(data)) for reads in of_labels) == 0
    assert len(of_labels) <= 3 * (4 + 16)


# -- one row by its image's id ---------------------------------------------------------------------


def test_a_row_is_found_by_its_images_id(clean: Output) -> None:
    row = find_label(clean.uri, "depth", "image-1-3")
    assert (row["row"], row["image_id"], row["status"]) == (3, "image-1-3", "unreadable")
    found = find_label(clean.uri, "depth", "image-0-37")
    assert np.abs(load_map(found, "depth") - expected_map("depth", 37)).max() <= 0.25


def test_an_image_that_is_not_there_or_not_labelled_is_told_apart(tmp_path: Path) -> None:
    output = make_output(str(tmp_path), tasks=("seg",), rows=(8,), shard_rows=4, skip=[("seg", 1)], where="size != 2")
    assert find_label(output.uri, "seg", "image-0-1")["row"] == 1
    with pytest.raises(InvalidInputError, match="no image has the id 'image-0-9'"):
        find_label(output.uri, "seg", "image-0-9")
    with pytest.raises(OutputError, match="row 5 is not labelled yet"):
        find_label(output.uri, "seg", "image-0-5")
    with pytest.raises(OutputError, match="`where` left it out"):
        find_label(output.uri, "seg", "image-0-2")
    with pytest.raises(OutputError, match="has no pose labels"):
        find_label(output.uri, "pose", "image-0-1")


@pytest.mark.parametrize("kind", ["uri", "bytes"])
def test_images_without_an_id_are_found_by_the_one_that_was_made_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Ids are digests of uris, or of embedded bytes: the manifest tells the first kind, labels alone the second."""
    from tests.labels import make_output as module

    real = module._manifest_table
    monkeypatch.setattr(module, "_manifest_table", lambda *args: real(*args).drop_columns(["image_id"]))
    embed = None if kind == "uri" else lambda _file, row: bytes([row])
    output = make_output(str(tmp_path), tasks=("seg",), rows=(20,), embed=embed)
    table = open_labels(output.uri, "seg").to_table()
    image_id = table["image_id"][17].as_py()
    if kind == "uri":
        from annotator.manifest import make_id

        image_id = make_id("images/0-17.jpg", None, "", 0)
    assert find_label(output.uri, "seg", image_id)["row"] == 17


def test_one_map_by_id_costs_one_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 MB of labels about 16 maps are read, and of 40 files one."""
    noisy(monkeypatch, 128)
    output = make_output(str(tmp_path), tasks=("seg",), rows=(640,), shard_rows=128)
    with local_reads() as reads:
        load_map(find_label(output.uri, "seg", "image-0-500"), "seg")
    one_map = len(open_labels(output.uri, "seg").head(1)["mask"][0].as_py()["bytes"])
    assert reads.bytes < 16 * one_map + 4 * FOOTER_GUESS
    assert len(reads) <= 12


@pytest.mark.s3
def test_one_map_by_id_opens_in_a_few_requests_on_s3(moto_s3: StorageOptions, s3_bucket: str) -> None:
    """Pins 3, the manifest's footer and ids 2, the label's size, footer and row group 3; however many files."""
    storage = Storage(options=moto_s3)
    output = make_output(s3_bucket, storage, tasks=("seg",), rows=(80,), shard_rows=16)
    with s3_requests() as requests:
        found = find_label(output.uri, "seg", "image-0-70", storage=storage)
    assert np.array_equal(load_map(found, "seg"), expected_map("seg", 70))
    assert len(requests) <= 14
    assert len({key for method, key, _ in requests if "/labels/" in key}) == 1


# -- join ------------------------------------------------------------------------------------------


def test_tasks_join_row_by_row_and_maps_stay_unread(clean: Output) -> None:
    with local_reads() as reads:
        table = join(clean.uri, ["seg", "depth"]).read_all()
    assert table.schema.names == ["shard", "row", "image_id", "uri", "width", "height", "seg", "depth"]
    assert len(table) == 47
    assert table["row"].to_pylist() == [*range(40), *range(7)]
    row = table.to_pylist()[8]
    assert (row["seg"]["status"], row["seg"]["confidence"], row["depth"]["depth_scale"]) == ("ok", 0.75, 0.5)
    assert "mask" not in row["seg"] and "depth" not in row["depth"]
    assert len(reads) > 0


def test_maps_are_read_of_the_row_groups_that_the_filter_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of 128: one of eight row groups of maps."""
    noisy(monkeypatch, 100)
    output = make_output(str(tmp_path), tasks=("seg",), rows=(128,), shard_rows=128)
    maps = map_ranges(output.path("seg"))
    with local_reads() as reads:
        rows = join(
            output.uri, columns=["image_id", "seg.mask"], filter="seg.confidence > 0.5 and row == 20"
        ).read_all()
    assert rows["image_id"].to_pylist() == ["image-0-20"]
    assert load_map(rows.to_pylist()[0]["seg"], "seg").shape == (100, 100)
    touched = [reads.overlap([part], output.path("seg").stat().st_size) for part in maps]
    assert touched[1] > 0 and sum(touched[:1] + touched[2:6]) == 0


def test_a_join_has_the_shards_that_all_tasks_have(tmp_path: Path) -> None:
    output = make_output(str(tmp_path), tasks=("seg", "depth"), rows=(20,), shard_rows=4, skip=[("depth", 1)])
    assert join(output.uri).read_all()["row"].to_pylist() == [*range(4), *range(8, 20)]
    assert join(output.uri, ["seg"]).read_all().num_rows == 20


def test_a_join_is_read_by_duckdb_polars_and_pandas(clean: Output) -> None:
    labels = join(clean.uri, ["seg", "depth"])  # noqa: F841 - DuckDB finds it by its name
    found = duckdb.execute("select count(*), avg(seg.confidence) from labels where depth.status = 'ok'").fetchall()
    assert found == [(40, 0.75)]
    frame = pl.from_arrow(join(clean.uri, ["seg"], columns=["row", "seg.status"]))
    assert isinstance(frame, pl.DataFrame) and frame.height == 47
    assert len(join(clean.uri, ["seg"]).read_pandas()) == 47


def test_a_join_names_what_it_does_not_know(clean: Output) -> None:
    with pytest.raises(InvalidInputError, match=r"no column 'seg.depth'; columns are seg.status"):
        join(clean.uri, columns=["seg.depth"])
    with pytest.raises(InvalidInputError, match="no column 'size'"):
        join(clean.uri, columns=["size"])
    with pytest.raises(InvalidInputError, match=r"filter .*seg.confidence"):
        join(clean.uri, filter="seg.nothing > 1")
    with pytest.raises(OutputError, match="no pose labels"):
        join(clean.uri, ["pose"])


def test_rows_that_do_not_match_are_an_error(tmp_path: Path) -> None:
    output = make_output(str(tmp_path), tasks=("seg", "depth"), rows=(4,))
    output.rewrite("depth", 0, lambda rows: rows[::-1])
    with pytest.raises(OutputError, match="rows are not those of other tasks; run annotator verify"):
        join(output.uri).read_all()


@pytest.mark.s3
def test_labels_open_join_and_are_found_on_s3(moto_s3: StorageOptions, s3_bucket: str) -> None:
    storage = Storage(options=moto_s3)
    output = make_output(s3_bucket, storage, tasks=("seg", "depth"), rows=(20,))
    table = annotator.open_labels(output.uri, "seg", filter="row >= 17", storage=storage).to_table()
    assert table["row"].to_pylist() == [17, 18, 19]
    assert np.array_equal(load_map(table.slice(1, 1), "seg"), expected_map("seg", 18))
    joined = annotator.join(output.uri, columns=["row", "seg.mask"], filter="row == 18", storage=storage).read_all()
    assert np.array_equal(load_map(joined.to_pylist()[0]["seg"], "seg"), expected_map("seg", 18))
