"""Labels as an Arrow dataset, and one label as a numpy array.

The label folder needs no help from us: `pyarrow.dataset.dataset(OUTPUT + "/labels/seg")` works, as do
DuckDB, Polars and pandas. `open_labels` adds three things: the schema of an output that holds no file
yet, S3 with the same settings as the run, and a choice of columns that keeps image bytes unread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from annotator.envelope import Status
from annotator.errors import InvalidInputError, OutputError
from annotator.fingerprint import TaskRecord, read_task_records
from annotator.shards import labels_folder
from annotator.storage import Storage, join, normalize
from annotator.tasks import load_task
from annotator.where import parse_where


def open_labels(
    output: str,
    task: str,
    *,
    columns: Sequence[str] | None = None,
    filter: str | pc.Expression | None = None,
    storage: Storage | None = None,
) -> ds.Dataset:
    """Return the labels that are committed now, one row an image, as a dataset that reads lazily.

    `columns` leaves the dataset with these columns only, and with those that `filter` uses, so that
    `.to_table()` reads nothing else. `filter` is text (`"confidence > 0.9 and status == 'ok'"`, see
    annotator/where.py) or an Arrow expression.
    Label files of a run that goes on meanwhile are not in it; open again to see them.
    Raises OutputError if the output has no such task, InvalidInputError for an unknown column.
    """
    storage = storage or Storage()
    output = normalize(output)
    record = find_record(storage, output, task)
    condition = parse_where(filter).expression if isinstance(filter, str) else filter
    schema = _select(record.file_schema, columns, condition)
    folder = labels_folder(output, task)
    filesystem, root = storage.arrow(folder)
    paths = [root + info.uri.removeprefix(folder) for info in storage.list(folder)]
    dataset = ds.FileSystemDataset.from_paths(
        paths, schema=schema, format=ds.ParquetFileFormat(), filesystem=filesystem
    )
    return dataset if condition is None else dataset.filter(condition)


def find_record(storage: Storage, output: str, task: str) -> TaskRecord:
    """Return a task's record, or raise OutputError naming the tasks that the output has."""
    records = read_task_records(storage, output)
    if task in records:
        return records[task]
    if not records:
        raise OutputError(f"{output}: holds no labels; expected the output folder of a run")
    raise OutputError(f"{output}: has no {task} labels; it has {', '.join(records)}")


def columns_of(expression: pc.Expression, schema: pa.Schema) -> list[str]:
    """Return the columns that an expression uses. Raises InvalidInputError if the schema lacks one."""
    problem = _bind_error(expression, schema)
    if problem is not None:
        raise InvalidInputError(f"filter {expression}: {problem}; columns are {', '.join(schema.names)}")
    # an expression does not tell which fields it refers to, but it fails to bind without them
    without = ((name, schema.remove(i)) for i, name in enumerate(schema.names))
    return [name for name, rest in without if _bind_error(expression, rest) is not None]


def _select(schema: pa.Schema, columns: Sequence[str] | None, condition: pc.Expression | None) -> pa.Schema:
    used = [] if condition is None else columns_of(condition, schema)
    if columns is None:
        return schema
    unknown = sorted(set(columns) - set(schema.names))
    if unknown:
        raise InvalidInputError(f"no column {unknown[0]!r}; columns are {', '.join(schema.names)}")
    names = dict.fromkeys([*columns, *used])
    return pa.schema([schema.field(name) for name in names], metadata=schema.metadata)


def _bind_error(expression: pc.Expression, schema: pa.Schema) -> str | None:
    try:
        ds.dataset(schema.empty_table()).filter(expression).to_table()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as err:
        return str(err).splitlines()[0]
    return None


def load_map(row: Any, task: str, root: str | None = None) -> np.ndarray:
    """Return one row's map, in the unit and dtype that `Task.load` states for the task.

    `row` is one label row from any reader: a dict (Polars, `to_pylist`), a pandas Series, an Arrow struct
    scalar, an Arrow table or batch of one row. `root` is the folder against which maps that are stored as
    paths are read; maps stored as bytes, the default, need none.
    Raises InvalidInputError if the row lacks a column, or has no map because its status is not "ok".
    """
    values = _as_dict(row)
    for name, value in values.items():
        if _is_image(value) and value["bytes"] is None and value["path"] is not None and root is not None:
            values[name] = {**value, "bytes": Storage().read(join(normalize(root), value["path"]))}
    name = values.get("image_id", "this row")
    if values.get("status", Status.OK.value) != Status.OK.value:
        raise InvalidInputError(f"{name}: has no {task} map; its status is {values['status']!r}")
    try:
        loaded: np.ndarray = load_task(task).load(values)
        return loaded
    except KeyError as err:
        raise InvalidInputError(f"the row lacks column {err}, which a {task} map is read from") from None
    except TypeError:  # null where its bytes should be
        raise InvalidInputError(f"{name}: has no {task} map; give root if it is a path") from None
    except ValueError as err:
        raise InvalidInputError(f"{name}: damaged {task} map: {err}") from None


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


def _is_image(value: Any) -> bool:
    return isinstance(value, Mapping) and value.keys() == {"bytes", "path"}
