"""Labels open lazily, with the schema of the task's record, and every reader's row becomes a map."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pytest
from fsspec.implementations.local import LocalFileSystem

from annotator.errors import InvalidInputError, OutputError
from annotator.job import StorageOptions
from annotator.labels.query import load_map, open_labels
from annotator.storage import Storage
from tests.labels.make_output import Output, expected_map, make_output

# half a step of the stored numbers: ids are exact, depth has steps of 0.5, normals 2/255
TOLERANCE = {"seg": 0, "depth": 0.25, "normal": 1 / 255 + 1e-6}


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


class CountingFiles(LocalFileSystem):  # type: ignore[misc]
    """Local files that note how many bytes each read gave."""

    def __init__(self, read: list[int]) -> None:
        super().__init__(skip_instance_cache=True)
        self.noted = read

    def open(self, path: str, mode: str = "rb", **_: Any) -> CountingFile:
        return CountingFile(path, self.noted)


class CountingFile(io.BytesIO):
    def __init__(self, path: str, read: list[int]) -> None:
        super().__init__(Path(path).read_bytes())
        self.noted = read

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        self.noted.append(len(data))
        return data


def test_a_choice_of_columns_reads_no_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 maps of more than 50 KB: the scores cost the footer, guessed to have 64 KB, and their own small pages."""
    noise = np.random.default_rng(0).integers(0, 28, (300, 300), dtype=np.uint8)
    monkeypatch.setattr("tests.labels.make_output.expected_map", lambda _task, _row: noise)
    output = make_output(str(tmp_path), tasks=("seg",), rows=(16,))
    assert output.path("seg").stat().st_size > 800_000
    read: list[int] = []
    files = pafs.PyFileSystem(pafs.FSSpecHandler(CountingFiles(read)))
    monkeypatch.setattr(Storage, "arrow", lambda _self, uri: (files, uri))
    table = open_labels(output.uri, "seg", columns=["confidence"], filter="status == 'ok'").to_table()
    assert table.num_rows == 16
    assert 0 < sum(read) < 100_000


@pytest.mark.parametrize("task", ["seg", "depth", "normal"])
def test_a_map_comes_back_within_half_a_step_from_any_readers_row(clean: Output, task: str) -> None:
    dataset = open_labels(clean.uri, task)
    table = dataset.to_table()
    folder = f"{clean.uri}/labels/{task}/*/*.parquet"
    rows = {
        "dict": table.to_pylist()[8],
        "struct scalar": table.to_struct_array()[8],
        "scalars": {name: table[name][8] for name in table.column_names},
        "table": table.slice(8, 1),
        "batch": table.slice(8, 1).to_batches()[0],
        "pandas": pd.DataFrame(table.to_pylist()).iloc[8],
        "pandas from Arrow": table.to_pandas().iloc[8],
        "polars": pl.read_parquet(folder).row(8, named=True),
        "duckdb": duckdb.execute(f"from '{folder}' order by shard, row").df().iloc[8],
    }
    for reader, row in rows.items():
        value = load_map(row, task)
        expected = expected_map(task, 8)
        assert value.dtype == expected.dtype, reader
        assert np.abs(value.astype(float) - expected).max() <= TOLERANCE[task], reader


def test_a_row_without_a_map_says_why(clean: Output) -> None:
    rows = open_labels(clean.uri, "seg").to_table().to_pylist()
    with pytest.raises(InvalidInputError, match=r"image-0-3: has no seg map; its status is 'unreadable'"):
        load_map(rows[3], "seg")
    without_status = {"image_id": "image-0-3", "mask": rows[3]["mask"]}
    with pytest.raises(InvalidInputError, match=r"image-0-3: has no seg map"):
        load_map(without_status, "seg")


def test_a_damaged_map_is_an_error_that_names_the_row(clean: Output) -> None:
    row = open_labels(clean.uri, "normal").head(1).to_pylist()[0]
    with pytest.raises(InvalidInputError, match="image-0-0: damaged normal map"):
        load_map({**row, "normal": {"bytes": b"GIF89a", "path": None}}, "normal")


def test_a_row_without_the_columns_says_which(clean: Output) -> None:
    row = open_labels(clean.uri, "depth", columns=["row", "depth"]).head(1)
    with pytest.raises(InvalidInputError, match=r"lacks column 'depth_\w+'"):
        load_map(row, "depth")
    with pytest.raises(InvalidInputError, match="expected one row, got 2"):
        load_map(open_labels(clean.uri, "depth").head(2), "depth")
    with pytest.raises(InvalidInputError, match="got list"):
        load_map([1], "depth")


def test_a_map_stored_as_a_path_is_read_under_root(clean: Output, tmp_path: Path) -> None:
    row = open_labels(clean.uri, "seg").head(1).to_pylist()[0]
    (tmp_path / "a.png").write_bytes(row["mask"]["bytes"])
    elsewhere = {**row, "mask": {"bytes": None, "path": "a.png"}}
    assert np.array_equal(load_map(elsewhere, "seg", root=str(tmp_path)), expected_map("seg", 0))
    with pytest.raises(InvalidInputError, match="has no seg map; give root"):
        load_map(elsewhere, "seg")


def test_duckdb_and_polars_read_the_dataset(clean: Output) -> None:
    labels = open_labels(clean.uri, "seg", columns=["status", "confidence"])
    counted = duckdb.execute("select status, count(*) n from labels group by 1 order by 1").fetchall()
    assert counted == [("failed", 1), ("no_person", 2), ("ok", 40), ("rejected", 2), ("unreadable", 2)]
    assert pl.scan_pyarrow_dataset(labels).select(pl.len()).collect().item() == 47


def test_a_dataset_travels_to_another_process(clean: Output) -> None:
    assert pickle.loads(pickle.dumps(open_labels(clean.uri, "seg"))).count_rows() == 47


@pytest.mark.s3
def test_labels_open_on_s3(moto_s3: StorageOptions, s3_bucket: str) -> None:
    storage = Storage(options=moto_s3)
    output = make_output(s3_bucket, storage, tasks=("seg",), rows=(20,))
    table = open_labels(output.uri, "seg", filter="row >= 17", storage=storage).to_table()
    assert table["row"].to_pylist() == [17, 18, 19]
    assert np.array_equal(load_map(table.slice(1, 1), "seg"), expected_map("seg", 18))
