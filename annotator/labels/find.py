"""One label row: by its place, or by its image's id, in a few requests.

An image's id leads to its manifest row, for manifest files are few and large; the row to its shard, and that to
the one label file and the one row group that hold it. Label files are many and small: none is searched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from annotator.errors import InvalidInputError, NotFoundError, OutputError
from annotator.footer import chunk_of, find_source, read_footer
from annotator.labels.snapshot import find_places
from annotator.labels.tables import find_record, open_labels
from annotator.manifest import PinnedFile, make_id, read_pins
from annotator.shards import Shard, label_uri
from annotator.storage import ObjectInfo, Storage, normalize


def find_label(output: str, task: str, image_id: str, *, storage: Storage | None = None) -> dict[str, Any]:
    """Return the label row of an image, map included; of the first such image if several share the id.

    On S3 that is about ten requests, whatever the number of label files; a snapshot of `annotator.compact` spares
    the search through the manifest.
    Raises InvalidInputError if no image has the id, OutputError if it is not labelled yet.
    """
    storage = storage or Storage()
    output = normalize(output)
    manifest = read_pins(output, storage)
    order = {file.key: number for number, file in enumerate(manifest.files)}
    # where an image lies never changes, so even a snapshot that is out of date may say it
    places = [(s, row) for s, row in find_places(storage, output, task, image_id) if s.file_key in order]
    if places:
        place = min(places, key=lambda place: (order[place[0].file_key], place[1]))
        return read_label(storage, output, task, *place)
    unsearched = False
    for file in manifest.files:
        row, is_sure = _find_row(storage, file, image_id)
        unsearched |= not is_sure
        if row is not None:
            first = row - row % manifest.shard_rows
            shard = Shard(file.key, first, min(first + manifest.shard_rows, file.rows))
            return read_label(storage, output, task, shard, row)
    if unsearched:
        found = open_labels(output, task, filter=pc.field("image_id") == image_id, storage=storage).head(1)
        if len(found):
            return dict(found.to_pylist()[0])
    raise InvalidInputError(f"{output}: no image has the id {image_id!r}")


def read_label(
    storage: Storage, output: str, task: str, shard: Shard, row: int, columns: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return one label row by its place, or these columns of it; one row group of the label file is read.

    Raises OutputError if it is not there: not labelled yet, left out by the job's `where`, or damaged.
    """
    uri = label_uri(output, task, shard)
    try:
        with storage.open(uri) as source:
            parquet = pq.ParquetFile(source, pre_buffer=True)
            for group in _groups_with(parquet.metadata, "row", row):
                table = parquet.read_row_group(group, columns=None if columns is None else [*columns, "row"])
                at = np.flatnonzero(table["row"].to_numpy() == row)
                if len(at):
                    return dict(table.slice(int(at[0]), 1).to_pylist()[0])
    except NotFoundError:
        find_record(storage, output, task)  # says so if there is no such task
        raise OutputError(f"{uri}: row {row} is not labelled yet; run the job again") from None
    except (pa.ArrowException, OSError) as err:
        raise OutputError(f"{uri}: can't be read ({' '.join(str(err).split())[:100]}); run annotator verify") from None
    raise OutputError(f"{uri}: holds no row {row}; the job's `where` left it out")


def _find_row(storage: Storage, file: PinnedFile, image_id: str) -> tuple[int | None, bool]:
    """Return the first row of a manifest file whose image has this id, and whether None means that there is none.

    An image without an id of its own has one made from its uri; where it has neither, labels alone know it.
    """
    info = ObjectInfo(uri=file.uri, size=file.size, etag=file.etag)
    footer = read_footer(storage, info)
    source = find_source(file.uri, footer.schema)
    first, is_sure = 0, True
    with storage.open(file.uri, info) as opened:
        parquet = pq.ParquetFile(opened, metadata=footer.metadata, pre_buffer=True)
        wanted = set(_groups_with(footer.metadata, source.image_id, image_id))
        for group in range(parquet.num_row_groups):
            if group in wanted:
                table = parquet.read_row_group(group, columns=list(source.columns))
                ids, uris = _text(table, source.image_id), _text(table, source.uri)
                at = pc.index(ids, image_id).as_py()
                if at < 0 and ids.null_count:
                    nameless = pc.if_else(pc.is_null(ids), uris, None).to_pylist()
                    derived = (make_id(uri, None, file.key, 0) if uri else None for uri in nameless)
                    at = next((i for i, made in enumerate(derived) if made == image_id), -1)
                    is_sure &= uris.null_count == 0
                if at >= 0:
                    return first + at, True
            first += footer.metadata.row_group(group).num_rows
    return None, is_sure


def _groups_with(metadata: pq.FileMetaData, column: str | None, value: Any) -> Iterator[int]:
    """Yield the row groups whose statistics do not rule out that a column holds this value."""
    for group in range(metadata.num_row_groups):
        leaves = (i for i in range(metadata.num_columns) if metadata.schema.column(i).path == column)
        found = next((chunk_of(metadata, group, leaf).statistics for leaf in leaves), None)
        if (
            found is None
            or not found.has_min_max
            or not found.has_null_count
            or found.null_count
            or found.min <= value <= found.max
        ):
            yield group


def _text(table: pa.Table, name: str | None) -> pa.ChunkedArray:
    """Return a text column (dotted within a struct), all null where there is none."""
    if name is None:
        return pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    top, _, inner = name.partition(".")
    column = pc.struct_field(table[top], inner) if inner else table[top]
    return column.cast(pa.string())
