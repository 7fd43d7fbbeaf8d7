"""The labels of a run open in the tools that people have, with no help from us, on disk and on S3."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import cv2
import duckdb
import fsspec
import numpy as np
import pandas
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

import annotator
from annotator.envelope import ROW_GROUP_ROWS
from annotator.job import StorageOptions
from annotator.storage import Storage
from tests.conftest import make_bucket
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


@pytest.fixture(scope="module")
def bucket(job: annotator.Job, moto_s3: StorageOptions) -> str:
    """The same output in a bucket."""
    storage, bucket = Storage(options=moto_s3), make_bucket(moto_s3)
    for path in sorted(Path(job.output).rglob("*")):
        if path.is_file():
            storage.replace(path.read_bytes(), f"{bucket}/{path.relative_to(job.output)}", output=bucket)
    return bucket


@pytest.fixture
def quiet_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hugging Face `datasets`, with its cache in the test's folder and without progress bars."""
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "hub"))
    import datasets

    datasets.disable_progress_bars()
    return datasets


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
def test_hugging_face_shows_maps_as_pictures(
    task: str, job: annotator.Job, quiet_datasets: Any, tmp_path: Path
) -> None:
    """Decoded or not, a row is one that `load_map` takes; the table's features are those of the metadata."""
    loaded = quiet_datasets.load_dataset(
        "parquet", data_files=f"{folder(job, task)}/*/*.parquet", cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert len(loaded) == COUNT
    assert loaded.features[MAPS[task]] == quiet_datasets.Image()
    assert loaded.features["shard"] == quiet_datasets.Value("string")
    row = next(row for row in loaded if row["status"] == "ok")
    assert row[MAPS[task]].size == (row["map_width"], row["map_height"])
    (as_stored,) = loaded.cast_column(MAPS[task], quiet_datasets.Image(decode=False)).filter(
        lambda other: (other["shard"], other["row"]) == (row["shard"], row["row"])
    )
    np.testing.assert_array_equal(annotator.load_map(row, task), annotator.load_map(as_stored, task))
    if task == "seg":
        assert loaded.features["class_pixels"] == quiet_datasets.List(quiet_datasets.Value("int32"), length=28)
        assert sum(row["class_pixels"]) == row["map_width"] * row["map_height"]
    maps = list(annotator.load_maps(loaded, task))
    assert [found is None for found in maps] == [status != "ok" for status in loaded["status"]]


@pytest.mark.parametrize("task", TASKS)
def test_files_say_of_themselves_what_their_record_says(task: str, job: annotator.Job) -> None:
    """To the names within lists, which Parquet calls "element"."""
    declared = annotator.open_labels(job.output, task).schema
    for path in Path(folder(job, task)).rglob("*.parquet"):
        written = pq.read_schema(path)
        assert written.equals(declared, check_metadata=True)
        assert str(written) == str(declared)


# -- the same on S3 --------------------------------------------------------------------------------


@pytest.mark.s3
def test_pyarrow_and_pandas_read_s3(bucket: str, moto_s3: StorageOptions) -> None:
    endpoint = str(moto_s3.endpoint_url)
    files = pafs.S3FileSystem(endpoint_override=endpoint, region="us-east-1", force_virtual_addressing=False)
    dataset = ds.dataset(f"{bucket[5:]}/labels/seg", filesystem=files, format="parquet")
    assert dataset.count_rows(filter=pc.field("status") == "ok") == COUNT - 2
    frame = pandas.read_parquet(f"{bucket}/labels/depth", storage_options={"client_kwargs": {"endpoint_url": endpoint}})
    assert len(frame) == COUNT
    assert annotator.load_map(frame[frame.status == "ok"].iloc[0], "depth").dtype == np.float32


@pytest.mark.s3
def test_polars_scans_s3(bucket: str, moto_s3: StorageOptions) -> None:
    options = {
        "aws_endpoint_url": str(moto_s3.endpoint_url),
        "aws_region": "us-east-1",
        "aws_access_key_id": "testing",
        "aws_secret_access_key": "testing",
        "aws_allow_http": "true",
    }
    lazy = polars.scan_parquet(f"{bucket}/labels/normal/**/*.parquet", storage_options=options)
    (row,) = lazy.filter(polars.col("status") == "ok").head(1).collect().to_dicts()
    assert annotator.load_map(row, "normal").shape == (row["map_height"], row["map_width"], 3)


@pytest.mark.s3
def test_duckdb_reads_s3_through_fsspec(bucket: str, moto_s3: StorageOptions) -> None:
    """Its own S3 extension has to be downloaded; `annotator query` goes through Arrow."""
    files = fsspec.filesystem("s3", client_kwargs={"endpoint_url": str(moto_s3.endpoint_url)}, skip_instance_cache=True)
    with duckdb.connect() as connection:
        connection.register_filesystem(files)
        count = connection.execute(f"select count(*) from '{bucket}/labels/seg/*/*.parquet' where status = 'ok'")
        assert count.fetchall() == [(COUNT - 2,)]
    found = annotator.query(bucket, "select count(*) n from seg where status = 'ok'", storage=Storage(options=moto_s3))
    assert found["n"].to_pylist() == [COUNT - 2]


@pytest.mark.s3
def test_hugging_face_reads_s3(bucket: str, moto_s3: StorageOptions, quiet_datasets: Any, tmp_path: Path) -> None:
    loaded = quiet_datasets.load_dataset(
        "parquet",
        data_files=f"{bucket}/labels/seg/*/*.parquet",
        storage_options={"client_kwargs": {"endpoint_url": str(moto_s3.endpoint_url)}},
        cache_dir=str(tmp_path / "cache"),
        split="train",
    )
    row = next(row for row in loaded if row["status"] == "ok")
    assert row["mask"].size == (row["map_width"], row["map_height"])


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
