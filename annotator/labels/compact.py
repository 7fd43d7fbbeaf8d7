"""Compacting: a task's small label files copied into few large ones, sorted by image_id (see snapshot.py).

Incremental: segments whose label files are all unchanged stay. Label files that are new or were replaced become a new
segment, and take with them the label files of every segment that holds fewer rows than they do: so there are never many
segments, and a row is copied a few times at most, however often labels come in.

A segment is sorted outside of memory: rows are parted by ranges of image_id into spill files, and each spill file is
sorted by itself and becomes one file. That takes disk space for one copy of what is compacted. Nothing counts before
`_snapshot.json` is replaced, so a kill leaves the old snapshot; its files are removed by the call after the next.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from annotator.errors import AccessError, OutputError
from annotator.fingerprint import TaskRecord
from annotator.labels.bad_rows import choose_tasks, read_current
from annotator.labels.scan import map_bounded, open_checked
from annotator.labels.snapshot import (
    Segment,
    Snapshot,
    TableFile,
    read_snapshot,
    snapshot_uri,
    sources_digest,
    sources_of,
    tables_folder,
)
from annotator.labels.tables import find_record
from annotator.shards import labels_folder, parse_label_uri
from annotator.stages.encode import LabelWriter
from annotator.storage import ObjectInfo, Storage, join, normalize

FILE_BYTES = 256 * 2**20
"""Size of a file, about, as Arrow holds it: so much is sorted at once."""

GROUP_BYTES = 16 * 2**20
"""Size of a row group, about: what a reader of maps holds at least, and of a few columns has to skip."""

MAX_GROUP_ROWS = 4096
_BUFFER_BYTES = 64 * 2**20
_THREADS = 4
_SAMPLED = 64  # label files that are sampled at least; four a file that is written, so that these come out even

Progress = Callable[[int, int], None]
"""Told how many label files are done, of how many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compacted:
    """A task's snapshot as it is now: `copied` of its label files by this call, the others before."""

    task: str
    label_files: int
    copied: int
    files: int
    rows: int


def compact(
    output: str,
    *,
    tasks: Sequence[str] = (),
    storage: Storage | None = None,
    progress: Progress | None = None,
) -> list[Compacted]:
    """Bring the snapshots of these tasks, by default of all, up to date with their label files, which stay as they are.

    `open_labels`, `query` and `find_label` use a snapshot while it is current. Memory: about three times FILE_BYTES;
    disk: a copy of what is compacted, in the folder for temporary files.
    Raises OutputError if the output has no such task, or a label file that is not ours.
    """
    storage, output = storage or Storage(), normalize(output)
    return [_compact(storage, output, task, progress) for task in choose_tasks(storage, output, tasks)]


def _compact(storage: Storage, output: str, task: str, progress: Progress | None) -> Compacted:
    infos = list(storage.list(labels_folder(output, task)))
    foreign = next((info.uri for info in infos if parse_label_uri(output, task, info.uri) is None), None)
    if foreign is not None:
        raise OutputError(f"{foreign}: is no label file of ours; run annotator verify")
    now, old = sources_of(output, task, infos), read_snapshot(storage, output, task)
    folder = tables_folder(output, task)
    there = {info.uri.removeprefix(folder + "/") for info in storage.list(folder)}
    kept, todo = _keep(storage, folder, old, infos, now, there)
    segments = tuple(kept)
    if todo or old is None or old.digest != sources_digest(now):
        record = find_record(storage, output, task)
        if todo:
            segments = (*kept, _write_segment(storage, output, record, todo, now, progress))
        snapshot = Snapshot(task=task, digest=sources_digest(now), segments=segments)
        storage.replace(snapshot.to_json(), snapshot_uri(output, task), output=output)
        # those of the old snapshot stay until the next call, for readers who have them open
        _clean(storage, folder, there - snapshot.names - (old.names if old is not None else set()))
    return Compacted(
        task=task,
        label_files=len(infos),
        copied=len(todo),
        files=sum(len(segment.files) for segment in segments),
        rows=sum(segment.rows for segment in segments),
    )


def _keep(
    storage: Storage,
    folder: str,
    old: Snapshot | None,
    infos: Sequence[ObjectInfo],
    now: Mapping[str, str],
    there: set[str],
) -> tuple[list[Segment], list[ObjectInfo]]:
    """Return the segments that stay, and the label files that a new one is to be made of."""
    sources: dict[str, set[str]] = {}
    kept: list[Segment] = []
    for segment in sorted(old.segments, key=lambda s: s.rows) if old is not None else ():
        if segment.sources in there and {file.name for file in segment.files} <= there:
            found = _read_sources(storage, join(folder, segment.sources))
            if found.items() <= now.items():
                sources[segment.name] = set(found)
                kept.append(segment)
    todo = set(now).difference(*sources.values())
    rows = sum(_rows_of(path) for path in todo)
    while kept and rows and kept[0].rows <= rows:
        segment = kept.pop(0)
        todo |= sources[segment.name]
        rows += segment.rows
    return kept, [info for info, path in zip(infos, now, strict=True) if path in todo]


def _rows_of(path: str) -> int:
    first, end = path.rpartition("/")[2].removesuffix(".parquet").split("-")
    return int(end) - int(first)


def _read_sources(storage: Storage, uri: str) -> dict[str, str]:
    table = pq.read_table(pa.BufferReader(storage.read(uri)))
    return dict(zip(table["path"].to_pylist(), table["version"].to_pylist(), strict=True))


def _clean(storage: Storage, folder: str, names: Iterable[str]) -> None:
    for name in sorted(name for name in names if name.endswith(".parquet")):
        try:
            storage.delete(join(folder, name))
        except AccessError:
            return  # some may write and not delete: then old files stay, and nothing reads them


# -- one segment ---------------------------------------------------------------------------------


def _write_segment(
    storage: Storage,
    output: str,
    record: TaskRecord,
    labels: Sequence[ObjectInfo],
    now: Mapping[str, str],
    progress: Progress | None,
) -> Segment:
    """Write these label files as a segment, and what it was made of."""
    name, folder = uuid.uuid4().hex[:12], tables_folder(output, record.task)
    files = []
    with tempfile.TemporaryDirectory(prefix="annotator-compact-") as spill:
        _part(storage, record, labels, _splitters(storage, record, labels), Path(spill), progress)
        for number, path in enumerate(sorted(Path(spill).glob("*.arrows"))):
            table, order = _sorted_parts(path)
            written, file = _write_file(record, table, order, Path(spill), f"{name}-{number:05d}.parquet")
            del table, order  # before the next one is read
            path.unlink()
            storage.create(written, join(folder, file.name), output=output)
            written.unlink()
            files.append(file)
        segment = Segment(name=name, files=tuple(files))
        paths = sources_of(output, record.task, labels)
        sources = Path(spill) / segment.sources
        versions = [now[path] for path in paths]
        pq.write_table(pa.table({"path": list(paths), "version": versions}), sources, compression="zstd")
        storage.create(sources, join(folder, segment.sources), output=output)
    return segment


def _splitters(storage: Storage, record: TaskRecord, labels: Sequence[ObjectInfo]) -> list[str]:
    """Return the ids at which files are to begin, but for the first, so that all are of about FILE_BYTES."""
    some = [labels[len(labels) * i // 3] for i in range(3)]
    tables = [_read(storage, record, info) for info in some]
    growth = max(1.0, sum(table.nbytes for table in tables) / sum(info.size for info in some))
    count = int(sum(info.size for info in labels) * growth / FILE_BYTES) + 1
    if count == 1:
        return []
    step = max(1, len(labels) // max(_SAMPLED, 4 * count))
    sampled = map_bounded(lambda info: _read(storage, record, info, ["image_id"]), labels[::step], threads=_THREADS)
    ids = np.sort(np.array([image_id for _, table in sampled for image_id in table["image_id"].to_pylist()], object))
    return list(dict.fromkeys(ids[len(ids) * i // count] for i in range(1, count)))


def _read(storage: Storage, record: TaskRecord, info: ObjectInfo, columns: list[str] | None = None) -> pa.Table:
    """Return a label file, shards as text: a dictionary of each file's own would not go into one stream."""

    def read(found: ObjectInfo) -> pa.Table:
        with open_checked(storage, found) as parquet:
            return parquet.read(columns)

    try:
        table = read_current(storage, info, read)
    except (pa.ArrowException, OSError) as err:
        text = " ".join(str(err).split())[:100]
        raise OutputError(f"{info.uri}: can't be read ({text}); run annotator verify") from None
    at = table.schema.get_field_index("shard")
    return table if at < 0 else table.set_column(at, "shard", table["shard"].cast(pa.string()))


def _part(
    storage: Storage,
    record: TaskRecord,
    labels: Sequence[ObjectInfo],
    splitters: Sequence[str],
    folder: Path,
    progress: Progress | None,
) -> None:
    """Write all rows into spill files by range of image_id, one after the other as Arrow streams."""
    edges = np.array(splitters, object)
    waiting: dict[int, list[pa.Table]] = {}
    held = 0
    reads = map_bounded(lambda info: _read(storage, record, info), labels, threads=_THREADS)
    for done, (_, table) in enumerate(reads, start=1):
        parts = np.searchsorted(edges, np.array(table["image_id"].to_pylist(), object), side="right")
        for part in np.unique(parts).tolist():
            waiting.setdefault(part, []).append(table.take(pa.array(np.flatnonzero(parts == part))))
        held += table.nbytes
        if held > _BUFFER_BYTES or done == len(labels):
            for part, tables in waiting.items():
                with (folder / f"{part:05d}.arrows").open("ab") as file:
                    _append(file, tables)
            waiting, held = {}, 0
        if progress is not None:
            progress(done, len(labels))


def _append(file: BinaryIO, tables: Sequence[pa.Table]) -> None:
    with pa.ipc.new_stream(file, tables[0].schema) as stream:
        for table in tables:
            stream.write_table(table)


def _sorted_parts(path: Path) -> tuple[pa.Table, pa.Array]:
    """Return the rows of a spill file, and their order by image_id, shard and row."""
    tables = []
    with path.open("rb") as file:
        while file.peek(1):
            with pa.ipc.open_stream(file) as stream:
                tables.append(stream.read_all())
    table = pa.concat_tables(tables)
    keys = table.select(["image_id", "shard", "row"])
    order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.schema.names])
    return table, order


def _write_file(
    record: TaskRecord, table: pa.Table, order: pa.Array, folder: Path, name: str
) -> tuple[Path, TableFile]:
    path, schema = folder / name, record.file_schema
    group_rows = int(max(1, min(MAX_GROUP_ROWS, GROUP_BYTES * table.num_rows // max(1, table.nbytes))))
    with LabelWriter(path, schema) as writer:
        for rows in _slices(order, group_rows):
            writer.copy(table.take(rows).cast(schema))
    ids = table["image_id"]
    first, last = ids[order[0].as_py()].as_py(), ids[order[-1].as_py()].as_py()
    return path, TableFile(name=name, size=path.stat().st_size, rows=table.num_rows, first_id=first, last_id=last)


def _slices(order: pa.Array, rows: int) -> Iterator[pa.Array]:
    return (order.slice(first, rows) for first in range(0, len(order), rows))
