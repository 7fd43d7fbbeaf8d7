"""What formats that hold PNG files share: which column a task's map is in, names of files, what labels mean."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from annotator.envelope import MAP_TYPES, Status
from annotator.errors import InvalidInputError
from annotator.fingerprint import TaskRecord
from annotator.labels.export.core import Done, Export, Part, write_whole
from annotator.storage import join

OK = (Status.OK.value,)
LABELLED = (Status.OK.value, Status.NO_PERSON.value)


def map_column(record: TaskRecord) -> str | None:
    """Return the column of a task's PNG, None for tasks that have none."""
    return next((field.name for field in record.schema if field.type in MAP_TYPES.values()), None)


def choose_one(records: Mapping[str, TaskRecord], task: str, format: str) -> list[str]:
    """Return the one task that a format is about. Raises InvalidInputError unless it is there."""
    if task not in records:
        raise InvalidInputError(f"{format} holds {task} labels; the tasks are {', '.join(records)}")
    return [task]


def image_rows(tables: Iterator[pa.Table]) -> Iterator[dict[str, Any]]:
    """Yield one row at a time, as a dict."""
    for table in tables:
        yield from table.to_pylist()


def row_key(part: Part, row: Mapping[str, Any]) -> str:
    """Return a name for the files of an image: its place, as ids may repeat and hold any character."""
    return f"{part.file.key}-{row['row']:012d}"


def stored_png(job: Export, row: Mapping[str, Any], task: str, column: str) -> bytes:
    """Return the bytes of a map; of one that is stored as a path they are read from there."""
    value = row[task][column]
    if value["bytes"] is None:
        return job.storage.read(join(job.output, value["path"]))
    return bytes(value["bytes"])


def write_meaning(job: Export, parts: Mapping[str, Done]) -> None:
    """Write `labels.json`: what each task's labels mean and which weights made them."""
    write_whole(job.out / "labels.json", (json.dumps(described(job), indent=1) + "\n").encode())


def described(job: Export) -> dict[str, Any]:
    """Return what each task's labels mean and which weights made them, by task."""
    return {
        name: {"weights": record.fingerprint["weights"], "model": record.fingerprint["model"], **record.meaning}
        for name, record in job.records.items()
    }
