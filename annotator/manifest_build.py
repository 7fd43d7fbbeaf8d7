"""Manifests made from a folder of images or a list of uris, extended, and checked.

A built manifest is a folder of `manifest-00000.parquet`, ... with the column `uri` (absolute), and `image_id`
when the source gives one. Nothing of an image is read. A build that was killed goes on with `append_manifest`.
"""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from annotator.errors import ManifestError, OutputError, StorageError
from annotator.footer import find_source, read_footer
from annotator.manifest import manifest_files
from annotator.manifest_check import check_manifest, digests_of
from annotator.manifest_rows import text_batches
from annotator.storage import ObjectInfo, Storage, is_local, join, normalize

IMAGE_EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jp2", ".avif", ".heic",
)  # fmt: skip
ROWS_PER_GROUP = 4096
"""Rows a row group: a shard reads one or two, about 0.1 MB each; a million rows have a footer of 40 KB."""

_BATCH_ROWS = 16_384
_NAME = re.compile(r"manifest-(\d{5,})\.parquet")
_LISTS = (".txt", ".lst", ".list")
_TABLES = {".csv": ",", ".tsv": "\t"}

Progress = Callable[[int], None]
Batch = tuple[list[str], "list[str | None] | None"]  # uris, image_ids


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """What a build did: `images` rows in `files` new files; `duplicates` were there, `unusable` are not UTF-8.

    root   the local folder that holds the new images, if it is not the manifest's: a job must name it
    """

    manifest: str
    images: int
    files: int
    duplicates: int
    unusable: int
    root: str | None


def build_manifest(
    source: str,
    out: str,
    storage: Storage | None = None,
    *,
    rows_per_file: int = 1_000_000,
    extensions: Iterable[str] = IMAGE_EXTENSIONS,
    progress: Progress | None = None,
) -> Built:
    """Make a manifest of all images of `source` in the empty folder `out`.

    source     folder (searched to the bottom, by extension, in any case), text file with one uri a line, or
               CSV/TSV with a column `uri` and perhaps `image_id`; relative uris are under the source's folder
    progress   called with the number of images so far

    Streams: memory does not grow with a folder; a list costs 100 bytes an image, so that each is taken once.
    Raises OutputError if `out` holds anything, ManifestError if there are no images.
    """
    out, storage = normalize(out), storage or Storage()
    for info in storage.list(out):
        if not info.uri.startswith(join(out, "_annotator", "tmp") + "/"):
            raise OutputError(f"{out}: is not empty ({info.uri}); use an empty folder, or `annotator manifest append`")
    tally = _Tally(normalize(source), digests_of([]))
    tables = tally.fresh(*_read_source(normalize(source), storage, extensions))
    return _write(tables, tally, out, storage, rows_per_file, progress, first_file=0)


def append_manifest(
    source: str,
    out: str,
    storage: Storage | None = None,
    *,
    rows_per_file: int = 1_000_000,
    extensions: Iterable[str] = IMAGE_EXTENSIONS,
    progress: Progress | None = None,
) -> Built:
    """Add the images of `source` that no file of the manifest `out` has yet, in new files.

    The files that are there stay as they are, so outputs pinned to them go on. 16 bytes of memory an image.
    """
    out, storage = normalize(out), storage or Storage()
    files = manifest_files(out, storage)
    existing = [digests_of(uris) for _, info in files for uris in _existing_uris(storage, info)]
    numbers = [int(match[1]) for path, _ in files if (match := _NAME.fullmatch(path))]
    tally = _Tally(normalize(source), np.unique(np.concatenate([digests_of([]), *existing])))
    tables = tally.fresh(*_read_source(normalize(source), storage, extensions))
    return _write(tables, tally, out, storage, rows_per_file, progress, first_file=max(numbers, default=-1) + 1)


def update_manifest(
    source: str, out: str, storage: Storage | None = None, *, progress: Progress | None = None
) -> Built:
    """Build the manifest, or append to it if it is there: after it, `out` has every image of `source` once."""
    storage = storage or Storage()
    try:
        manifest_files(normalize(out), storage)
    except ManifestError:
        return build_manifest(source, out, storage, progress=progress)
    return append_manifest(source, out, storage, progress=progress)


# -- reading a source ----------------------------------------------------------------------------


def _read_source(source: str, storage: Storage, extensions: Iterable[str]) -> tuple[Iterator[Batch], bool]:
    """Return the source's images, and whether each is there only once for certain."""
    suffix = os.path.splitext(source)[1].lower()
    if not storage.exists(source):
        return _read_folder(source, storage, tuple(ext.lower() for ext in extensions)), True
    base = source.rsplit("/", 1)[0] or "/"
    if suffix in _TABLES:
        return _resolved(_read_table(source, storage, _TABLES[suffix]), source, base), False
    if suffix in _LISTS:
        return _resolved(_read_list(source, storage), source, base), False
    raise ManifestError(f"{source}: expected a folder, a list ({', '.join(_LISTS)}) or a table ({', '.join(_TABLES)})")


def _read_folder(source: str, storage: Storage, extensions: tuple[str, ...]) -> Iterator[Batch]:
    uris: list[str] = []
    for info in storage.list(source):
        if info.uri.lower().endswith(extensions):
            uris.append(info.uri)
            if len(uris) == _BATCH_ROWS:
                yield uris, None
                uris = []
    yield uris, None


def _read_list(source: str, storage: Storage) -> Iterator[Batch]:
    with storage.open(source) as file:
        data = file.read()
    try:
        lines = [line.strip() for line in data.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as err:
        raise ManifestError(f"{source}: is not UTF-8 text ({err}); expected one uri a line") from None
    uris = [line for line in lines if line]
    for start in range(0, len(uris), _BATCH_ROWS):
        yield uris[start : start + _BATCH_ROWS], None


def _read_table(source: str, storage: Storage, delimiter: str) -> Iterator[Batch]:
    parse = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    try:
        with storage.open(source) as file:
            names = pacsv.open_csv(file, parse_options=parse).schema.names
        wanted = [name for name in ("uri", "image_id") if name in names]
        if "uri" not in wanted:
            raise ManifestError(f"{source}: no column `uri`; the header names {', '.join(names[:20])}")
        types = {name: pa.string() for name in wanted}  # ids that look like numbers stay as they are written
        convert = pacsv.ConvertOptions(include_columns=wanted, column_types=types)
        with storage.open(source) as file:
            for batch in pacsv.open_csv(file, parse_options=parse, convert_options=convert):
                yield batch.column(0).to_pylist(), batch.column(1).to_pylist() if len(wanted) > 1 else None
    except pa.ArrowException as err:
        raise ManifestError(f"{source}: not readable as CSV: {' '.join(str(err).split())[:200]}") from None


def _resolved(batches: Iterator[Batch], source: str, base: str) -> Iterator[Batch]:
    """Yield batches with absolute uris."""
    rows = itertools.count(1)
    for uris, ids in batches:
        yield [_absolute(uri, base, f"{source}: row {row}") for uri, row in zip(uris, rows, strict=False)], ids


def _absolute(uri: str, base: str, place: str) -> str:
    if not uri:
        raise ManifestError(f"{place}: empty uri")
    if uri.lower().startswith(("http://", "https://")):
        return uri
    try:
        return normalize(uri, base)
    except StorageError as err:
        raise ManifestError(f"{place}: {err}") from None


def _existing_uris(storage: Storage, info: ObjectInfo) -> Iterator[list[str]]:
    """Yield the uris of a manifest file, resolved, by batches; nothing if all its images are embedded."""
    footer = read_footer(storage, info)
    name = find_source(info.uri, footer.schema).uri
    base = info.uri.rsplit("/", 1)[0]
    for batch in text_batches(storage, info, footer, name) if name else ():
        yield [_absolute(uri, base, info.uri) for uri in batch.drop_null().to_pylist() if uri]


# -- writing -------------------------------------------------------------------------------------


def _write(
    tables: Iterator[pa.Table],
    tally: _Tally,
    out: str,
    storage: Storage,
    rows_per_file: int,
    progress: Progress | None,
    *,
    first_file: int,
) -> Built:
    """Write the images that are new as files of the manifest, each created whole."""
    number = first_file
    with tempfile.TemporaryDirectory(prefix="annotator-") as folder:
        spool = Path(folder) / "manifest.parquet"
        for part in _by_file(tables, rows_per_file):
            with _Writer(spool) as writer:
                for table in part:
                    writer.write(table)
                    tally.images += table.num_rows
                    if progress is not None:
                        progress(tally.images)
            uri = join(out, f"manifest-{number:05d}.parquet")
            if not storage.create(spool, uri, output=out):
                raise OutputError(f"{uri}: appeared meanwhile; another build writes into {out}")
            number += 1
    tidy(out)
    if not tally.images and not tally.duplicates:
        raise ManifestError(f"{tally.source}: no such folder or list, or no image (by extension) and no uri in it")
    return Built(
        manifest=out,
        images=tally.images,
        files=number - first_file,
        duplicates=tally.duplicates,
        unusable=tally.unusable,
        root=None if tally.root is None or f"{tally.root}/".startswith(f"{out}/") else tally.root,
    )


class _Tally:
    """Counts of a build, and the digests that tell whether an image is new."""

    def __init__(self, source: str, existing: npt.NDArray[np.void]) -> None:
        self.source = source
        self.root: str | None = None
        self.images = self.duplicates = self.unusable = 0
        self._existing, self._seen = existing, set[bytes]()

    def fresh(self, batches: Iterator[Batch], unique: bool) -> Iterator[pa.Table]:
        """Yield the rows that are new, as tables of a single schema; `unique`: the batches repeat none."""
        for uris, ids in batches:
            keep = [position for position, uri in enumerate(uris) if _is_utf8(uri)]
            self.unusable += len(uris) - len(keep)
            digests = digests_of([uris[position] for position in keep])
            known = np.isin(digests, self._existing)
            fresh = [
                position
                for position, digest, old in zip(keep, digests.tolist(), known.tolist(), strict=True)
                if not old and (unique or self._is_first(digest))
            ]
            self.duplicates += len(keep) - len(fresh)
            columns = {"uri": pa.array([uris[position] for position in fresh], pa.string())}
            if ids is not None:
                columns["image_id"] = pa.array([ids[position] or None for position in fresh], pa.string())
            if fresh:
                self._widen_root([uris[position] for position in fresh])
                yield pa.table(columns)

    def _widen_root(self, uris: list[str]) -> None:
        """Make `root` the folder of these images too; first and last in order have what all have in common."""
        folders = [os.path.dirname(uri) + "/" for uri in uris if uri.startswith("/")]
        known = [self.root] if self.root is not None else []
        if folders:
            self.root = os.path.commonpath([min(folders), max(folders), *known])

    def _is_first(self, digest: bytes) -> bool:
        first = digest not in self._seen
        self._seen.add(digest)
        return first


class _Writer:
    """A manifest file being written; row groups are full whatever the batches are."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []

    def __enter__(self) -> _Writer:
        return self

    def write(self, table: pa.Table) -> None:
        self._waiting.append(table)
        ready = pa.concat_tables(self._waiting)
        whole = ready.num_rows // ROWS_PER_GROUP * ROWS_PER_GROUP
        self._waiting = [ready.slice(whole)]
        self._put(ready.slice(0, whole))

    def _put(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._path,
                table.schema,
                compression="zstd",
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,
            )
        if table.num_rows:
            self._writer.write_table(table, row_group_size=ROWS_PER_GROUP)

    def __exit__(self, *_: object) -> None:
        for table in self._waiting:
            self._put(table)
        if self._writer is not None:
            self._writer.close()


def _by_file(tables: Iterator[pa.Table], rows_per_file: int) -> Iterator[Iterator[pa.Table]]:
    """Yield the tables file by file; each file's must be used up before the next is asked for."""
    waiting = next(tables, None)

    def one_file() -> Iterator[pa.Table]:
        nonlocal waiting
        left = rows_per_file
        while waiting is not None and left:
            part = waiting.slice(0, left)
            left -= part.num_rows
            waiting = waiting.slice(part.num_rows) if part.num_rows < waiting.num_rows else next(tables, None)
            yield part

    while waiting is not None:
        yield one_file()


def tidy(out: str) -> None:
    """Remove the folders for temporary files that a commit to a local folder leaves, when they are empty."""
    if is_local(out):
        for folder in (join(out, "_annotator", "tmp"), join(out, "_annotator")):
            with suppress(OSError):
                os.rmdir(folder)


def _is_utf8(uri: str) -> bool:
    try:
        uri.encode()
    except UnicodeEncodeError:  # a local file name in another encoding
        return False
    return True


__all__ = ["IMAGE_EXTENSIONS", "Built", "append_manifest", "build_manifest", "check_manifest", "update_manifest"]
