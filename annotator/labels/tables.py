"""Labels as Arrow datasets: which files a task has now, read lazily, and only the columns that are named.

The label folder needs no help from us: `pyarrow.dataset.dataset(OUTPUT + "/labels/seg")` works, as do
DuckDB, Polars and pandas. `open_labels` adds three things: the schema of an output that holds no file
yet, S3 with the same settings as the run, and a choice of columns that keeps image bytes unread.

What a reader of a few columns asks of each label file: its last 64 KiB, where it guesses the footer, then the
named columns alone. Of maps it gets what lies in those 64 KiB and no more.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from annotator.errors import InvalidInputError, OutputError
from annotator.fingerprint import TaskRecord, read_task_records
from annotator.labels.snapshot import current_snapshot, tables_folder
from annotator.shards import labels_folder
from annotator.storage import Storage, normalize
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
    A snapshot of `annotator.compact` is read instead of label files if it holds just these; then rows are in the
    order of its files.
    Raises OutputError if the output has no such task, InvalidInputError for an unknown column.
    """
    storage = storage or Storage()
    output = normalize(output)
    record = find_record(storage, output, task)
    condition = parse_where(filter).expression if isinstance(filter, str) else filter
    schema = _select(record.file_schema, columns, condition)
    folder = labels_folder(output, task)
    infos = list(storage.list(folder))
    snapshot = current_snapshot(storage, output, task, infos)
    if snapshot is not None:
        folder, infos = tables_folder(output, task), snapshot
    filesystem, root = storage.arrow(folder)
    paths = [root + info.uri.removeprefix(folder) for info in infos]
    dataset = ds.FileSystemDataset.from_paths(
        paths, schema=schema, format=ds.ParquetFileFormat(), filesystem=filesystem
    )
    return dataset if condition is None else dataset.filter(condition)


def find_record(storage: Storage, output: str, task: str) -> TaskRecord:
    """Return a task's record, or raise OutputError naming the tasks that the output has."""
    records = find_records(storage, output)
    if task not in records:
        raise OutputError(f"{output}: has no {task} labels; it has {', '.join(records)}")
    return records[task]


def find_records(storage: Storage, output: str) -> dict[str, TaskRecord]:
    """Return the records of an output's tasks by name, at least one, or raise OutputError."""
    records = read_task_records(storage, output)
    if not records:
        raise OutputError(f"{output}: holds no labels; expected the output folder of a run")
    return records


def columns_of(expression: pc.Expression, schema: pa.Schema) -> list[str]:
    """Return the columns that an expression uses. Raises InvalidInputError if the schema lacks one."""
    problem = bind_error(expression, schema)
    if problem is not None:
        raise InvalidInputError(f"filter {expression}: {problem}; columns are {', '.join(schema.names)}")
    # an expression does not tell which fields it refers to, but it fails to bind without them
    without = ((name, schema.remove(i)) for i, name in enumerate(schema.names))
    return [name for name, rest in without if bind_error(expression, rest) is not None]


def _select(schema: pa.Schema, columns: Sequence[str] | None, condition: pc.Expression | None) -> pa.Schema:
    used = [] if condition is None else columns_of(condition, schema)
    if columns is None:
        return schema
    unknown = sorted(set(columns) - set(schema.names))
    if unknown:
        raise InvalidInputError(f"no column {unknown[0]!r}; columns are {', '.join(schema.names)}")
    names = dict.fromkeys([*columns, *used])
    return pa.schema([schema.field(name) for name in names], metadata=schema.metadata)


def bind_error(expression: pc.Expression, schema: pa.Schema) -> str | None:
    """Return why a filter has no meaning on these columns, None if it has one."""
    try:
        ds.dataset(schema.empty_table()).filter(expression).to_table()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as err:
        return str(err).splitlines()[0]
    return None
