"""Rows of a manifest file: light columns by row group, embedded pictures as a stream.

Shards of a file come in a shuffled order, so the light columns of the last row groups are kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from annotator.errors import ManifestError
from annotator.faults import translate
from annotator.footer import Footer, Source
from annotator.storage import ObjectInfo, Storage
from annotator.where import Where

_CACHE_BYTES = 256 * 2**20
_PICTURES_AT_ONCE = 8
_PAGE_BUFFER = 2**20


class _TableCache:
    """The tables used last, up to a number of bytes; safe for threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._tables: OrderedDict[Any, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> pa.Table | None:
        with self._lock:
            if key in self._tables:
                self._tables.move_to_end(key)
            return self._tables.get(key)

    def put(self, key: Any, table: pa.Table) -> None:
        with self._lock:
            if key in self._tables or table.nbytes > self._max_bytes:
                return
            self._tables[key] = table
            self._bytes += table.nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._tables.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        with self._lock:
            self._tables.clear()
            self._bytes = 0


_CACHE = _TableCache(_CACHE_BYTES)


def forget_rows() -> None:
    """Drop the tables that this process remembers."""
    _CACHE.clear()


def light_rows(
    storage: Storage,
    info: ObjectInfo,
    footer: Footer,
    source: Source,
    where: Where | None,
    keep_columns: Sequence[str],
    first: int,
    end: int,
) -> pa.Table:
    """Return rows [first, end) that pass `where`: columns row (int64), uri, image_id, `kept.<name>` for each kept.

    uri and image_id are all null where the file has none.
    """
    needed = dict.fromkeys([*source.columns, *keep_columns, *(where.leaves if where else ())])
    tables = []
    for group, start, count in _groups(footer):
        if start >= end or start + count <= first:
            continue
        table = _read_group(storage, info, footer, group, tuple(needed))
        low, high = max(first, start), min(end, start + count)
        table = table.slice(low - start, high - low)
        rows = pa.array(np.arange(low, high, dtype=np.int64))
        if where is not None:
            mask = _passing(table, where)
            table, rows = table.take(mask), rows.take(mask)
        tables.append(_shape(table, rows, source, keep_columns))
    if not tables:
        empty = footer.schema.empty_table().select([name.split(".")[0] for name in needed])
        return _shape(empty, pa.array([], pa.int64()), source, keep_columns)
    return pa.concat_tables(tables)


def where_rows(storage: Storage, info: ObjectInfo, footer: Footer, where: Where) -> npt.NDArray[np.int64]:
    """Return the rows of a file that pass `where`, ascending."""
    passing = [np.empty(0, np.int64)]
    start = 0
    with _open(storage, info, footer) as file:
        for batch in file.iter_batches(batch_size=65_536, columns=list(where.leaves), use_threads=False):
            passing.append(_passing(pa.Table.from_batches([batch]), where).to_numpy() + start)
            start += batch.num_rows
    return np.concatenate(passing)


def text_batches(storage: Storage, info: ObjectInfo, footer: Footer, name: str) -> Iterator[pa.Array]:
    """Yield a text column (dotted within a struct) of a whole file, in batches."""
    with _open(storage, info, footer) as file:
        for batch in file.iter_batches(batch_size=65_536, columns=[name], use_threads=False):
            yield _text(pa.Table.from_batches([batch]), name).combine_chunks()


def pictures(
    storage: Storage, info: ObjectInfo, footer: Footer, source: Source, rows: Sequence[int]
) -> Iterator[bytes | None]:
    """Yield the embedded picture of each row (ascending), None where it is null; a few are held at a time."""
    wanted = iter(rows)
    row = next(wanted, None)
    if row is None or source.data is None:
        return
    with _open(storage, info, footer) as file:
        for group, start, count in _groups(footer):
            if row is None or row >= start + count:
                continue
            at = start
            batches = file.iter_batches(
                batch_size=_PICTURES_AT_ONCE, row_groups=[group], columns=[source.data], use_threads=False
            )
            for batch in batches:
                column = batch.column(0)
                column = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
                while row is not None and row < at + batch.num_rows:
                    yield column[row - at].as_py()
                    row = next(wanted, None)
                at += batch.num_rows
                if row is None:
                    return
                if row >= start + count:
                    break


def _groups(footer: Footer) -> Iterator[tuple[int, int, int]]:
    """Yield (row group, its first row, its rows)."""
    start = 0
    for group in range(footer.metadata.num_row_groups):
        count = footer.metadata.row_group(group).num_rows
        yield group, start, count
        start += count


def _read_group(storage: Storage, info: ObjectInfo, footer: Footer, group: int, columns: tuple[str, ...]) -> pa.Table:
    key = (info.uri, footer.digest, group, columns)
    table = _CACHE.get(key)
    if table is None:
        with _open(storage, info, footer) as file:
            table = file.read_row_group(group, list(columns), use_threads=False)
        _CACHE.put(key, table)
    return table


@contextmanager
def _open(storage: Storage, info: ObjectInfo, footer: Footer) -> Iterator[pq.ParquetFile]:
    """Open a manifest file without reading its footer again; column chunks are streamed, not loaded.

    Damage that Parquet finds becomes a ManifestError.
    """
    with storage.open(info.uri, info) as source:
        try:
            yield pq.ParquetFile(
                source,
                metadata=footer.metadata,
                buffer_size=_PAGE_BUFFER,
                pre_buffer=False,
                page_checksum_verification=True,
            )
        except (pa.ArrowException, OSError) as err:
            if isinstance(err, OSError) and err.errno is not None:  # of the disk, not of Parquet
                raise (translate(err, info.uri) or err) from None
            raise ManifestError(f"{info.uri}: damaged: {' '.join(str(err).split())[:200]}") from None


def _passing(table: pa.Table, where: Where) -> pa.Array:
    """Return the positions in the table of the rows that pass."""
    positions = pa.array(np.arange(table.num_rows, dtype=np.int64))
    return table.append_column("#", positions).filter(where.expression)["#"].combine_chunks()


def _shape(table: pa.Table, rows: pa.Array, source: Source, keep_columns: Sequence[str]) -> pa.Table:
    columns = {"row": rows, "uri": _text(table, source.uri), "image_id": _text(table, source.image_id)}
    columns.update({f"kept.{name}": table[name] for name in keep_columns})
    return pa.table(columns)


def _text(table: pa.Table, name: str | None) -> pa.ChunkedArray:
    if name is None:
        return pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    top, _, inner = name.partition(".")
    column = table[top]
    return (pc.struct_field(column, inner) if inner else column).cast(pa.string())
