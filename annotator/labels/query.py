"""SQL over an output: one view a task, `manifest`, and `persons` with a row a person; DuckDB does the work.

    select status, count(*) from seg group by status
    select seg.uri from seg join pose using (shard, row) where seg.confidence > 0.9 and pose.people_found = 1
    select image_id, nose.x, nose.y from persons where nose.score > 0.5

Why label tables go through Arrow datasets (2026-11): DuckDB hands them the columns and the filters on integers and
text, so that maps are read only where a query names them, at a request or two a label file. Its own reader, by way
of fsspec, reads as little, but asks for each file's size eight times; the few manifest files go that way, as row
numbers come from nowhere else.

What SQL may do: read this output and nothing else. Access to files, networks and extensions is switched off and
locked before the query runs. Who runs the command may read files anyway; text that was pasted from elsewhere may not.
"""

from __future__ import annotations

import base64
import csv
import json
import math
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import InvalidInputError, OutputError, redact
from annotator.fingerprint import TaskRecord
from annotator.labels.tables import find_records, open_labels
from annotator.manifest import read_pins
from annotator.storage import Storage, is_local, normalize

if TYPE_CHECKING:
    import duckdb

Format = Literal["parquet", "csv", "json"]

_ROWS_AT_ONCE = 10_000

_SAFE = {
    ("uri", "VARCHAR"): "_redact(m.uri) as uri",
    ("image", "STRUCT(bytes BLOB, path VARCHAR)"): (
        "struct_pack(bytes := m.image.bytes, path := _redact(m.image.path)) as image"
    ),
}
"""Columns of a manifest, by name and type, that may hold secrets; without them."""


def connect(output: str, *, storage: Storage | None = None) -> duckdb.DuckDBPyConnection:
    """Return a DuckDB connection, in memory, that has a view a task, `manifest` and `persons`; it reads nothing else.

    `manifest` holds every row of the pinned files, with `shard` and `row` to join it by, secrets cut from its uris.
    `persons` is there if the output has pose or person labels: one row a person with `person` (its place in
    `people`), box, score, and for pose a column a keypoint: `nose.x`, `nose.y`, `nose.score`, null where it is missing.
    Raises OutputError if the output holds no labels, InvalidInputError if DuckDB is not installed.
    """
    try:
        import duckdb
    except ImportError:
        raise InvalidInputError("queries need DuckDB; install annotator[query]") from None
    storage = storage or Storage()
    output = normalize(output)
    records = find_records(storage, output)
    connection = duckdb.connect()
    for task in records:
        connection.register(task, open_labels(output, task, storage=storage))
    _add_manifest(connection, storage, output)
    people = records.get("pose") or records.get("person")
    if people is not None:
        connection.execute(_persons_view(people))
    connection.execute("set python_enable_replacements = false; set enable_external_access = false")
    connection.execute("set lock_configuration = true")
    return connection


def query(output: str, sql: str, *, storage: Storage | None = None) -> pa.Table:
    """Return what a query over an output's tables gives; `connect` says which there are.

    Raises InvalidInputError for SQL that DuckDB does not take, and as `connect`.
    """
    with _running(output, sql, storage) as reader:
        return reader.read_all()


def save_query(
    output: str, sql: str, path: str | Path, *, format: Format | None = None, storage: Storage | None = None
) -> int:
    """Write what a query gives to a local file, as a stream, and return the number of rows.

    `format` is by default the path's suffix. CSV has nested values as JSON; JSON is one array of objects; both have
    bytes in base 64. The file is there whole or not at all.
    """
    path = Path(path)
    format = format or find_format(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with _running(output, sql, storage) as reader:
            path.parent.mkdir(parents=True, exist_ok=True)
            count = _WRITERS[format](reader, temporary)
        os.replace(temporary, path)
        return count
    except OSError as err:
        raise OutputError(f"{path}: can't be written ({err.strerror}); name another file") from None
    finally:
        temporary.unlink(missing_ok=True)


def find_format(path: Path) -> Format:
    """Return the format that a file's name asks for. Raises InvalidInputError for an unknown suffix."""
    for name in get_args(Format):
        if path.suffix.lower() == f".{name}":
            return name  # type: ignore[no-any-return]
    raise InvalidInputError(f"{path}: unknown suffix; expected {', '.join(f'.{n}' for n in get_args(Format))}")


@contextmanager
def _running(output: str, sql: str, storage: Storage | None) -> Iterator[pa.RecordBatchReader]:
    """Run a query and yield its rows as a stream."""
    with connect(output, storage=storage) as connection:
        import duckdb

        try:
            found = [statement.type for statement in connection.extract_statements(sql)]
            if found != [duckdb.StatementType.SELECT]:
                kinds = ", ".join(kind.name for kind in found) or "nothing"
                raise InvalidInputError(f"SQL: expected one SELECT, found {kinds}")
            reader = connection.sql(sql).to_arrow_reader(_ROWS_AT_ONCE)
            twice = [name for name, times in Counter(reader.schema.names).items() if times > 1]
            if twice:
                raise InvalidInputError(f"SQL: several columns are called {', '.join(twice)}; rename them with `as`")
            yield reader
        except duckdb.Error as err:
            raise InvalidInputError(f"SQL: {' '.join(redact(str(err)).split())}") from None


def _add_manifest(connection: duckdb.DuckDBPyConnection, storage: Storage, output: str) -> None:
    """Add the view `manifest`: the pinned files' columns after `shard` and `row`."""
    manifest = read_pins(output, storage)
    uris = [file.uri for file in manifest.files]
    if not is_local(uris[0]):
        filesystem, _ = storage.arrow(uris[0])
        connection.register_filesystem(filesystem.handler.fs)
    connection.execute("set allowed_paths = $1", [uris])
    files = {"uri": uris, "key": [f.key for f in manifest.files], "rows": [f.rows for f in manifest.files]}
    connection.register("_manifest_files", pa.table(files))
    # the type's enum has moved between DuckDB's modules; its name has not
    connection.create_function("_redact", _redact, ["varchar"], "varchar", type="arrow")  # type: ignore[call-overload]
    listed = ", ".join(map(_quoted, uris))
    source = f"read_parquet([{listed}], union_by_name = true, file_row_number = true, filename = '_file')"
    described = connection.execute(f"describe select * from {source}").fetchall()
    # `shard` and `row` say where a row lies, whatever the manifest has under these names
    types = {name: kind for name, kind, *_ in described if name not in ("shard", "row", "file_row_number", "_file")}
    columns = [_SAFE.get((name, kind), f"m.{_identifier(name)}") for name, kind in types.items()]
    first = f"m.file_row_number // {manifest.shard_rows} * {manifest.shard_rows}"
    end = f"least({first} + {manifest.shard_rows}, f.rows)"
    shard = f"f.key || '/' || format('{{:012d}}-{{:012d}}', {first}, {end}) as shard"
    connection.execute(
        f"create view manifest as select {', '.join([shard, 'm.file_row_number as row', *columns])} "
        f"from {source} m join _manifest_files f on m._file = f.uri"
    )


def _redact(texts: pa.ChunkedArray) -> pa.Array:
    return pa.array([None if text is None else redact(text) for text in texts.to_pylist()], pa.string())


def _persons_view(record: TaskRecord) -> str:
    """Return the SQL of the view `persons`: a row a person, a column a keypoint where the task has them."""
    place = ", ".join(f"p.bbox_xyxy[{i}] as {name}" for i, name in enumerate(("x1", "y1", "x2", "y2"), start=1))
    columns = f"shard, row, image_id, uri, width, height, person, {place}, p.bbox_score as bbox_score"
    if "keypoints" in record.meaning:
        points = (
            f"case when p.keypoint_scores[{k}] > 0 then {{'x': p.keypoints[{k}][1], 'y': p.keypoints[{k}][2], "
            f"'score': p.keypoint_scores[{k}]}} end as {_identifier(name)}"
            for k, name in enumerate(record.meaning["keypoints"], start=1)
        )
        columns = f"{columns}, p.whole_frame as whole_frame, p.error as error, {', '.join(points)}"
    people = "unnest(people) as p, generate_subscripts(people, 1) - 1 as person"
    return f"create view persons as select {columns} from (select *, {people} from {record.task})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# -- files ---------------------------------------------------------------------------------------


def _write_parquet(reader: pa.RecordBatchReader, path: Path) -> int:
    count = 0
    with pq.ParquetWriter(path, reader.schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def _write_csv(reader: pa.RecordBatchReader, path: Path) -> int:
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(reader.schema.names)
        for row in _plain_rows(reader):
            writer.writerow([json.dumps(v) if isinstance(v, (dict, list)) else v for v in row.values()])
            count += 1
    return count


def _write_json(reader: pa.RecordBatchReader, path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, row in enumerate(_plain_rows(reader), start=1):
            file.write(("[\n" if count == 1 else ",\n") + json.dumps(row))
        file.write("[]\n" if not count else "\n]\n")
    return count


_WRITERS = {"parquet": _write_parquet, "csv": _write_csv, "json": _write_json}


def _plain_rows(reader: pa.RecordBatchReader) -> Iterator[dict[str, Any]]:
    for batch in reader:
        for row in batch.to_pylist():
            yield json_value(row)


def json_value(value: Any) -> Any:
    """Return a value as JSON has it: bytes in base 64, dates as text, null for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(name): json_value(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(v) for v in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
