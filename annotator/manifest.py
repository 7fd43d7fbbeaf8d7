"""The manifest: which images there are, pinned by the first run, read row by row.

    _annotator/job.json                 root, shard_rows and where, created once
    _annotator/manifests/<key>.json     one a manifest file, created once: uri, size, etag, rows, footer digest

What is pinned never changes, so keys of shards mean the same rows for ever. New files may join; a file that
changed or went is refused by name. A manifest is one Parquet file, or every .parquet file below a folder
(names that start with "_" or "." are left out, as in Hive and Arrow).
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annotator.envelope import ENVELOPE, Row
from annotator.errors import (
    FingerprintMismatchError,
    JobError,
    ManifestError,
    NotFoundError,
    OutputError,
    StorageError,
)
from annotator.footer import Footer, check_columns, find_source, read_footer
from annotator.job import Job
from annotator.manifest_rows import forget_rows, light_rows, pictures, where_rows
from annotator.shards import make_file_key
from annotator.storage import ObjectInfo, Storage, is_local, join, normalize
from annotator.where import Where, parse_where

T = TypeVar("T")
U = TypeVar("U")

_THREADS = 16
_AT_LEAST = {"shard_rows": 1, "size": 0, "rows": 0}
_RESERVED = {field.name for field in ENVELOPE}


@dataclass(frozen=True, kw_only=True, slots=True)
class PinnedFile:
    """A manifest file as the first run found it. `etag` is None for local files."""

    key: str
    uri: str
    size: int
    etag: str | None
    rows: int
    footer_digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """All manifest files of an output, sorted by uri, and what shards are cut with."""

    root: str
    shard_rows: int
    where: str | None
    files: tuple[PinnedFile, ...]

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def manifest_files(root: str, storage: Storage) -> list[tuple[str, ObjectInfo]]:
    """Return (path under the root, info) of every manifest file, by path. Raises ManifestError if there is none."""
    try:
        return [(posixpath.basename(root), storage.info(root))]
    except NotFoundError:
        pass
    files = []
    for info in storage.list(root):
        path = info.uri.removeprefix(root + "/")
        if path.lower().endswith(".parquet") and not any(part.startswith(("_", ".")) for part in path.split("/")):
            files.append((path, info))
    if not files:
        raise ManifestError(f"{root}: no Parquet file there; make a manifest with `annotator manifest build`")
    return files


def local_folder(root: str) -> str | None:
    """Return the folder that a manifest (absolute, a file or a folder) is or lies in; None for one on S3."""
    if not is_local(root):
        return None
    return root if os.path.isdir(root) else os.path.dirname(root)


# -- pins ----------------------------------------------------------------------------------------


def pin_manifest(job: Job, storage: Storage, *, write: bool = True) -> Manifest:
    """Return the job's manifest, checked and pinned in its output; with write=False checked only.

    Nothing is written before everything is checked. Raises ManifestError for a file that is unusable, changed
    or gone; FingerprintMismatchError for another root, shard_rows or where than pinned; JobError for a `where`
    or `keep_columns` that does not fit.
    """
    root, output = normalize(job.manifest), normalize(job.output)
    if output == root or output.startswith(root + "/"):
        raise JobError(f"output {output} lies in the manifest folder {root}; label files would pass for manifests")
    where = parse_where(job.where) if job.where is not None else None
    reserved = sorted(_RESERVED & set(job.keep_columns))
    if reserved:
        raise JobError(f"keep_columns: {', '.join(reserved)}: label rows have a column of that name of their own")
    terms = {"root": root, "shard_rows": job.shard_rows, "where": where.text if where else None}
    _compare_terms(output, _read_terms(output, storage), terms)
    pinned = {file.key: file for file in _read_files(output, storage)}
    found = _keyed(manifest_files(root, storage))
    gone = sorted(pinned[key].uri for key in pinned.keys() - found.keys())
    if gone:
        raise ManifestError(f"{gone[0]}: is pinned by {output} and no longer there ({len(gone)} such); put it back")
    files = _check_files(storage, found, pinned, where, job.keep_columns)
    if write:
        _write_pins(storage, output, terms, [file for file in files if file.key not in pinned])
    files.sort(key=lambda file: file.uri)
    return Manifest(root=root, shard_rows=job.shard_rows, where=where.text if where else None, files=tuple(files))


def read_pins(output: str, storage: Storage) -> Manifest:
    """Return the manifest that an output is pinned to. Raises OutputError if it is not an output of ours."""
    output = normalize(output)
    terms = _read_terms(output, storage)
    if terms is None:
        raise OutputError(f"{output}: holds no _annotator/job.json, so no run of annotator has written here yet")
    files = sorted(_read_files(output, storage), key=lambda file: file.uri)
    return Manifest(**terms, files=tuple(files))


@lru_cache(maxsize=256)
def read_pin(storage: Storage, output: str, file_key: str) -> tuple[Manifest, PinnedFile]:
    """Return one pinned file, and a manifest that holds it alone; cached, for pins never change."""
    terms = _read_terms(output, storage)
    if terms is None:
        raise OutputError(f"{output}: holds no _annotator/job.json; start with `annotator run`")
    file = _read_file(storage, _pin_uri(output, file_key))
    return Manifest(**terms, files=(file,)), file


def forget() -> None:
    """Drop what this process remembers of pins and manifest files: an output may be thrown away and begun anew."""
    read_pin.cache_clear()
    _footer.cache_clear()
    forget_rows()


def kept_fields(storage: Storage, manifest: Manifest, keep_columns: Sequence[str]) -> tuple[pa.Field, ...]:
    """Return the fields that `keep_columns` adds to label rows: name and type as in the first manifest file."""
    if not keep_columns:
        return ()
    file = manifest.files[0]
    schema = _footer(storage, file).schema
    check_columns(file.uri, schema, keep_columns, "keep_columns")
    return tuple(pa.field(name, schema.field(name).type) for name in keep_columns)


def _keyed(files: Iterable[tuple[str, ObjectInfo]]) -> dict[str, ObjectInfo]:
    """Return manifest files by key. Raises ManifestError for two that share one (1 in 10^5 for 300 files of a name)."""
    found: dict[str, ObjectInfo] = {}
    for path, info in files:
        other = found.setdefault(make_file_key(path), info)
        if other is not info:
            raise ManifestError(f"{info.uri} and {other.uri} have the same file key; rename one that no run has pinned")
    return found


def _check_files(
    storage: Storage,
    found: Mapping[str, ObjectInfo],
    pinned: Mapping[str, PinnedFile],
    where: Where | None,
    keep_columns: Sequence[str],
) -> list[PinnedFile]:
    """Return the manifest files that storage holds now, each checked against its pin or pinned anew."""

    def check(key: str) -> tuple[PinnedFile, list[pa.DataType] | None]:
        info, pin = found[key], pinned.get(key)
        if pin is not None and (info.size, info.etag) != (pin.size, pin.etag):
            raise _changed(pin, f"{info.size} bytes, etag {info.etag}", f"{pin.size} bytes, etag {pin.etag}")
        if pin is not None and pin.etag is not None and not keep_columns:
            return pin, None  # the etag speaks for the content; spares a request a file
        footer = read_footer(storage, info)
        if pin is not None and footer.digest != pin.footer_digest:
            raise _changed(pin, "another Parquet footer", "the one it had")
        find_source(info.uri, footer.schema)
        check_columns(info.uri, footer.schema, keep_columns, "keep_columns")
        if where is not None:
            check_columns(info.uri, footer.schema, where.columns, "where")
            where.bind(footer.schema)
        kept = [footer.schema.field(name).type for name in keep_columns]
        fresh = PinnedFile(
            key=key, uri=info.uri, size=info.size, etag=info.etag, rows=footer.rows, footer_digest=footer.digest
        )
        return pin or fresh, kept

    checked = list(_threaded(check, found))
    types = [(file, kept) for file, kept in checked if kept is not None]
    for file, kept in types:
        if kept != types[0][1]:
            first = types[0][0].uri
            raise ManifestError(f"{file.uri}: keep_columns {', '.join(keep_columns)} have other types than in {first}")
    return [file for file, _ in checked]


def _changed(pin: PinnedFile, found: str, expected: str) -> ManifestError:
    return ManifestError(
        f"{pin.uri}: changed since the first run pinned it (found {found}, expected {expected}); "
        "put the old file back, add new rows in new files, or use a new output"
    )


def _write_pins(storage: Storage, output: str, terms: Mapping[str, Any], files: Iterable[PinnedFile]) -> None:
    if not storage.create(_to_json(terms), _terms_uri(output), output=output):
        _compare_terms(output, _read_terms(output, storage), terms)  # another driver may have been first

    def write(file: PinnedFile) -> None:
        uri = _pin_uri(output, file.key)
        if not storage.create(_to_json(asdict(file)), uri, output=output):
            other = _read_file(storage, uri)
            if other != file:
                raise _changed(other, f"{file.size} bytes", f"{other.size} bytes")

    list(_threaded(write, files))


def _compare_terms(output: str, pinned: Mapping[str, Any] | None, terms: Mapping[str, Any]) -> None:
    names = {"root": "manifest", "shard_rows": "shard_rows", "where": "where"}
    for name in names if pinned is not None else ():
        if pinned is not None and pinned[name] != terms[name]:
            raise FingerprintMismatchError(
                f"{output}: {names[name]} is {terms[name]!r}, and its first run fixed {pinned[name]!r}; "
                "use the same, or a new output"
            )


def _terms_uri(output: str) -> str:
    return join(output, "_annotator", "job.json")


def _pin_uri(output: str, file_key: str) -> str:
    return join(output, "_annotator", "manifests", f"{file_key}.json")


def _read_terms(output: str, storage: Storage) -> dict[str, Any] | None:
    uri = _terms_uri(output)
    try:
        data = json.loads(storage.read(uri))
        return _expect(data, root=str, shard_rows=int, where=(str, type(None)))
    except NotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as err:
        raise OutputError(f"{uri}: is damaged ({err}); expected what a run of annotator writes") from None


def _read_files(output: str, storage: Storage) -> list[PinnedFile]:
    uris = [info.uri for info in storage.list(join(output, "_annotator", "manifests")) if info.uri.endswith(".json")]
    return list(_threaded(lambda uri: _read_file(storage, uri), uris))


def _read_file(storage: Storage, uri: str) -> PinnedFile:
    try:
        data = json.loads(storage.read(uri))
        text = (str, type(None))
        file = PinnedFile(**_expect(data, key=str, uri=str, size=int, etag=text, rows=int, footer_digest=str))
        if not uri.endswith(f"/{file.key}.json"):
            raise ValueError(f"key is {file.key!r}")
    except (ValueError, KeyError, TypeError) as err:
        raise OutputError(f"{uri}: is damaged ({err}); expected what a run of annotator writes") from None
    return file


def _expect(data: Any, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """Return these values of a record; ValueError, KeyError or TypeError where it was edited into something else."""
    for name, kind in kinds.items():
        if not isinstance(data[name], kind) or (name in _AT_LEAST and data[name] < _AT_LEAST[name]):
            raise ValueError(f"{name} is {data[name]!r}")
    return {name: data[name] for name in kinds}


def _to_json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, indent=1, sort_keys=True).encode()


def _threaded(call: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Yield call(item) in order, many at a time: storage answers slowly, and we wait for most of it."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(call, items)


# -- rows ----------------------------------------------------------------------------------------


def read_rows(
    storage: Storage,
    manifest: Manifest,
    file: PinnedFile,
    first: int,
    end: int,
    keep_columns: Sequence[str] = (),
    *,
    data: bool = True,
) -> Iterator[Row]:
    """Yield rows [first, end) of a manifest file that pass `where`, in order, each with its own index.

    With data=False embedded pictures are left out. Pictures are streamed: memory holds a few of them.
    A relative uri is resolved under the folder of the manifest file.
    """
    footer, where = _footer(storage, file), _where(manifest)
    source = find_source(file.uri, footer.schema)
    info = _info(file)
    table = light_rows(storage, info, footer, source, where, keep_columns, first, end)
    uris = table["uri"].to_pylist()
    ids = table["image_id"].to_pylist()
    kept = table.select([f"kept.{name}" for name in keep_columns]).rename_columns(list(keep_columns)).to_pylist()
    folder = posixpath.dirname(file.uri)
    needs_data = source.data is not None and (data or any(i is None and not u for i, u in zip(ids, uris, strict=True)))
    rows = table["row"].to_pylist()
    blobs = pictures(storage, info, footer, source, rows) if needs_data else iter([None] * len(rows))
    for position, (index, uri, image_id, blob) in enumerate(zip(rows, uris, ids, blobs, strict=True)):
        yield Row(
            index=index,
            image_id=image_id if image_id is not None else make_id(uri, blob, file.key, index),
            uri=_resolve(uri, folder) if uri else None,
            data=blob if data else None,
            kept=kept[position] if keep_columns else {},
        )


def first_uris(storage: Storage, manifest: Manifest, count: int) -> list[str]:
    """Return the uris, resolved, of those among the first `count` rows that pass `where`; none of embedded pictures."""
    file = next((file for file in manifest.files if file.rows), None)
    if file is None:
        return []
    footer = _footer(storage, file)
    source = find_source(file.uri, footer.schema)
    if source.data is not None:
        return []
    table = light_rows(storage, _info(file), footer, source, _where(manifest), (), 0, min(count, file.rows))
    folder = posixpath.dirname(file.uri)
    return [_resolve(uri, folder) for uri in table["uri"].to_pylist() if uri]


def selected_rows(storage: Storage, manifest: Manifest, file: PinnedFile) -> npt.NDArray[np.int64] | None:
    """Return the rows of a manifest file that pass `where`, ascending; None if there is no `where`."""
    where = _where(manifest)
    if where is None:
        return None
    return where_rows(storage, _info(file), _footer(storage, file), where)


def make_id(uri: str | None, blob: bytes | None, file_key: str, index: int) -> str:
    """Return the id of an image that the manifest gives none: a digest of its uri as written, else of its bytes."""
    source = uri.encode("utf-8", "surrogatepass") if uri else blob or f"{file_key}#{index}".encode()
    return hashlib.sha256(source).hexdigest()[:32]


def _resolve(uri: str, folder: str) -> str:
    try:
        return normalize(uri, folder)
    except StorageError:
        return uri  # an unknown scheme: the fetch says so, in the image's own row


def _where(manifest: Manifest) -> Where | None:
    return None if manifest.where is None else parse_where(manifest.where)


def _info(file: PinnedFile) -> ObjectInfo:
    return ObjectInfo(uri=file.uri, size=file.size, etag=file.etag)


@lru_cache(maxsize=8)
def _footer(storage: Storage, file: PinnedFile) -> Footer:
    """Return the footer of a pinned file. Raises ManifestError if it is not the one that was pinned."""
    footer = read_footer(storage, _info(file))
    if footer.digest != file.footer_digest:
        raise _changed(file, "another Parquet footer", "the one it had")
    return footer
