"""One label as a numpy array, from a row of any reader."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from annotator import png
from annotator.envelope import ROW_GROUP_ROWS, Status
from annotator.errors import InvalidInputError
from annotator.labels.scan import map_bounded
from annotator.storage import Storage, join, normalize
from annotator.tars import is_place, read_map
from annotator.tasks import load_task

Size = Literal["map", "image"]


def load_map(
    row: Any, task: str, root: str | None = None, *, size: Size = "map", storage: Storage | None = None
) -> np.ndarray:
    """Return one row's map, in the unit and dtype that `Task.load` states for the task.

    `row` is one label row from any reader: a dict (Polars, `to_pylist`), a pandas Series, an Arrow struct
    scalar, an Arrow table or batch of one row, a row of Hugging Face `datasets`, its pictures decoded or not, or a
    row of `join`, that has the label in a struct of the task's name.
    (Pillow, which decodes them there, has no 16-bit RGB: normals of 16 bits come back with 8.)
    `size` "image" gives the map at the size of the oriented image: class ids of the nearest pixel, depth
    interpolated, normals too and made unit vectors again; boxes and keypoints are in image pixels anyway.
    `root` is the folder against which maps that are stored as paths are read, by way of `storage`: the output, where
    it keeps maps in tar files (`dense: tar`); each is one ranged read. Maps stored as bytes, the default, need none.
    Raises InvalidInputError if the row lacks a column, or has no map because its status is not "ok"; NotFoundError if
    the tar file is gone.
    """
    values = _label(_as_dict(row), task)
    name = values.get("image_id", "this row")
    if not _is_ok(values):
        raise InvalidInputError(f"{name}: has no {task} map; its status is {values['status']!r}")
    found = load_task(task)
    try:
        stored = {column: stored_value(value, root, storage) for column, value in values.items()}
        loaded: np.ndarray = found.load(stored)
        if size == "image" and found.resize is not None:
            loaded = found.resize(loaded, (values["height"], values["width"]))
        return loaded
    except KeyError as err:
        raise InvalidInputError(f"the row lacks column {err}, which a {task} map is read from") from None
    except TypeError:  # null where its bytes should be
        raise InvalidInputError(f"{name}: has no {task} map; give root if it is a path") from None
    except ValueError as err:
        raise InvalidInputError(f"{name}: damaged {task} map: {err}") from None


def load_maps(
    table: Any, task: str, root: str | None = None, *, size: Size = "map", storage: Storage | None = None
) -> Iterator[np.ndarray | None]:
    """Yield the map of each row, in order; None where a row has none because its status is not "ok".

    `table` is an Arrow table, batch, dataset or reader, a pandas or Polars frame, a `datasets.Dataset`, or any iterable
    of rows. Maps are decoded by all cores, a few ahead of the reader; a dataset is read as it goes. For the rest see
    `load_map`.
    """

    def load(row: Mapping[str, Any]) -> np.ndarray | None:
        return load_map(row, task, root, size=size, storage=storage) if _is_ok(_label(row, task)) else None

    for _, loaded in map_bounded(load, _rows(table), threads=os.cpu_count() or 1):
        yield loaded


def _rows(table: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of anything that has rows, as dicts."""
    rows: Iterable[Any]
    if isinstance(table, ds.Dataset):
        batches = table.to_batches(batch_size=ROW_GROUP_ROWS, batch_readahead=4, fragment_readahead=1)
        rows = (row for batch in batches for row in batch.to_pylist())
    elif isinstance(table, pa.RecordBatch):
        rows = _rows(pa.Table.from_batches([table]))
    elif isinstance(table, pa.RecordBatchReader):  # of `join`
        rows = (row for batch in table for row in _rows(batch))
    elif isinstance(table, pa.Table):
        rows = (row for batch in table.to_batches(max_chunksize=ROW_GROUP_ROWS) for row in batch.to_pylist())
    elif hasattr(table, "iter_rows"):  # Polars
        rows = table.iter_rows(named=True)
    elif hasattr(table, "iterrows"):  # pandas
        rows = (row for _, row in table.iterrows())
    else:
        rows = table
    for row in rows:
        yield _as_dict(row)


def _as_dict(row: Any) -> dict[str, Any]:
    if isinstance(row, (pa.Table, pa.RecordBatch)):
        if row.num_rows != 1:
            raise InvalidInputError(f"expected one row, got {row.num_rows}; slice(i, 1) takes one")
        return dict(row.to_pylist()[0])
    if isinstance(row, Mapping):
        return {name: v.as_py() if isinstance(v, pa.Scalar) else v for name, v in row.items()}
    for method in ("as_py", "to_dict"):  # an Arrow scalar, a pandas Series
        if hasattr(row, method):
            return dict(getattr(row, method)())
    raise InvalidInputError(f"expected one label row (dict, Series, Arrow row), got {type(row).__name__}")


def _label(row: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    """Return the task's label row out of a row of `join`, with what it shares with other tasks; others as they are."""
    own = row.get(task)
    if not isinstance(own, Mapping) or "path" in own:  # a map
        return row
    return {name: value for name, value in row.items() if name != task} | dict(own)


def _is_ok(row: Mapping[str, Any]) -> bool:
    return bool(row.get("status", Status.OK.value) == Status.OK.value)


def stored_value(value: Any, root: str | None, storage: Storage | None) -> Any:
    """Return a column's value as label files hold it: bytes that are elsewhere read, a decoded picture encoded.

    Raises ValueError for a tar file that ends before the map, NotFoundError for a file that is gone.
    """
    if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:
        if value["bytes"] is None and value["path"] is not None and root is not None:
            data = (storage or Storage()).read(join(normalize(root), value["path"]))
            return {**value, "bytes": data}
        return value
    if is_place(value):
        found = read_map(storage or Storage(), normalize(root), value) if root is not None else None
        return {"bytes": found, "path": None}
    if hasattr(value, "__array_interface__") and hasattr(value, "mode"):  # a picture of Pillow's
        array = np.asarray(value)
        return {"bytes": png.encode(array.astype(np.uint16) if array.dtype == np.int32 else array), "path": None}
    return value
