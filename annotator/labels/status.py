"""How far an output has got: shards, rows by status, runs. From storage alone, while it runs or after."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from annotator.envelope import Status
from annotator.errors import NotFoundError
from annotator.fingerprint import TaskRecord, read_task_records
from annotator.footer import chunk_of
from annotator.labels.bad_rows import read_current
from annotator.labels.scan import is_cut, map_bounded
from annotator.manifest import Manifest, read_pins
from annotator.shards import labels_folder, parse_label_uri
from annotator.storage import ObjectInfo, Storage, join, normalize

MAX_RUNS = 10
"""Runs that a report tells about: the latest ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskStatus:
    """How far one task has got.

    `rows_total` counts manifest rows; with `where` it is None, as only reading the manifest would tell.
    `unreadable` counts label files that could not be read; `annotator verify` says why. `random`: the weights
    were never trained, so the labels mean nothing.
    """

    task: str
    shards: int
    shards_total: int
    rows: int
    rows_total: int | None
    statuses: dict[str, int]
    unreadable: int
    random: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """One run, as it last described itself; `record` is all of that (`_annotator/runs/<run id>.json`)."""

    run_id: str
    state: str
    updated: str | None
    images_per_s: float | None
    record: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusReport:
    """The state of an output: its tasks by name, and its latest runs, oldest first."""

    output: str
    tasks: tuple[TaskStatus, ...]
    runs: tuple[RunStatus, ...]

    @property
    def done(self) -> bool:
        """Whether every shard of every task has its label file."""
        return bool(self.tasks) and all(task.shards == task.shards_total for task in self.tasks)


def status(output: str, storage: Storage | None = None) -> StatusReport:
    """Return how far an output has got, reading of each label file its footer and seldom one column.

    Safe while a run writes. Raises OutputError if the folder is not an output.
    """
    storage = storage or Storage()
    output = normalize(output)
    manifest = read_pins(output, storage)
    records = read_task_records(storage, output).values()
    tasks = tuple(_task_status(storage, output, record, manifest) for record in records)
    return StatusReport(output=output, tasks=tasks, runs=_runs(storage, output))


def _task_status(storage: Storage, output: str, record: TaskRecord, manifest: Manifest) -> TaskStatus:
    task = record.task
    files = {file.key: file for file in manifest.files}
    infos = ((info, parse_label_uri(output, task, info.uri)) for info in storage.list(labels_folder(output, task)))
    ours = (info for info, shard in infos if shard is not None and is_cut(manifest, files.get(shard.file_key), shard))
    done = unreadable = 0
    statuses: Counter[str] = Counter()
    for _, counts in map_bounded(lambda info: _statuses(storage, info), ours):
        done += 1
        unreadable += counts is None
        statuses += counts or Counter()
    return TaskStatus(
        task=task,
        shards=done,
        shards_total=sum(-(-file.rows // manifest.shard_rows) for file in manifest.files),
        rows=sum(statuses.values()),
        rows_total=sum(file.rows for file in manifest.files) if manifest.where is None else None,
        statuses=dict(sorted(statuses.items())),
        unreadable=unreadable,
        random=record.is_random,
    )


def _statuses(storage: Storage, info: ObjectInfo) -> Counter[str] | None:
    """Return a label file's rows by status, None if it can't be read."""
    try:
        return read_current(storage, info, lambda now: _read_statuses(storage, now))
    except (pa.ArrowException, OSError, NotFoundError, KeyError, ValueError):
        return None


def _read_statuses(storage: Storage, info: ObjectInfo) -> Counter[str]:
    with storage.open(info.uri, info) as source:
        return _count_statuses(pq.ParquetFile(source))


def _count_statuses(parquet: pq.ParquetFile) -> Counter[str]:
    metadata = parquet.metadata
    leaves = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    leaf = leaves.index("status")
    counts: Counter[str] = Counter()
    mixed: list[int] = []
    for group in range(metadata.num_row_groups):
        column = chunk_of(metadata, group, leaf)
        stats = column.statistics
        # a row group whose smallest status is its largest, most often "ok", needs no reading
        if stats is not None and stats.has_min_max and stats.min == stats.max and stats.null_count == 0:
            counts[stats.min] += column.num_values
        else:
            mixed.append(group)
    if mixed:
        column = parquet.read_row_groups(mixed, columns=["status"], use_threads=False)["status"]
        for item in pc.value_counts(column).to_pylist():
            counts[str(item["values"])] += item["counts"]
    known = {s.value for s in Status}
    if not known.issuperset(counts):
        raise ValueError(f"unknown status in {sorted(counts)}")
    return counts


def last_rate(storage: Storage, output: str) -> float:
    """Return images a second of the latest run that tells, 0 if none does."""
    rates = [r.images_per_s for r in _runs(storage, output) if r.images_per_s and not r.record.get("retried")]
    return rates[-1] if rates else 0.0


def _runs(storage: Storage, output: str) -> tuple[RunStatus, ...]:
    """Return the latest runs; their ids sort by time."""
    uris = [info.uri for info in storage.list(join(output, "_annotator", "runs")) if info.uri.endswith(".json")]
    runs = (_run(storage, uri) for uri in uris[-MAX_RUNS:])
    return tuple(run for run in runs if run is not None)


def _run(storage: Storage, uri: str) -> RunStatus | None:
    try:
        record = json.loads(storage.read(uri))
    except (ValueError, NotFoundError):
        return None
    if not isinstance(record, dict):
        return None
    rate = record.get("images_per_s")
    return RunStatus(
        run_id=str(record.get("run_id", uri.rsplit("/", 1)[-1].removesuffix(".json"))),
        state=str(record.get("state", "unknown")),
        updated=record.get("updated"),
        images_per_s=float(rate) if isinstance(rate, (int, float)) else None,
        record=record,
    )
