"""A label row of any reader becomes an array: the inverse of the encoding within half a step, at the image's size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from annotator.envelope import label_schema
from annotator.errors import InvalidInputError
from annotator.geometry import Geometry
from annotator.job import StorageOptions
from annotator.labels.join import join
from annotator.labels.maps import load_map, load_maps
from annotator.labels.tables import open_labels
from annotator.storage import Storage
from annotator.tasks import load_task
from tests.labels.make_output import MAP_YX, Output, expected_map

# half a step of the stored numbers: ids are exact, depth has steps of 0.5, normals 2/255
TOLERANCE = {"seg": 0, "depth": 0.25, "normal": 1 / 255 + 1e-6}


def as_pillow(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as Hugging Face `datasets` gives it: pictures decoded by Pillow."""
    import io

    from PIL import Image

    def decoded(value: Any) -> Any:
        if not isinstance(value, dict) or value.keys() != {"bytes", "path"}:
            return value
        with Image.open(io.BytesIO(value["bytes"])) as picture:
            picture.load()
            return picture

    return {name: decoded(value) for name, value in row.items()}


@pytest.mark.parametrize("task", ["seg", "depth", "normal"])
def test_a_map_comes_back_within_half_a_step_from_any_readers_row(clean: Output, task: str) -> None:
    table = open_labels(clean.uri, task).to_table()
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
        "decoded": as_pillow(table.to_pylist()[8]),
    }
    for reader, row in rows.items():
        value = load_map(row, task)
        expected = expected_map(task, 8)
        assert value.dtype == expected.dtype, reader
        assert np.abs(value.astype(float) - expected).max() <= TOLERANCE[task], reader


@pytest.mark.parametrize("task", ["seg", "depth", "normal"])
def test_maps_of_a_table_come_in_order_and_none_where_there_is_none(clean: Output, task: str) -> None:
    dataset = open_labels(clean.uri, task)
    table = dataset.to_table()
    tables = {
        "dataset": dataset,
        "table": table,
        "batch": table.combine_chunks().to_batches()[0],
        "pandas": table.to_pandas(),
        "polars": pl.from_arrow(table),
        "rows": table.to_pylist(),
    }
    for kind, rows in tables.items():
        maps = list(load_maps(rows, task))
        assert len(maps) == 47, kind
        assert [i for i, found in enumerate(maps) if found is None] == [3, 5, 6, 33, 43, 45, 46], kind
        assert maps[8] is not None
        assert np.abs(maps[8].astype(float) - expected_map(task, 8)).max() <= TOLERANCE[task]


# -- the inverse of the encoding -------------------------------------------------------------------

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
NUMBERS = st.floats(-1e4, 1e4, width=32)


def round_trip(task: str, output_CHW: np.ndarray, **options: Any) -> np.ndarray:
    """Decode and encode a head's output as a worker does, write the row, read it, load its map."""
    found = load_task(task)
    chosen = found.options.model_validate({"checkpoint": "", "label_size": "head", **options})
    hw = (output_CHW.shape[1], output_CHW.shape[2])
    (tensors,) = found.decode(torch.from_numpy(output_CHW)[None], [Geometry(hw, hw, "head", 2**21)], chosen)
    row = found.encode([{name: tensor.numpy() for name, tensor in tensors.items()}], hw, chosen, {})
    schema = label_schema(found.fields(chosen, output_CHW.shape[0]), record={})
    return load_map(pa.Table.from_pylist([{"status": "ok", **row}], schema=schema), task)


@settings(max_examples=60)
@given(SIZES.flatmap(lambda hw: hnp.arrays(np.float32, (1, *hw), elements=NUMBERS)))
def test_depth_comes_back_within_half_a_step_of_its_own_range(depth_1YX: np.ndarray) -> None:
    depth_YX = depth_1YX[0].astype(np.float64)
    step = (depth_YX.max() - depth_YX.min()) / 65534
    # of offset, scale and the result in float32; the offset of a flat map lies 1 below it
    rounding = 4 * np.finfo(np.float32).eps * (np.abs(depth_YX).max() + (step == 0))
    rounding += 2**15 * np.finfo(np.float32).smallest_subnormal  # half of 65534 times that of a very small scale
    assert np.abs(round_trip("depth", depth_1YX) - depth_YX).max() <= step / 2 + rounding


@settings(max_examples=60)
@given(SIZES.flatmap(lambda hw: hnp.arrays(np.float32, (3, *hw), elements=NUMBERS)), st.sampled_from([8, 16]))
def test_normals_come_back_within_half_a_step(normal_CYX: np.ndarray, bits: int) -> None:
    unit_CYX = normal_CYX / (np.linalg.norm(normal_CYX.astype(np.float64), axis=0) + 1e-5)
    loaded_YXC = round_trip("normal", normal_CYX, bits=bits)
    assert loaded_YXC.dtype == np.float32
    assert np.abs(loaded_YXC - unit_CYX.transpose(1, 2, 0)).max() <= 1 / (2**bits - 1) + 1e-6


@settings(max_examples=60)
@given(SIZES.flatmap(lambda hw: hnp.arrays(np.float32, (28, *hw), elements=NUMBERS)))
def test_class_ids_come_back_exactly(logits_CYX: np.ndarray) -> None:
    loaded_YX = round_trip("seg", logits_CYX)
    assert loaded_YX.dtype == np.uint8
    np.testing.assert_array_equal(loaded_YX, logits_CYX.argmax(axis=0))


# -- size ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["seg", "depth", "normal"])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_a_map_at_the_images_size_is_the_same_picture(clean: Output, task: str, scale: int) -> None:
    """An image of so many times the map: blocks of ids, depth and normals between their neighbours'."""
    row = open_labels(clean.uri, task).to_table().to_pylist()[8]
    row |= {"height": MAP_YX[0] * scale, "width": MAP_YX[1] * scale}
    value, small = load_map(row, task, size="image"), load_map(row, task)
    assert (value.shape[:2], value.dtype) == ((row["height"], row["width"]), small.dtype)
    if scale == 1:
        np.testing.assert_array_equal(value, small)
    if task == "seg":
        np.testing.assert_array_equal(value, np.kron(small, np.ones((scale, scale), np.uint8)))
    elif scale == 3:  # the middle pixel of a block lies on the map's own
        assert np.abs(value[1::3, 1::3] - small).max() < 0.01
    if task == "normal":
        assert np.abs(np.linalg.norm(value, axis=2) - np.linalg.norm(small, axis=2).mean()).max() < 0.02


@pytest.mark.parametrize("task", ["seg", "depth", "normal"])
def test_a_joined_row_gives_each_tasks_map(clean: Output, task: str) -> None:
    """Its size is beside the task's struct, its status within."""
    row = open_labels(clean.uri, task).to_table().to_pylist()[8]
    names = ["width", "height", "seg", "depth", "normal"]
    [joined] = join(clean.uri, columns=names, filter=f"image_id == '{row['image_id']}'").read_all().to_pylist()
    np.testing.assert_array_equal(load_map(joined, task, size="image"), load_map(row, task, size="image"))
    every = list(load_maps(open_labels(clean.uri, task), task))
    found = list(load_maps(join(clean.uri, columns=["shard", "row", task]), task))
    assert len(found) == len(every)
    for a, b in zip(found, every, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("task", ["depth", "normal"])
def test_pixels_without_a_value_stay_so_and_do_not_leak_into_others(clean: Output, task: str) -> None:
    """Left half unknown, right half one value: at any size there is that value, or none."""
    found = load_task(task)
    assert found.resize is not None
    map_YXC = np.zeros((4, 6, 3), np.float32)
    map_YXC[..., 2] = 1
    map_YXC[:, :3] = np.nan
    for size in ((8, 12), (2, 4), (4, 6), (9, 7)):
        resized = found.resize(map_YXC if task == "normal" else map_YXC[..., 2], size)
        assert resized.shape[:2] == size
        last = resized if task == "depth" else resized[..., 2]
        assert np.isnan(last[:, : size[1] // 2]).all()
        np.testing.assert_allclose(last[:, -(size[1] // 2) :], 1, rtol=1e-6)


# -- what can't be loaded --------------------------------------------------------------------------


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
    whole = open_labels(clean.uri, "depth").head(1).drop_columns(["height"])
    with pytest.raises(InvalidInputError, match=r"lacks column 'height'"):
        load_map(whole, "depth", size="image")
    with pytest.raises(InvalidInputError, match="expected one row, got 2"):
        load_map(open_labels(clean.uri, "depth").head(2), "depth")
    with pytest.raises(InvalidInputError, match="got list"):
        load_map([1], "depth")


# -- maps stored as paths --------------------------------------------------------------------------


def elsewhere(row: dict[str, Any], place: Callable[[bytes], object]) -> dict[str, Any]:
    place(row["mask"]["bytes"])
    return {**row, "mask": {"bytes": None, "path": "a.png"}}


def test_a_map_stored_as_a_path_is_read_under_root(clean: Output, tmp_path: Path) -> None:
    row = open_labels(clean.uri, "seg").head(1).to_pylist()[0]
    moved = elsewhere(row, lambda data: (tmp_path / "a.png").write_bytes(data))
    assert np.array_equal(load_map(moved, "seg", root=str(tmp_path)), expected_map("seg", 0))
    with pytest.raises(InvalidInputError, match="has no seg map; give root"):
        load_map(moved, "seg")


@pytest.mark.s3
def test_a_map_stored_as_a_path_is_read_from_s3_as_storage_says(
    clean: Output, moto_s3: StorageOptions, s3_bucket: str
) -> None:
    """No environment variable names the server: the storage does."""
    storage = Storage(options=moto_s3)
    row = open_labels(clean.uri, "seg").head(1).to_pylist()[0]
    moved = elsewhere(row, lambda data: storage.replace(data, f"{s3_bucket}/maps/a.png", output=s3_bucket))
    loaded = load_map(moved, "seg", root=f"{s3_bucket}/maps", storage=storage)
    assert np.array_equal(loaded, expected_map("seg", 0))
    (again,) = load_maps([moved], "seg", root=f"{s3_bucket}/maps", storage=storage)
    assert again is not None and np.array_equal(again, loaded)
