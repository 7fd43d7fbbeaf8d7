"""Several tasks' labels side by side, one row an image.

Why no join algorithm (2026-11): a shard's label files hold the same rows in the same order for every task, so
joining tasks by (shard, row) is reading files of one name beside each other. Memory holds a few shards' light
columns, or the maps of a few images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from annotator.envelope import MAP_TYPES, ROW_GROUP_ROWS
from annotator.errors import InvalidInputError, OutputError
from annotator.labels.scan import map_bounded
from annotator.labels.tables import bind_error, find_record, find_records
from annotator.shards import Shard, labels_folder, parse_label_uri
from annotator.storage import ObjectInfo, Storage, normalize
from annotator.where import parse_where

SHARED = ("shard", "row", "image_id", "uri", "width", "height")
"""Columns that say the same in every task's table; all others are fields of a struct with the task's name."""

_THREADS = 8

Leaf = tuple[str, ...]
"""A column to read: ("row",) or ("seg", "confidence")."""


def join(
    output: str,
    tasks: Sequence[str] | None = None,
    *,
    columns: Sequence[str] | None = None,
    filter: str | pc.Expression | None = None,
    storage: Storage | None = None,
) -> pa.RecordBatchReader:
    """Return the images that all the tasks have labelled by now, in the order of the manifest, as a stream.

    Its columns are `shard`, `row`, `image_id`, `uri`, `width`, `height`, and a struct a task that holds the rest:
    `load_map(row, "seg")`. `columns` and `filter` name them dotted, as in
    `"seg.confidence > 0.9 and depth.status == 'ok'"`. Without `columns` all are read but the maps; those that are
    named (`"seg.mask"`, or `"seg"` for all of it) are read of the row groups alone in which the filter leaves a row.
    Label files are read as the stream is. `tasks`: by default all that the output has.
    Raises OutputError for a task that the output lacks, InvalidInputError for an unknown column.
    """
    storage = storage or Storage()
    output = normalize(output)
    names = list(tasks or find_records(storage, output))
    schema = joined_schema({task: find_record(storage, output, task).file_schema for task in names})
    condition = parse_where(filter).expression if isinstance(filter, str) else filter
    used = shape_of(schema, [] if condition is None else used_leaves(schema, condition))
    wanted = [leaf for leaf in leaves_of(schema) if not is_map(schema, leaf)]
    if columns is not None:
        wanted = [leaf for name in columns for leaf in leaves_named(schema, name)]
    shape = shape_of(schema, wanted)
    has_maps = any(is_map(schema, leaf) for leaf in wanted)

    def read(files: ShardFiles) -> tuple[np.ndarray, pa.Table | None]:
        """Return which rows of a shard pass, and the rows themselves unless they hold maps."""
        rows = np.arange(files.num_rows())
        if condition is not None:
            rows = files.read(used, rows).append_column("#", pa.array(rows)).filter(condition)["#"].to_numpy()
        return rows, None if has_maps else files.read(shape, rows)

    def batches() -> Iterator[pa.RecordBatch]:
        every = (files for _, files in list_shards(storage, output, names))
        for files, (rows, light) in map_bounded(read, every, threads=_THREADS):
            parts = [light] if light is not None else (files.read(shape, part) for part in by_group(rows))
            for part in parts:
                yield from part.combine_chunks().to_batches()

    return pa.RecordBatchReader.from_batches(shape, batches())


# -- files ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """The label files of one shard, by task; footers are read once."""

    storage: Storage
    infos: Mapping[str, ObjectInfo]
    footers: dict[str, pq.FileMetaData] = field(default_factory=dict)

    def num_rows(self) -> int:
        with self._open(next(iter(self.infos))) as file:
            return int(file.metadata.num_rows)

    def read(self, shape: pa.Schema, rows: np.ndarray) -> pa.Table:
        """Return these rows (positions in the shard, ascending); of row groups that hold none nothing is read."""
        own = [name for name in shape.names if name in SHARED]
        arrays: dict[str, pa.ChunkedArray] = {}
        keys: pa.ChunkedArray | None = None
        for task, info in self.infos.items():
            inner = [child.name for child in shape.field(task).type] if task in shape.names else []
            if not inner and not own:
                continue
            table = self._columns(task, list(dict.fromkeys(["row", *own, *inner])), rows)
            if keys is not None and not keys.equals(table["row"]):
                raise OutputError(f"{info.uri}: its rows are not those of other tasks; run annotator verify")
            keys = table["row"]
            arrays.update((name, table[name]) for name in own)
            if inner:
                arrays[task] = pa.chunked_array([table.select(inner).combine_chunks().to_struct_array()])
            own = []  # the first task has given them
        columns = [_cast(arrays[column.name], column.type) for column in shape]
        return pa.table(columns, schema=shape)

    def _columns(self, task: str, names: Sequence[str], rows: np.ndarray) -> pa.Table:
        with self._open(task) as file:
            counts = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            ends = np.cumsum(counts, dtype=np.int64)
            groups = np.unique(np.searchsorted(ends, rows, side="right"))
            table = file.read_row_groups(groups.tolist(), columns=list(names))
            firsts = np.concatenate([np.arange(ends[g] - counts[g], ends[g]) for g in groups] or [rows])
            return table.take(pa.array(np.searchsorted(firsts, rows)))

    @contextmanager
    def _open(self, task: str) -> Iterator[pq.ParquetFile]:
        info = self.infos[task]
        with self.storage.open(info.uri, info) as source:
            try:
                file = pq.ParquetFile(source, metadata=self.footers.get(task), pre_buffer=True)
                self.footers[task] = file.metadata
                yield file
            except (pa.ArrowException, OSError) as err:
                text = " ".join(str(err).split())[:100]
                raise OutputError(f"{info.uri}: can't be read ({text}); run annotator verify") from None


def list_shards(storage: Storage, output: str, tasks: Sequence[str]) -> Iterator[tuple[Shard, ShardFiles]]:
    """Yield the shards that all tasks have a label file of, in order."""
    found: dict[Shard, dict[str, ObjectInfo]] = {}
    for task in tasks:
        for info in storage.list(labels_folder(output, task)):
            shard = parse_label_uri(output, task, info.uri)
            if shard is not None:
                found.setdefault(shard, {})[task] = info
    for shard in sorted(found):
        if len(found[shard]) == len(tasks):
            yield shard, ShardFiles(storage, found[shard])


def by_group(rows: np.ndarray) -> list[np.ndarray]:
    """Return ascending positions in parts that lie in one row group each."""
    return [part for part in np.split(rows, np.flatnonzero(np.diff(rows // ROW_GROUP_ROWS)) + 1) if len(part)]


def _cast(column: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    return column if column.type == dtype else column.cast(dtype)


# -- columns -------------------------------------------------------------------------------------


def joined_schema(schemas: Mapping[str, pa.Schema]) -> pa.Schema:
    first = next(iter(schemas.values()))
    inner = {task: [f for f in schema if f.name not in SHARED] for task, schema in schemas.items()}
    structs = [pa.field(task, pa.struct(fields)) for task, fields in inner.items()]
    return pa.schema([*(first.field(name) for name in SHARED), *structs])


def leaves_of(schema: pa.Schema) -> list[Leaf]:
    return [leaf for name in schema.names for leaf in leaves_named(schema, name)]


def leaves_named(schema: pa.Schema, name: str) -> list[Leaf]:
    """Return the leaves that a dotted name stands for. Raises InvalidInputError if there are none."""
    top, _, inner = name.partition(".")
    if top in SHARED and not inner:
        return [(top,)]
    children = [child.name for child in schema.field(top).type] if top in schema.names and top not in SHARED else []
    if inner in children:
        return [(top, inner)]
    if children and not inner:
        return [(top, child) for child in children]
    known = (children and [f"{top}.{child}" for child in children]) or schema.names
    raise InvalidInputError(f"no column {name!r}; columns are {', '.join(known)}")


def is_map(schema: pa.Schema, leaf: Leaf) -> bool:
    return len(leaf) == 2 and schema.field(leaf[0]).type.field(leaf[1]).type in MAP_TYPES.values()


def shape_of(schema: pa.Schema, leaves: Sequence[Leaf]) -> pa.Schema:
    """Return the schema with these leaves alone, structs in the order in which they are first named."""
    fields = []
    for top in dict.fromkeys(leaf[0] for leaf in leaves):
        inner = dict.fromkeys(leaf[1] for leaf in leaves if leaf[0] == top and len(leaf) == 2)
        column = schema.field(top)
        fields.append(column.with_type(pa.struct([column.type.field(name) for name in inner])) if inner else column)
    return pa.schema(fields)


def used_leaves(schema: pa.Schema, condition: pc.Expression) -> list[Leaf]:
    """Return the leaves that a filter reads: those without which it has no meaning."""
    problem = bind_error(condition, schema)
    if problem is not None:
        names = ", ".join(".".join(leaf) for leaf in leaves_of(schema))
        raise InvalidInputError(f"filter {condition}: {problem}; columns are {names}")
    leaves = leaves_of(schema)
    without = ((leaf, shape_of(schema, [other for other in leaves if other != leaf])) for leaf in leaves)
    return [leaf for leaf, rest in without if bind_error(condition, rest) is not None]
