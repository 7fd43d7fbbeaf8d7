"""Mend: a label file written again with some of its bad rows made anew, every other row as it was.

Rows are copied as Arrow values, row group by row group, so that no good row goes through Python; what the pages
hold is compared with their checksums first, for new ones would cover up damage. Memory holds a row group or two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import NotFoundError, StorageError, TransientStorageError
from annotator.fingerprint import TaskRecord, schema_problem
from annotator.labels.bad_rows import bad_rows_of
from annotator.labels.scan import open_checked
from annotator.stages.encode import LabelWriter
from annotator.storage import ObjectInfo, Storage

MAX_TURNS = 20
"""How often a file is merged again because somebody else replaced it meanwhile."""


class UnmendableError(Exception):
    """The label file is damaged, of another job, or gone; it stays as it is."""


def rows_to_mend(storage: Storage, uri: str, errors: frozenset[str]) -> frozenset[int]:
    """Return the rows of a label file whose error class is one of these; none where there is no file."""
    try:
        info = storage.info(uri)
        with _told(uri), open_checked(storage, info) as parquet:
            found = bad_rows_of(parquet, ["row", "error_class"])
    except NotFoundError:
        return frozenset()
    rows = zip(found["row"].to_pylist(), found["error_class"].to_pylist(), strict=True)
    return frozenset(row for row, error in rows if error in errors)


def mend(storage: Storage, uri: str, record: TaskRecord, fresh: Path, *, output: str) -> bool:
    """Put the rows of the label file `fresh` in the place of rows that are bad, atomically; return whether any changed.

    `fresh` has the record's columns, its rows ascend. A row that is good by now stays: another retry was faster.
    Raises UnmendableError, and TransientStorageError when others replace the file all the time.
    """
    merged = fresh.with_suffix(".merged")
    for _ in range(MAX_TURNS):
        try:
            info = storage.info(uri)
            changed = _merge(storage, info, record, fresh, merged)
            if info.version is None:
                raise StorageError(f"{uri}: the server gives no ETag, which a replacement needs")
            if not changed or storage.replace_if(merged, info.version, uri, output=output):
                return changed > 0
        except NotFoundError:
            raise UnmendableError(f"{uri}: is gone; `annotator run` makes it anew") from None
    raise TransientStorageError(f"{uri}: was replaced {MAX_TURNS} times by others; retry again later")


def _merge(storage: Storage, info: ObjectInfo, record: TaskRecord, fresh: Path, merged: Path) -> int:
    """Write the label file as it is now, with fresh rows in the place of bad ones, and return how many differ."""
    changed = 0
    with (
        _told(info.uri),
        open_checked(storage, info) as old,
        pq.ParquetFile(fresh) as new,
        LabelWriter(merged, record.file_schema) as writer,
    ):
        _check(old, info.uri, record)
        candidates = _rows_of(new)
        candidate = next(candidates, None)
        for group in range(old.num_row_groups):
            table = old.read_row_group(group, use_threads=False)
            parts, start = [], 0
            places = zip(table["row"].to_pylist(), table["error_class"].to_pylist(), strict=True)
            for position, (row, error_class) in enumerate(places):
                while candidate is not None and candidate["row"][0].as_py() < row:
                    candidate = next(candidates, None)
                if candidate is None or candidate["row"][0].as_py() != row or error_class is None:
                    continue
                changed += not candidate.equals(table.slice(position, 1))
                parts += [table.slice(start, position - start), candidate]
                start = position + 1
            writer.copy(pa.concat_tables([*parts, table.slice(start)]))
    return changed


def _rows_of(parquet: pq.ParquetFile) -> Iterator[pa.Table]:
    """Yield the rows of a label file as tables of one row."""
    for group in range(parquet.num_row_groups):
        table = parquet.read_row_group(group, use_threads=False)
        yield from (table.slice(position, 1) for position in range(table.num_rows))


def _check(parquet: pq.ParquetFile, uri: str, record: TaskRecord) -> None:
    """Refuse to write with the record's fingerprint what was made with another."""
    header = (parquet.schema_arrow.metadata or {}).get(b"annotator", b"null")
    if json.loads(header) != record.header:
        raise UnmendableError(f"{uri}: carries another record than the task's; `annotator verify` says more")
    if problem := schema_problem(parquet.schema_arrow, record.schema):
        raise UnmendableError(f"{uri}: {problem}; `annotator verify` says more")


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """Turn damage that Parquet or JSON finds into an UnmendableError."""
    try:
        yield
    except (pa.ArrowException, OSError, KeyError, ValueError) as err:
        text = " ".join(str(err).split())[:200]
        raise UnmendableError(f"{uri}: damaged ({text}); `annotator verify` says more") from None
