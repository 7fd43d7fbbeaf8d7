"""Parquet footers of manifest files: rows, columns, digest; nothing else of a file is read.

A usable manifest has `uri` (text), or `image` (encoded bytes, or the struct of bytes and path that
`datasets.Image` writes); `image_id` (text) is optional, all other columns are free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import ManifestError, NotFoundError
from annotator.storage import ObjectInfo, Storage

_TAIL = 65_536  # bytes read first: most footers fit
_MAGIC = b"PAR1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Footer:
    """What a manifest file says of itself."""

    rows: int
    schema: pa.Schema
    digest: str
    metadata: pq.FileMetaData


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where a manifest file keeps its images: the columns of its uris and of its embedded bytes, dotted."""

    uri: str | None
    data: str | None
    image_id: str | None

    @property
    def columns(self) -> tuple[str, ...]:
        """The light columns."""
        return tuple(name for name in (self.uri, self.image_id) if name is not None)


def read_footer(storage: Storage, info: ObjectInfo) -> Footer:
    """Return a file's footer, read with one or two requests. Raises ManifestError if it is no Parquet file."""
    try:
        with storage.open(info.uri, info) as file:
            tail = min(info.size, _TAIL)
            file.seek(info.size - tail)
            data = file.read(tail)
            length = int.from_bytes(data[-8:-4], "little")
            if len(data) < 12 or data[-4:] != _MAGIC or length + 8 > info.size:
                raise ManifestError(f"{info.uri}: not a Parquet file; a manifest is made by `annotator manifest build`")
            if length + 8 > tail:
                file.seek(info.size - length - 8)
                data = file.read(length + 8)
    except NotFoundError:
        raise ManifestError(f"{info.uri}: no such manifest file") from None
    raw = data[-(length + 8) :]
    try:
        metadata = pq.read_metadata(pa.BufferReader(_MAGIC + raw))
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as err:
        raise ManifestError(f"{info.uri}: its Parquet footer is damaged: {' '.join(str(err).split())[:200]}") from None
    return Footer(rows=metadata.num_rows, schema=schema, digest=hashlib.sha256(raw).hexdigest(), metadata=metadata)


def find_source(uri: str, schema: pa.Schema) -> Source:
    """Return where a manifest file keeps its images. Raises ManifestError if it says so nowhere, or in a wrong type."""
    names = set(schema.names)
    if len(names) < len(schema.names):
        twice = sorted(name for name in names if schema.names.count(name) > 1)
        raise ManifestError(f"{uri}: has columns of the same name: {', '.join(twice)}")
    data = path = None
    if "image" in names:
        data, path = _image_columns(uri, schema.field("image").type)
    elif "bytes" in names and _is_binary(schema.field("bytes").type):
        data = "bytes"
    for name in names & {"uri", "image_id"}:
        if not _is_text(schema.field(name).type):
            raise ManifestError(f"{uri}: column {name!r} is {schema.field(name).type}; expected string")
    if "uri" in names:
        path = "uri"
    if path is None and data is None:
        raise ManifestError(
            f"{uri}: no usable column among {', '.join(schema.names[:20]) or 'none'}; expected `uri` (string), "
            "`image` (struct<bytes: binary, path: string>) or `bytes` (binary)"
        )
    return Source(uri=path, data=data, image_id="image_id" if "image_id" in names else None)


def check_columns(uri: str, schema: pa.Schema, names: Iterable[str], option: str) -> None:
    """Raise ManifestError if the file lacks a column that an option of the job names."""
    missing = [name for name in names if name not in schema.names]
    if missing:
        raise ManifestError(
            f"{uri}: {option} names {', '.join(map(repr, missing))}; the file has {', '.join(schema.names[:20])}"
        )


def _image_columns(uri: str, dtype: pa.DataType) -> tuple[str | None, str | None]:
    if _is_binary(dtype):
        return "image", None
    if pa.types.is_struct(dtype):
        fields = {field.name: field.type for field in dtype}
        data = "image.bytes" if _is_binary(fields.get("bytes")) else None
        path = "image.path" if _is_text(fields.get("path")) else None
        if data or path:
            return data, path
    raise ManifestError(f"{uri}: column 'image' is {dtype}; expected binary or struct<bytes: binary, path: string>")


def _is_binary(dtype: pa.DataType | None) -> bool:
    return dtype is not None and (pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype))


def _is_text(dtype: pa.DataType | None) -> bool:
    if dtype is None:
        return False
    if pa.types.is_dictionary(dtype):
        return _is_text(dtype.value_type)
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype))


def chunk_of(metadata: pq.FileMetaData, group: int, leaf: int) -> pq.ColumnChunkMetaData:
    """Return what a footer says of one column in one row group.

    Raises ArrowInvalid where it contradicts itself about the column's type: Arrow aborts the process when the
    statistics of such a part are asked for.
    """
    chunk, column = metadata.row_group(group).column(leaf), metadata.schema.column(leaf)
    if chunk.physical_type != column.physical_type:
        raise pa.ArrowInvalid(f"{column.path}: {chunk.physical_type} in row group {group}, not {column.physical_type}")
    return chunk
