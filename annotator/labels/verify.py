"""Proof from storage alone that every manifest row is in exactly one label file, once, for each task.

A label file's place names its rows. So when every expected file exists, nothing else lies under `labels/`,
and each file holds exactly the rows of its place, no row is missing and none is there twice: duplicates
need no check across files, and memory stays bounded whatever the size of the output.

Kinds of problem:

    missing_shard   no label file yet; running the job again writes it
    foreign_file    under labels/, but no label file of this output: unknown task, manifest file or shard
    unreadable      not a Parquet file, cut short, or with pages that don't decode
    checksum        a page's bytes are not those that were written
    schema          names, types or order of the columns are not those of the task's record
    fingerprint     made with another fingerprint, or carries none
    metadata        the right fingerprint, but the rest of the record in the file is not the task's
    row_groups      row groups larger than readers of one map count on
    wrong_shard     the `shard` column names another shard: a file that was moved or copied
    wrong_rows      rows missing, twice, out of order, or not of this shard
    image_id        null or empty
    status          not one of `envelope.Status`
    map             an "ok" row without a map, or another row with one
    manifest        the manifest file can't be read, so the rows that `where` selects are not known
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from annotator.envelope import IMAGE, ROW_GROUP_ROWS, Status
from annotator.errors import InvalidInputError, NotFoundError, OutputError
from annotator.fingerprint import TaskRecord, read_task_records, schema_problem
from annotator.labels.scan import WHOLE_BYTES, is_cut, map_bounded, open_checked
from annotator.manifest import Manifest, PinnedFile, read_pins, selected_rows
from annotator.shards import Shard, parse_label_uri
from annotator.storage import ObjectInfo, Storage, join, normalize

MAX_LISTED = 50
"""Problems of one kind that a report lists for one task; the rest are only counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong: `kind` to group by, `where` the file or folder, `message` found and expected."""

    kind: str
    where: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskCount:
    """What one task's labels hold: label files, their rows, rows by status."""

    task: str
    shards: int
    shards_expected: int
    rows: int
    statuses: dict[str, int]
    random: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """What `verify` found. `counts` has every problem by kind, `problems` the first ones of each kind."""

    output: str
    tasks: tuple[TaskCount, ...]
    problems: tuple[Problem, ...]
    counts: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether the output is complete and nothing is wrong with it."""
        return not self.counts


def verify(
    output: str, storage: Storage | None = None, *, progress: Callable[[int, int], None] | None = None
) -> VerifyReport:
    """Read every byte of every label and return what is wrong.

    `progress` is told after each file how many were read, and how many a complete output has. Safe beside a
    run: shards that are not done yet are missing. Memory: a few files of at most scan.WHOLE_BYTES.
    Raises OutputError if the folder is not an output, StorageError if storage stays away.
    """
    storage = storage or Storage()
    output = normalize(output)
    manifest = read_pins(output, storage)
    records = read_task_records(storage, output)
    if not records:
        raise OutputError(f"{output}: holds no labels yet; run the job first")
    ledger = _Ledger(manifest, records)
    files = _label_files(storage, output, manifest, records, ledger)
    for done, (file, result) in enumerate(map_bounded(lambda f: _check_file(storage, f), files), start=1):
        ledger.add_file(file, result)
        if progress is not None:
            progress(done, ledger.shards_expected * len(records))
    ledger.add_missing(output)
    return ledger.report(output)


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """A label file to check. `rows` are those it must hold, or None where `where` can't be evaluated."""

    info: ObjectInfo
    shard: Shard
    record: TaskRecord
    rows: np.ndarray | None


@dataclass(slots=True)
class _Result:
    """What label files hold, and what is wrong as (kind, message)."""

    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, str]] = field(default_factory=list)


class _Ledger:
    """What was found so far: one byte a shard, counts, and the first problems of each kind and task."""

    def __init__(self, manifest: Manifest, records: dict[str, TaskRecord]) -> None:
        self._manifest = manifest
        sizes = {file.key: -(-file.rows // manifest.shard_rows) for file in manifest.files}
        self._seen = {task: {key: np.zeros(size, dtype=bool) for key, size in sizes.items()} for task in records}
        self._results = {task: _Result() for task in records}
        self._random = {task: record.is_random for task, record in records.items()}
        self._counts: Counter[str] = Counter()
        self._listed: Counter[tuple[str, str]] = Counter()
        self._problems: list[Problem] = []
        self.shards_expected = sum(sizes.values())

    def add(self, kind: str, where: str, message: str, *, task: str, count: int = 1) -> None:
        self._counts[kind] += count
        self._listed[task, kind] += 1
        if self._listed[task, kind] <= MAX_LISTED:
            self._problems.append(Problem(kind=kind, where=where, message=message))

    def see(self, task: str, shard: Shard) -> None:
        self._seen[task][shard.file_key][shard.first // self._manifest.shard_rows] = True

    def add_file(self, file: _File, result: _Result) -> None:
        task = file.record.task
        self._results[task].rows += result.rows
        self._results[task].statuses += result.statuses
        for kind, message in result.problems:
            self.add(kind, file.info.uri, message, task=task)

    def add_missing(self, output: str) -> None:
        """Add one problem for each task that lacks shards, naming the first."""
        step = self._manifest.shard_rows
        for task, seen in self._seen.items():
            missing = {file: ~seen[file.key] for file in self._manifest.files if not seen[file.key].all()}
            if missing:
                file, where = next(iter(missing.items()))
                first = int(where.argmax()) * step
                shard = Shard(file.key, first, min(first + step, file.rows))
                count = sum(int(m.sum()) for m in missing.values())
                message = f"{count} of {self.shards_expected} shards, the first is {shard}; run the job again"
                self.add("missing_shard", join(output, "labels", task), message, task=task, count=count)

    def report(self, output: str) -> VerifyReport:
        tasks = (
            TaskCount(
                task=task,
                shards=sum(int(seen.sum()) for seen in self._seen[task].values()),
                shards_expected=self.shards_expected,
                rows=result.rows,
                statuses=dict(sorted(result.statuses.items())),
                random=self._random[task],
            )
            for task, result in self._results.items()
        )
        return VerifyReport(
            output=output,
            tasks=tuple(tasks),
            problems=tuple(sorted(self._problems, key=lambda p: (p.kind, p.where))),
            counts=dict(sorted(self._counts.items())),
        )


def _label_files(
    storage: Storage, output: str, manifest: Manifest, records: dict[str, TaskRecord], ledger: _Ledger
) -> Iterator[_File]:
    """Yield the label files of this output's shards; whatever else lies under labels/ goes to the ledger."""
    files = {file.key: file for file in manifest.files}
    unknown: set[str] = set()

    @lru_cache(maxsize=2)  # the listing is sorted, so the label files of one manifest file follow each other
    def selected(key: str) -> np.ndarray | None:
        try:
            return selected_rows(storage, manifest, files[key])
        except (InvalidInputError, NotFoundError) as err:
            if key not in unknown:
                ledger.add("manifest", files[key].uri, str(err), task="")
            unknown.add(key)
            return None

    prefix = join(output, "labels") + "/"
    for info in storage.list(join(output, "labels")):
        task = info.uri.removeprefix(prefix).partition("/")[0]
        shard = parse_label_uri(output, task, info.uri)
        record = records.get(task)
        if shard is None or record is None or not is_cut(manifest, files.get(shard.file_key), shard):
            reason = _foreign_because(task, record, shard, files)
            ledger.add("foreign_file", info.uri, reason, task=task if record else "")
            continue
        ledger.see(task, shard)
        rows: np.ndarray | None = np.arange(shard.first, shard.end)
        if manifest.where is not None:
            rows = selected(shard.file_key)
            rows = None if rows is None else rows[(rows >= shard.first) & (rows < shard.end)]
        yield _File(info=info, shard=shard, record=record, rows=rows)


def _foreign_because(task: str, record: TaskRecord | None, shard: Shard | None, files: dict[str, PinnedFile]) -> str:
    if record is None:
        reason = f"the output has no record of a task {task!r}"
    elif shard is None:
        reason = "label files are called <task>/<manifest file key>/<first>-<end>.parquet"
    elif shard.file_key not in files:
        reason = f"no manifest file is pinned under the key {shard.file_key}"
    else:
        reason = f"{shard} is not among the shards of its manifest file, of {files[shard.file_key].rows} rows"
    return f"{reason}; move it away, readers of the folder take it for labels"


def _check_file(storage: Storage, file: _File) -> _Result:
    """Return what a label file holds and everything that is wrong with it."""
    result = _Result()
    try:
        with open_checked(storage, file.info) as parquet:
            if _check_footer(parquet, file, result):
                _check_rows(parquet, file, result)
    except (pa.ArrowException, OSError, NotFoundError) as err:
        text = " ".join(str(err).split())
        kind = "checksum" if "CRC checksum" in text else "unreadable"
        result.problems.append((kind, f"{text[:200]}; restore the file, or delete it and run the job again"))
    return result


def _check_footer(parquet: pq.ParquetFile, file: _File, result: _Result) -> bool:
    """Check what the footer says; return whether the columns are those that the rows are checked by."""
    schema, record = parquet.schema_arrow, file.record
    header = _header(schema)
    digest = header.get("fingerprint_digest")
    if digest != record.fingerprint_digest:
        have = f"{digest[:12]}..." if isinstance(digest, str) else "nothing"
        want = f"{record.fingerprint_digest[:12]}..."
        result.problems.append(("fingerprint", f"made with {have}, and {record.task} labels here with {want}"))
    elif header != record.header:
        differs = sorted(k for k in {*header, *record.header} if header.get(k) != record.header.get(k))
        result.problems.append(("metadata", f"{', '.join(differs)} in the file differs from the task's record"))
    if any(f.type == IMAGE for f in record.schema):
        groups = (parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups))
        largest = max(groups, default=0)
        if largest > ROW_GROUP_ROWS:
            result.problems.append(("row_groups", f"a row group has {largest} rows, expected up to {ROW_GROUP_ROWS}"))
    problem = schema_problem(schema, record.schema)
    if problem is not None:
        result.problems.append(("schema", problem))
    return problem is None


def _header(schema: pa.Schema) -> dict[str, Any]:
    try:
        header = json.loads((schema.metadata or {}).get(b"annotator", b"{}"))
    except ValueError:
        return {}
    return header if isinstance(header, dict) else {}


def _check_rows(parquet: pq.ParquetFile, file: _File, result: _Result) -> None:
    """Read every row group, which checks every page, and compare the rows with those the place promises."""
    rows: list[np.ndarray] = []
    shards: set[str | None] = set()
    bad: dict[str, list[np.ndarray]] = {"image_id": [], "status": [], "map": []}
    for groups in _portions(parquet):
        table = parquet.read_row_groups(groups, use_threads=False)
        rows.append(table["row"].fill_null(-1).to_numpy())
        shards.update(pc.unique(table["shard"].cast(pa.string())).to_pylist())
        for kind, mask in _bad_rows(table).items():
            bad[kind].append(rows[-1][mask])
        for count in pc.value_counts(table["status"]).to_pylist():
            result.statuses[str(count["values"])] += count["counts"]
    found = np.concatenate([np.empty(0, np.int64), *rows])
    result.rows = len(found)
    others = sorted(str(s) for s in shards if s != file.shard.key)
    if others:
        result.problems.append(("wrong_shard", f"holds rows of {others[0]}, expected {file.shard}"))
    problem = _rows_problem(found, file)
    if problem is not None:
        result.problems.append(("wrong_rows", problem))
    messages = {
        "image_id": "have no image_id",
        "status": f"have a status other than {', '.join(s.value for s in Status)}",
        "map": "have status ok and no map, or a map and another status",
    }
    for kind, parts in bad.items():
        where = np.concatenate([np.empty(0, np.int64), *parts])
        if len(where):
            result.problems.append((kind, f"{len(where)} of {len(found)} rows {messages[kind]}; first row {where[0]}"))


def _portions(parquet: pq.ParquetFile) -> Iterator[list[int]]:
    """Yield the numbers of row groups to read at once: few calls for small maps, little memory for large ones."""
    groups: list[int] = []
    size = 0
    for group in range(parquet.num_row_groups):
        more = parquet.metadata.row_group(group).total_byte_size
        if groups and size + more > WHOLE_BYTES:
            yield groups
            groups, size = [], 0
        groups, size = [*groups, group], size + more
    if groups:
        yield groups


def _bad_rows(table: pa.Table) -> dict[str, np.ndarray]:
    """Return masks of the rows that break a rule of the envelope, by kind of problem."""
    known = pa.array([s.value for s in Status])
    ok = pc.equal(table["status"], Status.OK.value).fill_null(False)
    wrong = pa.chunked_array([pa.nulls(len(table), pa.bool_()).fill_null(False)])
    for column in (f.name for f in table.schema if f.type == IMAGE):
        size = pc.binary_length(pc.struct_field(table[column], "bytes")).fill_null(0)
        wrong = pc.or_(wrong, pc.not_equal(ok, pc.greater(size, 0)))
    masks = {
        "image_id": pc.equal(pc.utf8_length(table["image_id"]).fill_null(0), 0),
        "status": pc.invert(pc.is_in(table["status"], value_set=known)),
        "map": wrong,
    }
    return {kind: mask.to_numpy() for kind, mask in masks.items()}


def _rows_problem(found: np.ndarray, file: _File) -> str | None:
    """Return how the rows differ from those that belong here, or None."""
    if file.rows is not None and np.array_equal(found, file.rows):
        return None
    allowed = np.arange(file.shard.first, file.shard.end) if file.rows is None else file.rows
    values, counts = np.unique(found, return_counts=True)
    parts = {
        "missing": np.setdiff1d(file.rows, values) if file.rows is not None else values[:0],
        "more than once": values[counts > 1],
        "not of this shard": np.setdiff1d(values, allowed),
        "out of order": found[1:][np.diff(found) < 0],
    }
    told = [f"{len(rows)} {word} (first {rows[0]})" for word, rows in parts.items() if len(rows)]
    return f"{len(found)} rows, expected {len(allowed)}: {', '.join(told)}" if told else None
