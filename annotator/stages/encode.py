"""Encode: label rows into the spool, as the very Parquet file that the commit then publishes.

Why the label file itself is the spool (2026-11): rows leave the worker's window in order, so they can be
written row group by row group; memory holds one row group a task whatever the size of the shard, and
nothing is copied twice.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from annotator.envelope import IMAGE, ROW_GROUP_ROWS
from annotator.errors import StorageError

MIN_FREE_BYTES = 64 * 2**20
"""Free space under which a spool file is not started: one large label file may be as big."""


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


class LabelFiles:
    """A label file a task of one shard, in the spool, and what they hold: rows by status and by error class."""

    def __init__(self, folder: Path, schemas: Mapping[str, pa.Schema]) -> None:
        self.paths = {name: folder / f"{name}.parquet" for name in schemas}
        self.statuses: dict[str, Counter[str]] = {name: Counter() for name in schemas}
        self.errors: dict[str, Counter[str]] = {name: Counter() for name in schemas}
        self._schemas = schemas
        self._stack = ExitStack()

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one label row to a task's file."""
        self._writers[name].append(row)
        self.statuses[name][row["status"]] += 1
        self.errors[name].update([row["error_class"]] if row["error_class"] else [])

    @property
    def num_bytes(self) -> int:
        """Bytes of all files, once they are closed."""
        return sum(path.stat().st_size for path in self.paths.values())

    def __enter__(self) -> LabelFiles:
        with ExitStack() as stack:
            self._writers = {
                name: stack.enter_context(LabelWriter(self.paths[name], schema))
                for name, schema in self._schemas.items()
            }
            self._stack = stack.pop_all()
        return self

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
