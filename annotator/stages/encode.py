"""Encode: label rows into the spool, as the very Parquet file that the commit then publishes.

Why the label file itself is the spool (2026-11): rows leave the worker's window in order, so they can be
written row group by row group; memory holds one row group a task whatever the size of the shard, and
nothing is copied twice. Where maps go into a tar file, what is left of the rows is copied once more, for a tar file
has its name when it is finished (tars.py).
"""

from __future__ import annotations

import errno
import fcntl
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from annotator.envelope import IMAGE, PLACE, ROW_GROUP_ROWS
from annotator.errors import StorageError
from annotator.shards import Shard
from annotator.tars import TarWriter, member_name, tar_path

MIN_FREE_BYTES = 64 * 2**20
"""Free space under which a spool file is not started: one large label file may be as big."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spooled:
    """A finished label file, and the tar file that its rows name, at this path below the output, if they have maps."""

    label: Path
    tar: Path | None = None
    tar_path: str = ""

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.label, self.tar) if path is not None)


class LabelWriter:
    """Writes one task's label file of one shard into the spool; use as a context manager.

    Rows are dicts of column values in row order. Memory holds at most ROW_GROUP_ROWS of them.
    Raises StorageError when the spool's disk is full or can't be written.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.rows = 0
        self._schema = schema
        self._pending: list[Mapping[str, Any]] = []
        maps = {f"{f.name}.{child.name}" for f in schema if f.type == IMAGE for child in f.type}
        leaves = [leaf for f in schema for leaf in _leaves(f.name, f.type)]
        scalars = [leaf for leaf in leaves if leaf not in maps]
        with _spooling(path):
            free = shutil.disk_usage(path.parent).free
            if free < MIN_FREE_BYTES:
                raise OSError(errno.ENOSPC, f"{free} bytes free, {MIN_FREE_BYTES} wanted")
            self._writer = pq.ParquetWriter(
                path,
                schema,
                # PNG bytes are compressed already, and their statistics would repeat them (io.md part 5)
                compression={leaf: "NONE" if leaf in maps else "ZSTD" for leaf in leaves},
                use_dictionary=scalars,
                write_statistics=scalars,
                write_page_index=True,
                write_page_checksum=True,
            )

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one label row."""
        self._pending.append(row)
        self.rows += 1
        if len(self._pending) == ROW_GROUP_ROWS:
            self._flush()

    def copy(self, rows: pa.Table) -> None:
        """Add rows of another label file, as one row group; not beside `append`."""
        with _spooling(self.path):
            self._writer.write_table(rows.unify_dictionaries().combine_chunks())
        self.rows += rows.num_rows

    def _flush(self) -> None:
        if self._pending:
            table = pa.Table.from_pylist(self._pending, schema=self._schema)
            with _spooling(self.path):
                self._writer.write_table(table)
            self._pending = []

    def __enter__(self) -> LabelWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        with _spooling(self.path):
            self._writer.close()

    @property
    def spooled(self) -> Spooled:
        """What was written, once it is closed."""
        return Spooled(label=self.path)


class TarLabelWriter:
    """Writes a label file and beside it a tar file that its maps go into; use as a context manager, as LabelWriter."""

    def __init__(self, path: Path, schema: pa.Schema, task: str, shard: Shard) -> None:
        self.path = path
        self._schema, self._task, self._shard = schema, task, shard
        self._maps = [f.name for f in schema if f.type == PLACE]
        self._draft = LabelWriter(path.with_suffix(".draft"), schema)
        self._tar: TarWriter | None = None  # until a row has a map
        self._tar_path = ""

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one label row, its map as bytes."""
        stored = {name: self._store(row["row"], row[name]["bytes"]) for name in self._maps if row.get(name)}
        self._draft.append({**row, **stored})

    def _store(self, row: int, data: bytes) -> dict[str, Any]:
        with _spooling(self.path):
            if self._tar is None:
                self._tar = TarWriter(self.path.with_suffix(".tar"))
            offset, size = self._tar.add(member_name(self._task, self._shard.file_key, row), data)
        return {"path": None, "offset": offset, "size": size}

    @property
    def spooled(self) -> Spooled:
        """What was written, once it is closed."""
        tar = self._tar.path if self._tar is not None else None
        return Spooled(label=self.path, tar=tar, tar_path=self._tar_path)

    def __enter__(self) -> TarLabelWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._draft.__exit__(kind, *error)
        if self._tar is not None:
            with _spooling(self.path):
                self._tar_path = tar_path(self._task, self._shard, self._tar.close())
        if kind is None:
            self._finish()

    def _finish(self) -> None:
        """Write the label file: the draft's row groups with the path of the tar file in them."""
        with pq.ParquetFile(self._draft.path) as draft, LabelWriter(self.path, self._schema) as writer:
            for group in range(draft.num_row_groups):
                rows = draft.read_row_group(group, use_threads=False)
                for name in self._maps:
                    places = rows[name].combine_chunks()
                    paths = pa.array([self._tar_path] * len(places), pa.string())
                    values = [paths, places.field("offset"), places.field("size")]
                    filled = pa.StructArray.from_arrays(values, fields=list(PLACE), mask=places.is_null())
                    at = rows.schema.get_field_index(name)
                    rows = rows.set_column(at, rows.schema.field(at), filled)
                writer.copy(rows)


class LabelFiles:
    """A label file a task of one shard, in the spool, and what they hold: rows by status and by error class.

    Where a task keeps its maps in tar files, its tar file is there as well.
    """

    def __init__(self, folder: Path, shard: Shard, schemas: Mapping[str, pa.Schema]) -> None:
        self.statuses: dict[str, Counter[str]] = {name: Counter() for name in schemas}
        self.errors: dict[str, Counter[str]] = {name: Counter() for name in schemas}
        self._folder, self._shard, self._schemas = folder, shard, schemas
        self._writers: dict[str, LabelWriter | TarLabelWriter] = {}
        self._stack = ExitStack()

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one label row to a task's file."""
        self._writers[name].append(row)
        self.statuses[name][row["status"]] += 1
        self.errors[name].update([row["error_class"]] if row["error_class"] else [])

    @property
    def num_bytes(self) -> int:
        """Bytes of all files, once they are closed."""
        return sum(writer.spooled.num_bytes for writer in self._writers.values())

    def spooled(self, name: str) -> Spooled:
        """Return what was written for a task, once it is closed."""
        return self._writers[name].spooled

    def __enter__(self) -> LabelFiles:
        with ExitStack() as stack:
            for name in self._schemas:
                self._writers[name] = writer = self._open(name)
                stack.enter_context(writer)
            self._stack = stack.pop_all()
        return self

    def _open(self, name: str) -> LabelWriter | TarLabelWriter:
        path, schema = self._folder / f"{name}.parquet", self._schemas[name]
        return TarLabelWriter(path, schema, name, self._shard) if PLACE in schema.types else LabelWriter(path, schema)

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


class Spool:
    """A folder of this process's own for files that nobody needs after it, label files until they are committed.

    Folders that a killed process left behind are removed when the next one opens: a living owner holds
    a lock on its folder, a dead one can't.
    """

    def __init__(self, folder: str | None = None, *, prefix: str = "annotator-spool-") -> None:
        root = Path(folder or tempfile.gettempdir())
        with _spooling(root):
            root.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(root, prefix)
            self.path, self._lock = _claim_folder(root, prefix)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Yield a folder for one shard; it is gone afterwards, committed or not."""
        with _spooling(self.path):
            path = Path(tempfile.mkdtemp(dir=self.path))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def _claim_folder(root: Path, prefix: str) -> tuple[Path, TextIO]:
    """Return a new folder and its open, locked lock file."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        lock = (path / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (path / "lock").exists():  # else another process took it for abandoned before it was locked
            return path, lock
        lock.close()


def _remove_abandoned(root: Path, prefix: str) -> None:
    for path in root.glob(f"{prefix}*"):
        try:
            with (path / "lock").open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except OSError:  # alive, another user's, or gone meanwhile: not ours to remove
            continue


def _leaves(name: str, dtype: pa.DataType) -> Iterator[str]:
    """Yield the Parquet column paths under an Arrow column."""
    if pa.types.is_struct(dtype):
        for child in dtype:
            yield from _leaves(f"{name}.{child.name}", child.type)
    elif pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype):
        yield from _leaves(f"{name}.list.element", dtype.value_type)
    else:
        yield name


@contextmanager
def _spooling(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        full = err.errno == errno.ENOSPC
        hint = "free some space or set spool_dir to a larger disk" if full else "set spool_dir to a folder we may write"
        folder = path if path.is_dir() else path.parent
        raise StorageError(f"spool {folder}: {'disk full' if full else err}; {hint}") from err
