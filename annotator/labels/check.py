"""One label file, judged: its bytes, what it says of itself, its rows; with `deep` every label in it too."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from annotator.envelope import MAP_TYPES, PLACE, ROW_GROUP_ROWS, Status, dense_of
from annotator.errors import NotFoundError, TransientStorageError
from annotator.fingerprint import schema_problem
from annotator.labels.check_tars import TarCheck
from annotator.labels.scan import WHOLE_BYTES, LabelFile, open_checked
from annotator.storage import Storage
from annotator.tasks import Flaw, load_task

_MAGIC = b"PAR1"


@dataclass(slots=True)
class Result:
    """What a label file holds, and what is wrong with it as (kind, message). `rows` are empty if it can't be read.

    `tars` are the tar files that its rows name, by path below the output.
    """

    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, str]] = field(default_factory=list)
    tars: frozenset[str] = frozenset()


def check_file(storage: Storage, file: LabelFile, *, deep: bool = False) -> Result:
    """Return what a label file holds and everything that is wrong with it; StorageError if it is out of reach."""
    try:
        return _check(storage, file, deep=deep)
    except TransientStorageError:
        fresh = storage.info(file.info.uri)
        if fresh.version == file.info.version:
            raise
        return _check(storage, replace(file, info=fresh), deep=deep)  # `annotator retry` replaced it meanwhile


def _check(storage: Storage, file: LabelFile, *, deep: bool) -> Result:
    result = Result()
    try:
        with open_checked(storage, file.info) as parquet:
            if _check_footer(parquet, file, result):
                tars = TarCheck(storage, file)
                _check_rows(parquet, file, tars, result, deep=deep)
                result.problems.extend(tars.problems())
                result.tars = frozenset(tars.named)
    except (pa.ArrowException, OSError, ValueError, NotFoundError) as err:  # ValueError: names that are not UTF-8
        text = " ".join(str(err).split())
        kind = "checksum" if "CRC checksum" in text else "unreadable"
        result.problems.append((kind, f"{text[:200]}; restore the file, or delete it and run the job again"))
    return result


def _check_footer(parquet: pq.ParquetFile, file: LabelFile, result: Result) -> bool:
    """Check what the footer says; return whether the columns are those that the rows are checked by."""
    schema, record = parquet.schema_arrow, file.record
    header = _header(schema)
    digest = header.get("fingerprint_digest")
    if digest != record.fingerprint_digest:
        have = f"{digest[:12]}..." if isinstance(digest, str) else "nothing"
        want = f"{record.fingerprint_digest[:12]}..."
        result.problems.append(("fingerprint", f"made with {have}, and {record.task} labels here with {want}"))
    elif header != record.header:
        differs = sorted(k for k in {*header, *record.header} if header.get(k) != record.header.get(k))
        result.problems.append(("metadata", f"{', '.join(differs)} in the file differs from the task's record"))
    if dense_of(record.schema) is not None:
        groups = (parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups))
        largest = max(groups, default=0)
        if largest > ROW_GROUP_ROWS:
            result.problems.append(("row_groups", f"a row group has {largest} rows, expected up to {ROW_GROUP_ROWS}"))
    problem = schema_problem(schema, record.schema)
    if problem is not None:
        result.problems.append(("schema", problem))
    elif not result.problems and (named := _misdescribed(parquet, file.schema)):
        result.problems.append(("metadata", f"the description of {named} differs from the task's record"))
    return problem is None


def _header(schema: pa.Schema) -> dict[str, Any]:
    try:
        header = json.loads((schema.metadata or {}).get(b"annotator", b"{}"))
    except ValueError:
        return {}
    return header if isinstance(header, dict) else {}


def _misdescribed(parquet: pq.ParquetFile, expected: pa.Schema) -> str | None:
    """Return the first column whose description (unit, frame, encoding) is another one, or None."""
    found = parquet.schema_arrow
    for have, want in zip(found, expected, strict=True):
        if _description(have) != _description(want):
            return f"column {want.name}"
    # a file says it twice: in Arrow's schema, and plainly, for other readers
    plain = {key: value for key, value in (parquet.metadata.metadata or {}).items() if key != b"ARROW:schema"}
    return None if found.metadata == plain == expected.metadata else "the features, or of the record"


def _description(field: pa.Field) -> tuple[Any, ...]:
    own = {k: v for k, v in (field.metadata or {}).items() if not k.startswith(b"PARQUET:")}  # Parquet's own numbers
    inner = (field.type.field(i) for i in range(field.type.num_fields))
    # what a list holds is called "item" by Arrow and "element" by Parquet
    return own, *(("element" if child.name == "item" else child.name, _description(child)) for child in inner)


def _check_rows(parquet: pq.ParquetFile, file: LabelFile, tars: TarCheck, result: Result, *, deep: bool) -> None:
    """Read every row group, which checks every page, and compare the rows with those the place promises."""
    rows = [result.rows]
    shards: set[str | None] = set()
    bad: dict[str, list[np.ndarray]] = {"image_id": [], "status": [], "map": []}
    flaws: dict[str, list[tuple[int, str]]] = {}
    for groups in _portions(parquet):
        table = parquet.read_row_groups(groups, use_threads=False)
        rows.append(table["row"].fill_null(-1).to_numpy())
        shards.update(pc.unique(table["shard"].cast(pa.string())).to_pylist())
        for kind, mask in _bad_rows(table).items():
            bad[kind].append(rows[-1][mask])
        for count in pc.value_counts(table["status"]).to_pylist():
            result.statuses[str(count["values"])] += count["counts"]
        result.problems.extend(
            ("statistics", message) for message in _wrong_statistics(parquet.metadata, groups, table)
        )
        for first, part, wrong in tars.parts(table):
            wrong += _flaws(part, file) if deep and not wrong else ()
            for flaw in wrong:
                flaws.setdefault(flaw.kind, []).append((int(rows[-1][first + flaw.at]), flaw.message))
    found = result.rows = np.concatenate(rows)
    others = sorted(str(s) for s in shards if s != file.shard.key)
    if others:
        result.problems.append(("wrong_shard", f"holds rows of {others[0]}, expected {file.shard}"))
    problem = _rows_problem(found, file)
    if problem is not None:
        result.problems.append(("wrong_rows", problem))
    messages = {
        "image_id": "have no image_id",
        "status": f"have a status other than {', '.join(s.value for s in Status)}",
        "map": "have status ok and no map, or a map and another status",
    }
    for kind, parts in bad.items():
        where = np.concatenate([np.empty(0, np.int64), *parts])
        if len(where):
            result.problems.append((kind, f"{len(where)} of {len(found)} rows {messages[kind]}; first row {where[0]}"))
    for kind, listed in flaws.items():
        count = len({row for row, _ in listed})
        result.problems.append((kind, f"{count} of {len(found)} rows; row {listed[0][0]}: {listed[0][1]}"))


def _flaws(table: pa.Table, file: LabelFile) -> Iterator[Flaw]:
    yield from load_task(file.record.task).check(table, file.record.fingerprint)


def _portions(parquet: pq.ParquetFile) -> Iterator[list[int]]:
    """Yield the numbers of row groups to read at once: few calls for small maps, little memory for large ones."""
    groups: list[int] = []
    size = 0
    for group in range(parquet.num_row_groups):
        more = parquet.metadata.row_group(group).total_byte_size
        if groups and size + more > WHOLE_BYTES:
            yield groups
            groups, size = [], 0
        groups, size = [*groups, group], size + more
    if groups:
        yield groups


def _bad_rows(table: pa.Table) -> dict[str, np.ndarray]:
    """Return masks of the rows that break a rule of the envelope, by kind of problem."""
    known = pa.array([s.value for s in Status])
    ok = pc.equal(table["status"], Status.OK.value).fill_null(False)
    wrong = pa.chunked_array([pa.nulls(len(table), pa.bool_()).fill_null(False)])
    for column in (f for f in table.schema if f.type in MAP_TYPES.values()):
        place = pc.struct_field(table[column.name], "path" if column.type == PLACE else "bytes")
        size = pc.binary_length(place).fill_null(0)
        wrong = pc.or_(wrong, pc.not_equal(ok, pc.greater(size, 0)))
    masks = {
        "image_id": pc.equal(pc.utf8_length(table["image_id"]).fill_null(0), 0),
        "status": pc.invert(pc.is_in(table["status"], value_set=known)),
        "map": wrong,
    }
    return {kind: mask.to_numpy() for kind, mask in masks.items()}


def _wrong_statistics(metadata: pq.FileMetaData, groups: Sequence[int], table: pa.Table) -> Iterator[str]:
    """Yield columns whose statistics would make a reader skip rows that a filter asks for, or end its process."""
    leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    plain = {f.name: table[f.name] for f in table.schema if _has_plain_order(f.type)}
    flat = {n: c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for n, c in plain.items()}
    first = 0
    for group in groups:
        parts = metadata.row_group(group)
        for number, leaf in enumerate(leaves):
            part = parts.column(number)
            if part.physical_type != leaf.physical_type:  # Arrow aborts where statistics of such a part are asked for
                yield f"column {leaf.path} of row group {group}: {part.physical_type}, expected {leaf.physical_type}"
            elif leaf.path in flat:
                problem = _statistics_problem(part.statistics, flat[leaf.path].slice(first, parts.num_rows))
                if problem is not None:
                    yield f"column {leaf.path} of row group {group}: {problem}"
        first += parts.num_rows


def _has_plain_order(dtype: pa.DataType) -> bool:
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_string)
    return any(kind(dtype) for kind in kinds)


def _statistics_problem(statistics: pq.Statistics | None, values: pa.ChunkedArray) -> str | None:
    if statistics is None:
        return None
    if statistics.has_null_count and statistics.null_count != values.null_count:
        return f"{statistics.null_count} nulls by its statistics, found {values.null_count}"
    if statistics.has_min_max:
        span = pc.min_max(values)
        low, high = span["min"].as_py(), span["max"].as_py()
        if low is not None and not (statistics.min <= low and high <= statistics.max):
            return f"{statistics.min!r} to {statistics.max!r} by its statistics, found {low!r} to {high!r}"
    return None


def _rows_problem(found: np.ndarray, file: LabelFile) -> str | None:
    """Return how the rows differ from those that belong here, or None."""
    if file.rows is not None and np.array_equal(found, file.rows):
        return None
    allowed = np.arange(file.shard.first, file.shard.end) if file.rows is None else file.rows
    values, counts = np.unique(found, return_counts=True)
    parts = {
        "missing": np.setdiff1d(file.rows, values) if file.rows is not None else values[:0],
        "more than once": values[counts > 1],
        "not of this shard": np.setdiff1d(values, allowed),
        "out of order": found[1:][np.diff(found) < 0],
    }
    told = [f"{len(rows)} {word} (first {rows[0]})" for word, rows in parts.items() if len(rows)]
    return f"{len(found)} rows, expected {len(allowed)}: {', '.join(told)}" if told else None
