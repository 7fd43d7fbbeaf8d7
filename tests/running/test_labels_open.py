"""The labels of a run open in the tools that people have, with no help from us."""

from __future__ import annotations

import io
import json
from pathlib import Path

import cv2
import duckdb
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import annotator
from annotator.envelope import ROW_GROUP_ROWS
from tests.running.make import TASKS, make_job

COUNT = 23
MAPS = {"seg": "mask", "depth": "depth", "normal": "normal"}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoints: dict[str, Path]) -> annotator.Job:
    """A finished job: 23 pictures in 5 shards, two of them bad; a manifest column kept."""
    folder = tmp_path_factory.mktemp("open")
    job = make_job(folder, tiny_checkpoints, count=COUNT, keep_columns=("licence",))
    uris = [f"../images/{path.name}" for path in sorted((folder / "images").iterdir())]
    licences = ["cc0" if i % 3 else None for i in range(COUNT)]
    pq.write_table(pa.table({"uri": uris, "licence": licences}), folder / "manifest" / "part-0.parquet")
    (folder / "images" / "image-0003.png").unlink()
    (folder / "images" / "image-0012.jpg").write_bytes(b"")
    annotator.run(job, ray=False)
    return job


def folder(job: annotator.Job, task: str) -> str:
    return f"{job.output}/labels/{task}"


def png_size(data: bytes) -> tuple[int, int]:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return picture.shape[0], picture.shape[1]


@pytest.mark.parametrize("task", TASKS)
def test_pandas_reads_the_folder(task: str, job: annotator.Job) -> None:
    frame = pandas.read_parquet(folder(job, task))
    assert len(frame) == COUNT
    assert frame.groupby("status").size().to_dict() == {"ok": COUNT - 2, "unreadable": 2}
    row = frame[frame.status == "ok"].iloc[0]
    assert png_size(row[MAPS[task]]["bytes"]) == (row.map_height, row.map_width)
    assert annotator.load_map(row, task).shape[:2] == (row.map_height, row.map_width)


@pytest.mark.parametrize("task", TASKS)
def test_polars_scans_the_glob(task: str, job: annotator.Job) -> None:
    lazy = polars.scan_parquet(f"{folder(job, task)}/**/*.parquet")
    counts = lazy.group_by("status").len().sort("status").collect().rows()
    assert counts == [("ok", COUNT - 2), ("unreadable", 2)]
    (row,) = lazy.filter(polars.col("status") == "ok").sort("row").head(1).collect().to_dicts()
    assert png_size(row[MAPS[task]]["bytes"]) == (row["map_height"], row["map_width"])
    assert annotator.load_map(row, task).shape[:2] == (row["map_height"], row["map_width"])


@pytest.mark.parametrize("task", TASKS)
def test_duckdb_queries_the_glob(task: str, job: annotator.Job) -> None:
    labels = f"read_parquet('{folder(job, task)}/**/*.parquet')"
    with duckdb.connect() as connection:
        found = connection.sql(f"select status, licence, count(*) from {labels} group by all order by all").fetchall()
        assert sum(count for *_, count in found) == COUNT
        assert {(status, licence) for status, licence, _ in found} >= {("ok", "cc0"), ("ok", None)}
        data, height, width = connection.sql(
            f"select {MAPS[task]}.bytes, map_height, map_width from {labels} where status = 'ok' order by row limit 1"
        ).fetchall()[0]
    assert png_size(data) == (height, width)


def test_tasks_join_on_shard_and_row(job: annotator.Job) -> None:
    with duckdb.connect() as connection:
        tables = [f"read_parquet('{folder(job, task)}/**/*.parquet') {task}" for task in TASKS]
        count = connection.sql(
            f"select count(*) from {tables[0]} join {tables[1]} using (shard, row) join {tables[2]} using (shard, row) "
            "where seg.map_width = depth.map_width and seg.image_id = normal.image_id"
        ).fetchall()
    assert count == [(COUNT - 2,)]


@pytest.mark.parametrize("task", TASKS)
def test_pyarrow_reads_the_folder_with_its_metadata(task: str, job: annotator.Job) -> None:
    dataset = ds.dataset(folder(job, task), format="parquet")
    assert dataset.count_rows(filter=pc.field("status") == "ok") == COUNT - 2
    metadata = dataset.schema.metadata
    record = json.loads(metadata[b"annotator"])
    assert record["task"] == task
    assert record["fingerprint"]["weights"]["random"] is True
    assert record["meaning"]["licence"]
    described = [field.metadata[b"description"] for field in dataset.schema if field.name != "licence"]
    assert all(described)


@pytest.mark.parametrize("task", TASKS)
def test_hugging_face_finds_its_features_in_the_metadata(task: str, job: annotator.Job) -> None:
    """The layout that `datasets` writes itself: a feature a column, maps as Image, fixed lengths stated."""
    schema = ds.dataset(folder(job, task), format="parquet").schema
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features[MAPS[task]] == {"_type": "Image"}
    assert features["row"] == {"dtype": "int64", "_type": "Value"}
    assert features["shard"] == {"dtype": "string", "_type": "Value"}
    if task == "seg":
        item = {"dtype": "int32", "_type": "Value"}
        assert features["class_pixels"] == {"feature": item, "length": 28, "_type": "List"}


@pytest.mark.parametrize("task", TASKS)
def test_one_map_costs_a_reader_sixteen_rows_at_most(task: str, job: annotator.Job) -> None:
    for path in Path(folder(job, task)).rglob("*.parquet"):
        metadata = pq.ParquetFile(path).metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        assert all(group.num_rows <= ROW_GROUP_ROWS for group in groups)
        columns = {
            column.path_in_schema: column for group in groups for column in map(group.column, range(group.num_columns))
        }
        assert columns[f"{MAPS[task]}.bytes"].compression == "UNCOMPRESSED"
        assert not columns[f"{MAPS[task]}.bytes"].has_dictionary_page
        assert columns["uri"].compression == "ZSTD"
        assert columns["uri"].has_offset_index


def test_any_image_library_opens_a_map_as_it_is(job: annotator.Job) -> None:
    """Palette ids, 16-bit depths and colours, as Pillow names them."""
    image = pytest.importorskip("PIL.Image")
    modes = {"seg": {"P"}, "depth": {"I;16", "I"}, "normal": {"RGB"}}
    for task, expected in modes.items():
        row = ds.dataset(folder(job, task)).head(1).to_pylist()[0]
        with image.open(io.BytesIO(row[MAPS[task]]["bytes"])) as picture:
            assert picture.mode in expected
            assert picture.size == (row["map_width"], row["map_height"])
