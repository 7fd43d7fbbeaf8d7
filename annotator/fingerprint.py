"""The fingerprint of a task's labels: what fixes their values, pinned by the first run of an output.

    OUTPUT/_annotator/tasks/<task>.json      the task's record, created once, read back and compared

The same record, less the schema, rides in every label file's metadata under `annotator`. Batch size,
worker count, compile mode and machines are not part of a fingerprint: they must not change values.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import pyarrow as pa

from annotator.envelope import ENVELOPE, dense_of, label_schema
from annotator.errors import FingerprintMismatchError, OutputError
from annotator.storage import Storage, join
from annotator.tasks import Task

_ABSENT = object()


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRecord:
    """What a task's labels are made of and what they mean; `schema` is without its own metadata."""

    task: str
    fingerprint: dict[str, Any]
    fingerprint_digest: str
    meaning: dict[str, Any]
    schema: pa.Schema

    @property
    def is_random(self) -> bool:
        """Whether the weights were never trained, so that the labels mean nothing."""
        return bool(self.fingerprint["weights"]["random"])

    @property
    def header(self) -> dict[str, Any]:
        """The record as every label file carries it in its metadata: JSON values, no schema."""
        return {
            "task": self.task,
            "fingerprint": self.fingerprint,
            "fingerprint_digest": self.fingerprint_digest,
            "meaning": self.meaning,
        }

    @property
    def file_schema(self) -> pa.Schema:
        """The schema of a label file, metadata included."""
        return label_schema(list(self.schema)[len(ENVELOPE) :], record=self.header)

    def to_json(self) -> bytes:
        """Return the record as it is stored, keys in the order in which differences are named."""
        schema = base64.b64encode(self.schema.serialize().to_pybytes()).decode()
        return (json.dumps({**self.header, "schema": schema}, indent=1) + "\n").encode()


def make_record(
    task: Task,
    options: Any,
    *,
    config: Mapping[str, Any],
    weights: Mapping[str, Any],
    licence: str | None = None,
    dtype: str,
    decode: str,
    kept: Iterable[pa.Field],
    needs: Mapping[str, str],
) -> TaskRecord:
    """Return the record of a task as this job would run it.

    `config` is the model's (`ModelConfig.to_dict()`, with "channels"); `weights` is {"sha256", "random"};
    `licence` the note that the weights' own licence asks for, by default that of the released ones;
    `kept` the manifest columns of `keep_columns`; `needs` says what each need's labels are: the digest of that
    task's fingerprint, or where people come from if not from a task.
    """
    kept = list(kept)
    channels = int(config["channels"])
    schema = label_schema(task.fields(options, channels), kept=kept, record={}).remove_metadata()
    settings = options.model_dump(mode="json")
    fingerprint = _plain(
        {
            "weights": {"sha256": weights["sha256"], "random": weights["random"]},
            "model": config,
            "task_version": task.version,
            "options": {name: settings[name] for name in task.values},
            "dtype": "float32" if task.float32 else dtype,
            "decode": decode,
            "keep_columns": [f.name for f in kept],
            "needs": {name: needs[name] for name in task.needs(options)},
        }
    )
    meaning = dict(task.meaning(options, channels))
    if licence is not None:
        meaning["licence"] = licence
    return TaskRecord(
        task=task.name,
        fingerprint=fingerprint,
        fingerprint_digest=_digest(fingerprint),
        meaning=_plain(meaning),
        schema=schema,
    )


def pin_record(storage: Storage, output: str, record: TaskRecord) -> TaskRecord:
    """Create the task's record, or check it against the one that an earlier run created.

    Returns the record in storage: every label file of the task carries that one.
    Raises FingerprintMismatchError, naming the first field that differs.
    """
    uri = _record_uri(output, record.task)
    if storage.create(record.to_json(), uri, output=output):
        return record
    pinned = _read_record(storage, uri)
    compare_record(output, pinned, record)
    return pinned


def compare_record(output: str, pinned: TaskRecord, record: TaskRecord) -> None:
    """Raise FingerprintMismatchError, naming the first difference, unless both give the same labels."""
    difference = next(_differences(pinned.fingerprint, record.fingerprint), None)
    if difference is None and not pinned.schema.equals(record.schema):
        dense = dense_of(pinned.schema), dense_of(record.schema)
        moved = dense[0] != dense[1]  # no label value differs, but two layouts in one task are two schemas
        difference = ("dense", *dense) if moved else _schema_difference(pinned.schema, record.schema)
    if difference is not None:
        path, old, new = difference
        raise FingerprintMismatchError(
            f"{output}: its {record.task} labels were made with {path} = {_short(old)}, this job has {_short(new)}; "
            "use another output folder, or the settings of the first run"
        )


def read_task_records(storage: Storage, output: str) -> dict[str, TaskRecord]:
    """Return the records of an output by task name, sorted; empty when no run has got that far.

    Raises OutputError for a record that can't be read or was edited.
    """
    uris = (info.uri for info in storage.list(join(output, "_annotator", "tasks")))
    records = [_read_record(storage, uri) for uri in uris if uri.endswith(".json")]
    return {record.task: record for record in sorted(records, key=lambda r: r.task)}


def schema_problem(found: pa.Schema, expected: pa.Schema) -> str | None:
    """Return how two schemas differ in names, types or order, or None when they don't."""
    if found.equals(expected):
        return None
    path, want, have = _schema_difference(expected, found)
    return f"{path} is {_short(have)}, expected {_short(want)}"


def _record_uri(output: str, task: str) -> str:
    return join(output, "_annotator", "tasks", f"{task}.json")


def _read_record(storage: Storage, uri: str) -> TaskRecord:
    text = storage.read(uri)
    try:
        data = json.loads(text)
        record = TaskRecord(
            task=data["task"],
            fingerprint=data["fingerprint"],
            fingerprint_digest=data["fingerprint_digest"],
            meaning=data["meaning"],
            schema=pa.ipc.read_schema(pa.py_buffer(base64.b64decode(data["schema"]))),
        )
    except (ValueError, KeyError, TypeError, OSError, pa.ArrowException) as err:  # OSError: a broken flatbuffer
        raise OutputError(f"{uri}: not a task record ({type(err).__name__}); restore it from a backup") from None
    if not uri.endswith(f"/{record.task}.json"):
        raise OutputError(f"{uri}: is the record of a task {record.task!r}; restore the one of that name from a backup")
    if _digest(record.fingerprint) != record.fingerprint_digest:
        raise OutputError(f"{uri}: the fingerprint is not that of its digest, so it was edited; restore it")
    return record


def _plain(value: Any) -> dict[str, Any]:
    """Return the value as JSON gives it back, so that a pinned one compares equal (tuples become lists)."""
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


def _digest(fingerprint: Mapping[str, Any]) -> str:
    """Return the sha256, in hex, of the fingerprint as canonical JSON."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield dotted path and both values of every leaf that differs, in the fingerprint's order."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*new, *old]):
            yield from _differences(old.get(key, _ABSENT), new.get(key, _ABSENT), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new


def _schema_difference(old: pa.Schema, new: pa.Schema) -> tuple[str, Any, Any]:
    """Return path and both values of the first difference of two schemas that are not equal."""
    columns = enumerate(zip_longest(old, new), start=1)
    number, a, b = next((n, a, b) for n, (a, b) in columns if a is None or b is None or not a.equals(b))
    if a is None or b is None or a.name != b.name:
        return f"column {number}", _ABSENT if a is None else a.name, _ABSENT if b is None else b.name
    return f"the type of column {a.name}", _type(a), _type(b)


def _type(field: pa.Field) -> str:
    return str(field.type) if field.nullable else f"{field.type} not null"


def _short(value: Any) -> str:
    """Return the value for a message, at most 60 characters of it."""
    text = "nothing" if value is _ABSENT else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
