"""What every label table has in common: the leading columns, the map column, the file's metadata.

Column order is envelope, the columns kept from the manifest, the task's own. Units, frames and
encodings ride in the fields' metadata; fingerprint, meaning and the Hugging Face feature description
in the schema's, so that a label file explains itself wherever it is copied.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import pyarrow as pa


class Status(str, Enum):
    """Outcome of one manifest row for one task."""

    OK = "ok"
    NO_PERSON = "no_person"  # nobody in the picture; nothing invented
    UNREADABLE = "unreadable"  # fetch or decode failed
    REJECTED = "rejected"  # over a limit of the job
    FAILED = "failed"  # the model failed on this image alone


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""The layout of `datasets.Image`: encoded bytes, or a path to them."""

PLACE = pa.struct([("path", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
"""Where a map's PNG lies that is not in the table: a tar file, its path below the output; first byte; bytes."""

Dense = Literal["parquet", "tar"]
"""Where maps are kept: in the label table, or in tar files that it points to."""

MAP_TYPES: dict[Dense, pa.DataType] = {"parquet": IMAGE, "tar": PLACE}
"""The type of a map's column."""

ROW_GROUP_ROWS = 16
"""Rows a row group: one map opens with a read of at most this many (reference/io.md, part 5)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One manifest row as a worker sees it. `uri` is as written, so it may hold secrets; never store it.

    `data` is the embedded picture, if the manifest embeds them; `kept` the values of `keep_columns`.
    """

    index: int
    image_id: str
    uri: str | None
    data: bytes | None = None
    kept: Mapping[str, Any]


def field(name: str, dtype: pa.DataType, description: str, **meta: str) -> pa.Field:
    """Return a field whose metadata says what it means, in which unit and frame."""
    return pa.field(name, dtype, metadata={"description": description, **meta})


ENVELOPE: tuple[pa.Field, ...] = (
    field("shard", pa.dictionary(pa.int32(), pa.string()), "key of the shard; with `row` the key that joins tasks"),
    field("row", pa.int64(), "row in its manifest file, counted from 0"),
    field("image_id", pa.string(), "the manifest's image_id, else a digest of its uri or bytes"),
    field("uri", pa.string(), "where the image was read, user info and query cut off"),
    field("width", pa.int32(), "after EXIF rotation", unit="pixel"),
    field("height", pa.int32(), "after EXIF rotation", unit="pixel"),
    field("status", pa.string(), "ok | no_person | unreadable | rejected | failed"),
    field("error_class", pa.string(), "stable word to group errors by; null when ok"),
    field(
        "error",
        pa.string(),
        "what was found and what was expected; of an ok row what was tolerated or left out, null if nothing",
    ),
)


def map_fields(name: str, description: str, *, dense: Dense, **meta: str) -> tuple[pa.Field, ...]:
    """Return the fields of a dense map called `name`: the PNG, or where it is kept, and its size in pixels."""
    return (
        field(name, MAP_TYPES[dense], description, **meta),
        field("map_width", pa.int32(), f"width of `{name}`", unit="pixel"),
        field("map_height", pa.int32(), f"height of `{name}`", unit="pixel"),
    )


def dense_of(schema: pa.Schema) -> Dense | None:
    """Return where the maps of these labels are kept, None if they have none."""
    return next((dense for dense, dtype in MAP_TYPES.items() if dtype in schema.types), None)


def label_schema(fields: Iterable[pa.Field], *, kept: Iterable[pa.Field] = (), record: Mapping[str, Any]) -> pa.Schema:
    """Return the schema of a label file: envelope, kept manifest columns, the task's fields.

    `record` is the task's record (`_annotator/tasks/<task>.json`); it is stored in the metadata under
    `annotator`, beside `huggingface`, the feature description that `datasets` reads.
    """
    kept = [pa.field(f.name, f.type) for f in kept]
    schema = pa.schema([_as_in_files(f) for f in (*ENVELOPE, *kept, *fields)])
    features = {f.name: _feature(f.type) for f in schema}
    metadata = {
        "annotator": json.dumps(record, sort_keys=True),
        "huggingface": json.dumps({"info": {"features": features}}),
    }
    return schema.with_metadata(metadata)


def _as_in_files(field: pa.Field) -> pa.Field:
    """Return the field with the values of lists called "element", as Parquet has them; the types stay equal."""
    dtype = field.type
    if pa.types.is_struct(dtype):
        return field.with_type(pa.struct([_as_in_files(child) for child in dtype]))
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype):
        value = _as_in_files(dtype.value_field.with_name("element"))
        if pa.types.is_fixed_size_list(dtype):
            return field.with_type(pa.list_(value, dtype.list_size))
        return field.with_type(pa.large_list(value) if pa.types.is_large_list(dtype) else pa.list_(value))
    return field


def _feature(dtype: pa.DataType) -> Any:
    """Return the `datasets` feature of an Arrow type, in its JSON form."""
    if dtype == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_struct(dtype):
        return {f.name: _feature(f.type) for f in dtype}
    if pa.types.is_fixed_size_list(dtype):
        return {"feature": _feature(dtype.value_type), "length": dtype.list_size, "_type": "List"}
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return {"feature": _feature(dtype.value_type), "_type": "List"}
    value = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    names = {"float": "float32", "double": "float64", "halffloat": "float16"}
    return {"dtype": names.get(str(value), str(value)), "_type": "Value"}
