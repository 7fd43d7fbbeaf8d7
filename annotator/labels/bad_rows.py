"""Bad rows: which label rows have an error class, grouped; the shards they are in; a manifest of their images.

Label files whose footer says that no row has an error class cost a read of the footer; of others, row groups with
bad rows are read, without maps. Memory holds counts, a few examples a group, and one manifest file's bad rows.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from annotator.errors import ManifestError, NotFoundError, OutputError, TransientStorageError
from annotator.fingerprint import read_task_records
from annotator.footer import chunk_of, read_footer
from annotator.labels.scan import is_cut, map_bounded
from annotator.manifest import Manifest, PinnedFile, read_pins
from annotator.manifest_build import Built, tidy
from annotator.manifest_sample import copy_rows
from annotator.planning import Plan
from annotator.shards import Shard, labels_folder, parse_label_uri
from annotator.storage import ObjectInfo, Storage, join, normalize

T = TypeVar("T")

MAX_EXAMPLES = 3
"""Rows that a report shows of each group: the first ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """One bad label row: `shard` and `row` name its manifest row, `uri` is cut as in the labels."""

    shard: str
    row: int
    uri: str | None
    error: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BadGroup:
    """The bad rows of one task, status and error class: how many, and the first few."""

    task: str
    status: str
    error_class: str
    rows: int
    examples: tuple[BadRow, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRows:
    """All bad rows of an output, largest groups first. `unreadable` counts label files that can't be read."""

    output: str
    groups: tuple[BadGroup, ...]
    unreadable: int

    @property
    def rows(self) -> int:
        """Bad label rows in all."""
        return sum(group.rows for group in self.groups)


def bad_rows(
    output: str,
    *,
    tasks: Collection[str] = (),
    errors: Collection[str] = (),
    storage: Storage | None = None,
    progress: Callable[[int], None] | None = None,
) -> BadRows:
    """Return the label rows that are neither ok nor no_person, grouped by task, status and error class.

    `tasks` and `errors` choose; all by default. `progress` is told how many label files were looked at. Safe beside
    a run. Raises OutputError if the folder is not an output, or has no such task.
    """
    storage, output = storage or Storage(), normalize(output)
    manifest = read_pins(output, storage)
    counts: Counter[tuple[str, str, str]] = Counter()
    examples: dict[tuple[str, str, str], list[BadRow]] = {}
    looked_at = unreadable = 0
    for task in choose_tasks(storage, output, tasks):
        for shard, table in _scan(storage, output, task, manifest, ["row", "uri", "status", "error_class", "error"]):
            looked_at += 1
            unreadable += table is None
            if progress is not None:
                progress(looked_at)
            for row in table.to_pylist() if table is not None else ():
                if errors and row["error_class"] not in errors:
                    continue
                key = task, str(row["status"]), str(row["error_class"])
                counts[key] += 1
                if counts[key] <= MAX_EXAMPLES:
                    example = BadRow(shard=shard.key, row=row["row"], uri=row["uri"], error=row["error"])
                    examples.setdefault(key, []).append(example)
    groups = (
        BadGroup(task=task, status=status, error_class=error, rows=rows, examples=tuple(examples[task, status, error]))
        for (task, status, error), rows in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
    return BadRows(output=output, groups=tuple(groups), unreadable=unreadable)


def export_bad_rows(
    output: str,
    folder: str,
    *,
    tasks: Collection[str] = (),
    errors: Collection[str] = (),
    storage: Storage | None = None,
) -> Built:
    """Write the images of bad rows as a manifest into the empty folder: whole manifest rows, each once.

    Local and s3:// uris are absolute and as in the manifest, embedded pictures come along. Three columns say what
    is wrong with the labels: `error_class` and `tasks` (several joined by commas) and `error`. `errors` takes only
    these classes. Raises OutputError if the folder is not empty or a label file can't be read, ManifestError if a
    manifest file changed.
    """
    storage, output, folder = storage or Storage(), normalize(output), normalize(folder)
    if stranger := next(iter(storage.list(folder)), None):
        raise OutputError(f"{folder}: is not empty ({stranger.uri}); name an empty or new folder")
    manifest = read_pins(output, storage)
    names = choose_tasks(storage, output, tasks)
    images = files = 0
    root: str | None = None
    for file in manifest.files:
        wrong = _wrong_rows(storage, output, manifest, file, names, frozenset(errors))
        if not wrong:
            continue
        if read_footer(storage, ObjectInfo(uri=file.uri, size=file.size, etag=file.etag)).digest != file.footer_digest:
            raise ManifestError(f"{file.uri}: changed since the first run pinned it; put the old file back to export")
        rows = sorted(wrong)
        columns = {name: pa.array([wrong[row].text(name) for row in rows], pa.string()) for name in _Wrong.COLUMNS}
        target = join(folder, f"{file.key}.parquet")
        copy_rows(storage, file, np.array(rows, np.int64), target, output=folder, columns=columns)
        images, files = images + len(rows), files + 1
        folders = [os.path.dirname(found.uri) for found in wrong.values() if found.uri and found.uri.startswith("/")]
        root = os.path.commonpath([*folders, *([root] if root else [])]) if folders else root
    tidy(folder)
    return Built(manifest=folder, images=images, files=files, duplicates=0, unusable=0, root=root)


def plan_bad(
    storage: Storage, output: str, manifest: Manifest, tasks: Collection[str], errors: Collection[str]
) -> Plan:
    """Return the shards that hold a row of one of these error classes in a task, as a plan to do those rows again.

    `rows_left` is a lower bound: of each shard, the rows of the task that has most. A label file that can't be read
    counts as one row, for a worker to say so.
    """
    index = {file.key: number for number, file in enumerate(manifest.files)}
    most = [np.zeros(-(-file.rows // manifest.shard_rows), np.int32) for file in manifest.files]
    classes = pa.array(sorted(errors), pa.string())
    lacking = []
    for task in tasks:
        found = 0
        for shard, table in _scan(storage, output, task, manifest, ["error_class"]):
            matches = pa.array([True]) if table is None else pc.is_in(table["error_class"], value_set=classes)
            rows = pc.sum(matches).as_py() or 0
            counts, number = most[index[shard.file_key]], shard.first // manifest.shard_rows
            counts[number] = max(counts[number], rows)
            found += rows
        lacking += [task] if found else []
    firsts = [np.flatnonzero(counts).astype(np.int64) * manifest.shard_rows for counts in most]
    return Plan(
        manifest=manifest,
        tasks=tuple(tasks),
        tasks_left=tuple(lacking),
        file_index=np.repeat(np.arange(len(firsts), dtype=np.int32), [len(first) for first in firsts]),
        first=np.concatenate([np.empty(0, np.int64), *firsts]),
        total=sum(len(counts) for counts in most),
        rows_total=manifest.rows,
        rows_left=int(sum(counts.sum() for counts in most)),
    )


def choose_tasks(storage: Storage, output: str, tasks: Collection[str]) -> list[str]:
    """Return these tasks, or all of the output's. Raises OutputError if it has no such task, or none."""
    records = read_task_records(storage, output)
    unknown = sorted(set(tasks) - set(records))
    if unknown or not records:
        what = f"no {unknown[0]} labels; it has {', '.join(records) or 'none'}" if unknown else "no labels yet"
        raise OutputError(f"{output}: has {what}")
    return [name for name in records if name in tasks or not tasks]


def bad_rows_of(parquet: pq.ParquetFile, columns: list[str]) -> pa.Table:
    """Return these columns, `error_class` among them, of the rows that have an error class.

    Row groups without one, by the footer, stay unread.
    """
    metadata = parquet.metadata
    leaves = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    leaf = leaves.index("error_class")
    groups = [group for group in range(metadata.num_row_groups) if not _is_null(chunk_of(metadata, group, leaf))]
    table = parquet.read_row_groups(groups, columns=columns, use_threads=False)
    return table.filter(table["error_class"].is_valid())


def _is_null(chunk: pq.ColumnChunkMetaData) -> bool:
    stats = chunk.statistics
    return stats is not None and bool(stats.has_null_count) and stats.null_count == chunk.num_values


def _scan(
    storage: Storage, output: str, task: str, manifest: Manifest, columns: list[str], file_key: str = ""
) -> Iterator[tuple[Shard, pa.Table | None]]:
    """Yield each label file's shard and bad rows, in the order of uris; None where it can't be read."""
    files = {file.key: file for file in manifest.files}

    def ours() -> Iterator[tuple[Shard, ObjectInfo]]:
        for info in storage.list(join(labels_folder(output, task), file_key)):
            shard = parse_label_uri(output, task, info.uri)
            if shard is not None and is_cut(manifest, files.get(shard.file_key), shard):
                yield shard, info

    for (shard, _), table in map_bounded(lambda item: _read_bad(storage, item[1], columns), ours()):
        yield shard, table


def _read_bad(storage: Storage, info: ObjectInfo, columns: list[str]) -> pa.Table | None:
    def read(now: ObjectInfo) -> pa.Table:
        with storage.open(now.uri, now) as source:
            return bad_rows_of(pq.ParquetFile(source), columns)

    try:
        return read_current(storage, info, read)
    except (pa.ArrowException, OSError, NotFoundError, KeyError, ValueError):
        return None


def read_current(storage: Storage, info: ObjectInfo, read: Callable[[ObjectInfo], T]) -> T:
    """Return read(info); with what is there now where that file was replaced meanwhile, as `retry` does."""
    try:
        return read(info)
    except TransientStorageError:
        return read(storage.info(info.uri))


@dataclass(slots=True)
class _Wrong:
    """What is wrong with the labels of one manifest row."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("error_class", "tasks", "error")

    uri: str | None
    error_class: list[str]
    tasks: list[str]
    error: list[str]

    def text(self, column: str) -> str:
        values: list[str] = getattr(self, column)
        return values[0] if column == "error" else ",".join(dict.fromkeys(values))


def _wrong_rows(
    storage: Storage, output: str, manifest: Manifest, file: PinnedFile, tasks: list[str], errors: frozenset[str]
) -> dict[int, _Wrong]:
    """Return the rows of a manifest file with bad labels."""
    wrong: dict[int, _Wrong] = {}
    columns = ["row", "uri", "error_class", "error"]
    for task in tasks:
        for shard, table in _scan(storage, output, task, manifest, columns, file.key):
            if table is None:
                raise OutputError(f"{output}: {task} labels of {shard} can't be read; `annotator verify` says why")
            for row in table.to_pylist():
                if not errors or row["error_class"] in errors:
                    found = wrong.setdefault(row["row"], _Wrong(row["uri"], [], [], []))
                    found.error_class.append(row["error_class"])
                    found.tasks.append(task)
                    found.error.append(row["error"] or "")
    return wrong
