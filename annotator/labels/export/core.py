"""Exporting, whatever the format: which images go in, in parts that are written whole, kept, and done again if need be.

    OUT/_export/settings.json        what is exported, created once; a call with other settings is refused
    OUT/_export/parts/<part>.json    one a finished part: what it was made of, and the files that it gave
    OUT/_export/tmp/                 parts on their way

A part is some thousand consecutive rows of one manifest file. It is written below `tmp`, renamed into place, and then
recorded. A second call keeps parts whose label files are still the ones that the record names, and does the rest: it
goes on after a kill, and takes up labels that are new or were mended.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from annotator.errors import InvalidInputError, OutputError
from annotator.fingerprint import TaskRecord
from annotator.labels.join import (
    SHARED,
    Leaf,
    ShardFiles,
    by_group,
    is_map,
    joined_schema,
    leaves_of,
    list_shards,
    shape_of,
    used_leaves,
)
from annotator.labels.tables import bind_error, columns_of, find_record, find_records
from annotator.manifest import Manifest, PinnedFile, read_pins
from annotator.shards import Shard
from annotator.storage import Storage, is_local, normalize
from annotator.tars import with_maps
from annotator.where import parse_where

PART_ROWS = 4096
"""Rows a part, about: its files are hundreds of megabytes with maps, and a kill costs no more than that."""

_THREADS = 4


class _StoppedError(Exception):
    """Ends a part because another one failed."""


Progress = Callable[[int, int], None]
"""Told how many images are done, of how many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What an export did: `images` that it holds now, in `parts`, `kept` of them from an earlier call."""

    out: str
    format: str
    images: int
    parts: int
    kept: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Consecutive label files of one manifest file; `first_id` is the number of its row 0 among all rows."""

    name: str
    file: PinnedFile
    first_id: int
    shards: Sequence[tuple[Shard, ShardFiles]]

    @property
    def images(self) -> int:
        return sum(shard.end - shard.first for shard, _ in self.shards)


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """A finished part: the digest of what it was made of, its files and folders below OUT, and counts."""

    source: str
    products: list[str]
    images: int
    counts: dict[str, dict[str, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """What is exported, and where to: labels of an output, of images that pass `where`, as `format`.

    records    of the tasks whose labels are exported
    filters    of those that only `where` names
    """

    storage: Storage
    output: str
    out: Path
    format: Format
    manifest: Manifest
    records: dict[str, TaskRecord]
    filters: dict[str, TaskRecord]
    where: str | None

    def paths(self, done: Done) -> Iterator[Path]:
        """Yield the files and folders of a part."""
        return (self.out / product for product in done.products)


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How one format is written.

    choose     takes records, returns the tasks that it exports of them by default; InvalidInputError if it can't
    statuses   of rows that go in, every task's; all rows if empty
    maps       whether the maps are needed
    write      writes a part below a folder and returns its files and folders there, from tables with a struct a task
    finish     writes what is made of all parts, which come by name
    """

    name: str
    choose: Callable[[Mapping[str, TaskRecord]], list[str]]
    statuses: tuple[str, ...] = ()
    maps: bool = True
    write: Callable[[Export, Part, Iterator[pa.Table], Path], list[str]]
    finish: Callable[[Export, Mapping[str, Done]], None]


def export(
    output: str,
    out: str | Path,
    format: Format,
    *,
    tasks: Sequence[str] | None,
    where: str | None,
    storage: Storage | None,
    progress: Progress | None,
) -> Exported:
    """Export labels into a local folder; `annotator.labels.export.export` says how."""
    storage, output = storage or Storage(), normalize(output)
    records = find_records(storage, output)
    named = {name: find_record(storage, output, name) for name in tasks or records}
    names = format.choose(named)
    if tasks and set(named) != set(names):
        raise InvalidInputError(f"{format.name} takes labels of {', '.join(names)} alone, not of {', '.join(named)}")
    leaves = () if where is None else parse_where(where).leaves
    more = {leaf.split(".")[0] for leaf in leaves if "." in leaf} & set(records) - set(names)
    job = Export(
        storage=storage,
        output=output,
        out=_check_out(output, out),
        format=format,
        manifest=read_pins(output, storage),
        records={name: records[name] for name in names},
        filters={name: records[name] for name in sorted(more)},
        where=where,
    )
    choose = _Chooser.make(job)
    with _claimed(job):
        parts = list(_parts(job))
        return _export_parts(job, parts, choose, progress)


def _export_parts(job: Export, parts: list[Part], choose: _Chooser, progress: Progress | None) -> Exported:
    total, so_far, kept = sum(part.images for part in parts), 0, 0
    finished: dict[str, Done] = {}
    failures: list[BaseException] = []  # once it holds one, other parts stop at their next table

    def work(part: Part) -> tuple[Done, bool]:
        try:
            return _export_part(job, part, choose, failures)
        except BaseException as err:
            failures.append(err)
            raise

    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            for part, future in [(part, pool.submit(work, part)) for part in parts]:
                finished[part.name], was_kept = future.result()
                kept += was_kept
                so_far += part.images
                if progress is not None:
                    progress(so_far, total)
        except BaseException as err:
            failures.append(err)
            pool.shutdown(cancel_futures=True)
            raise failures[0] from None
    job.format.finish(job, finished)
    images = sum(done.images for done in finished.values())
    return Exported(out=str(job.out), format=job.format.name, images=images, parts=len(parts), kept=kept)


# -- the folder ----------------------------------------------------------------------------------


def write_whole(path: Path, data: bytes) -> None:
    """Write a file; readers see the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_out(output: str, out: str | Path) -> Path:
    folder = normalize(str(out))
    if not is_local(folder):
        raise InvalidInputError(f"{folder}: exports go to a local folder; copy it to S3 afterwards")
    if folder == output or folder.startswith(output + "/"):
        raise InvalidInputError(f"{folder}: lies in the output {output}; name a folder outside of it")
    return Path(folder)


@contextmanager
def _claimed(job: Export) -> Iterator[None]:
    """Hold the folder for one export at a time. Raises OutputError if it holds anything else."""
    own = job.out / "_export"
    try:
        if not own.exists() and job.out.exists() and next(job.out.iterdir(), None):
            raise OutputError(f"{job.out}: is not empty and holds no export; name an empty or new folder")
        (own / "parts").mkdir(parents=True, exist_ok=True)
        with (own / "lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OutputError(f"{job.out}: another export is writing there; wait for it") from None
            _compare_settings(job, own / "settings.json")
            shutil.rmtree(own / "tmp", ignore_errors=True)
            (own / "tmp").mkdir()
            yield
            (own / "tmp").rmdir()
    except OSError as err:
        raise OutputError(
            f"{err.filename or job.out}: can't be written ({err.strerror}); name another folder"
        ) from None


def _compare_settings(job: Export, path: Path) -> None:
    tasks = {name: record.fingerprint_digest for name, record in job.records.items()}
    wanted = {"format": job.format.name, "output": job.output, "tasks": tasks, "where": job.where}
    if not path.exists():
        write_whole(path, (json.dumps(wanted, indent=1) + "\n").encode())
    pinned = json.loads(path.read_bytes())
    for key, value in wanted.items():
        if pinned.get(key) != value:
            shown = [list(v) if isinstance(v, dict) else v for v in (pinned.get(key), value)]
            raise OutputError(f"{job.out}: holds an export with {key} {shown[0]}, not {shown[1]}; name another folder")


# -- parts ---------------------------------------------------------------------------------------


def _parts(job: Export) -> Iterator[Part]:
    """Yield the parts of the shards that all tasks have labelled by now, in order."""
    offsets = np.cumsum([0, *(file.rows for file in job.manifest.files)])
    files = {f.key: (f, int(first)) for f, first in zip(job.manifest.files, offsets, strict=False)}
    rows = -(-PART_ROWS // job.manifest.shard_rows) * job.manifest.shard_rows
    every = list_shards(job.storage, job.output, [*job.records, *job.filters])
    shards = (found for found in every if found[0].file_key in files)
    for (key, number), group in groupby(shards, key=lambda found: (found[0].file_key, found[0].first // rows)):
        file, first = files[key]
        yield Part(name=f"{key}-{number * rows:012d}", file=file, first_id=first + 1, shards=tuple(group))


def _export_part(job: Export, part: Part, choose: _Chooser, failures: list[BaseException]) -> tuple[Done, bool]:
    """Return the part's record, and whether an earlier call had done it."""
    record = job.out / "_export" / "parts" / f"{part.name}.json"
    source = _source(part)
    old = Done(**json.loads(record.read_bytes())) if record.exists() else None
    if old is not None and old.source == source and all(path.exists() for path in job.paths(old)):
        return old, True
    counts: dict[str, dict[str, int]] = {name: {} for name in job.records}
    images = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal images
        for table in choose.tables(part, maps=job.format.maps):
            if failures:
                raise _StoppedError
            images += table.num_rows
            for name, count in counts.items():
                for found in pc.value_counts(pc.struct_field(table[name], "status")).to_pylist():
                    count[found["values"]] = count.get(found["values"], 0) + found["counts"]
            yield table

    folder = job.out / "_export" / "tmp" / part.name
    folder.mkdir()
    products = job.format.write(job, part, tables(), folder)
    for path in job.paths(old) if old is not None else ():
        _remove(path)
    for product in products:
        target = job.out / product
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove(target)
        os.replace(folder / product, target)
    shutil.rmtree(folder)
    done = Done(source=source, products=products, images=images, counts=counts)
    write_whole(record, json.dumps(asdict(done)).encode())
    return done, False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _source(part: Part) -> str:
    """Return a digest of all that a part is made of."""
    digest = hashlib.sha256(f"{part.first_id} {PART_ROWS}".encode())
    for _, files in part.shards:
        for task, info in files.infos.items():
            digest.update(f"\n{task} {info.uri} {info.version}".encode())
    return digest.hexdigest()


# -- rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chooser:
    """Which rows go in, and which columns of them."""

    job: Export
    schema: pa.Schema
    conditions: Sequence[tuple[pc.Expression, pa.Schema, str | None]]

    @classmethod
    def make(cls, job: Export) -> _Chooser:
        schemas = {name: record.file_schema for name, record in (job.records | job.filters).items()}
        schema = joined_schema(schemas)
        found = [] if job.where is None else [_bind(schema, job.records, parse_where(job.where).expression)]
        for name in job.records if job.format.statuses else ():
            leaf = (name, "status")
            found.append((pc.field(*leaf).isin(list(job.format.statuses)), shape_of(schema, [leaf]), None))
        return cls(job=job, schema=joined_schema({name: schemas[name] for name in job.records}), conditions=found)

    def tables(self, part: Part, *, maps: bool) -> Iterator[pa.Table]:
        """Yield the rows of a part that go in: with maps, as bytes, a row group at a time, else a label file."""
        leaves = [leaf for leaf in leaves_of(self.schema) if maps or not is_map(self.schema, leaf)]
        shape = shape_of(self.schema, leaves)
        for _, files in part.shards:
            rows = self._rows(files)
            for some in by_group(rows) if maps else [rows]:
                if len(some):
                    table = files.read(shape, some)
                    yield with_maps(self.job.storage, self.job.output, table) if maps else table

    def _rows(self, files: ShardFiles) -> np.ndarray:
        rows = np.arange(files.num_rows())
        for condition, shape, task in self.conditions:
            table = files.read(shape, rows)
            if task is not None:
                table = flatten(table, task)
            rows = table.append_column("#", pa.array(rows)).filter(condition)["#"].to_numpy()
        return rows


def _bind(
    schema: pa.Schema, records: Mapping[str, TaskRecord], condition: pc.Expression
) -> tuple[pc.Expression, pa.Schema, str | None]:
    """Return a filter, the columns that it reads, and the task whose own columns these are; None if they are dotted."""
    for name, record in records.items():
        if bind_error(condition, record.file_schema) is None:
            used: list[Leaf] = [
                (column,) if column in SHARED else (name, column)
                for column in columns_of(condition, record.file_schema)
            ]
            return condition, shape_of(schema, used), name
    return condition, shape_of(schema, used_leaves(schema, condition)), None


def flatten(table: pa.Table, task: str) -> pa.Table:
    """Return the shared columns and those of one task, without a struct."""
    own = [name for name in table.schema.names if name in SHARED]
    flat = table.select(own)
    if task in table.schema.names:
        struct = table[task].combine_chunks()
        for child in struct.type:
            flat = flat.append_column(child, struct.field(child.name))
    return flat
