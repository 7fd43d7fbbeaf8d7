"""A sample: some rows of a manifest, chosen by chance, as a manifest and a job of their own."""

from __future__ import annotations

import hashlib
import posixpath
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import ManifestError
from annotator.footer import find_source
from annotator.job import Job
from annotator.manifest import Manifest, PinnedFile, local_folder, pin_manifest, selected_rows
from annotator.storage import Storage, join, normalize


def sample(job: Job, num_images: int) -> Job:
    """Return a job over `num_images` rows of the job's manifest, into an output of its own.

    The output is `<output>-sample-<num_images>`; its manifest, whole rows of the old one with absolute uris,
    is written below it once. The same rows are chosen each time, so the sample resumes as any job does; all
    rows are taken if there are fewer. `where` is applied before choosing.
    """
    storage = Storage(options=job.storage)
    output = f"{normalize(job.output)}-sample-{num_images}"
    folder = join(output, "manifest")
    here = local_folder(normalize(job.manifest))  # what it holds may be read, but it is not the sample's own folder
    roots = (*job.sources.roots, *([here] if here else []))
    sources = job.sources.model_copy(update={"roots": roots})
    sampled = job.model_copy(update={"manifest": folder, "output": output, "where": None, "sources": sources})
    done = join(folder, "_done")  # manifests leave out names that begin so
    if not storage.exists(done):
        manifest = pin_manifest(job, storage, write=False)
        for file, rows in _choose(storage, manifest, num_images):
            copy_rows(storage, file, rows, join(folder, f"{file.key}.parquet"), output=output)
        storage.create(b"", done, output=output)
    return sampled


def _choose(storage: Storage, manifest: Manifest, num_images: int) -> list[tuple[PinnedFile, npt.NDArray[np.int64]]]:
    """Return chosen row numbers by file, ascending."""
    eligible = [selected_rows(storage, manifest, file) for file in manifest.files]
    counts = [file.rows if rows is None else len(rows) for file, rows in zip(manifest.files, eligible, strict=True)]
    total = sum(counts)
    if not total:
        raise ManifestError(f"{manifest.root}: no row to sample passes where = {manifest.where!r}")
    seed = int.from_bytes(hashlib.sha256(f"{manifest.root} {num_images}".encode()).digest()[:8], "big")
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(num_images, total), replace=False))
    ends = np.cumsum(counts)
    found = []
    for index, (file, rows) in enumerate(zip(manifest.files, eligible, strict=True)):
        start = ends[index] - counts[index]
        local = chosen[(chosen >= start) & (chosen < ends[index])] - start
        if len(local):
            found.append((file, local.astype(np.int64) if rows is None else rows[local]))
    return found


def copy_rows(
    storage: Storage,
    file: PinnedFile,
    rows: npt.NDArray[np.int64],
    target: str,
    *,
    output: str,
    columns: Mapping[str, pa.Array] | None = None,
) -> None:
    """Write these rows of a manifest file, ascending, as another one: whole, with absolute uris.

    `columns` are more of them, one value a row; they take the place of those that have their names.
    """
    base, more = posixpath.dirname(file.uri), pa.table(dict(columns or {}))
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "sample.parquet"
        with storage.open(file.uri) as source:
            parquet = pq.ParquetFile(source)
            schema = parquet.schema_arrow
            uri = find_source(file.uri, schema).uri
            names = [name for name in schema.names if name not in more.column_names]
            start = done = 0
            with pq.ParquetWriter(path, _joined(schema.empty_table().select(names), more.slice(0, 0)).schema) as writer:
                for group in range(parquet.num_row_groups):
                    count = parquet.metadata.row_group(group).num_rows
                    here = rows[(rows >= start) & (rows < start + count)] - start
                    start += count
                    if len(here):
                        table = _absolute(parquet.read_row_group(group, names).take(pa.array(here)), uri, base)
                        writer.write_table(_joined(table, more.slice(done, len(here))))
                        done += len(here)
        storage.create(path, target, output=output)


def _joined(table: pa.Table, more: pa.Table) -> pa.Table:
    for name in more.column_names:
        table = table.append_column(name, more[name])
    return table


def _absolute(table: pa.Table, column: str | None, base: str) -> pa.Table:
    """Return the table with relative uris resolved: the sample lies elsewhere. `column` may be in a struct."""
    if column is None:
        return table
    name, _, inner = column.partition(".")
    index = table.schema.get_field_index(name)
    values = table[name].combine_chunks()
    if inner:
        parts = {f.name: values.field(f.name) for f in values.type}
        parts[inner] = _resolved(parts[inner], base)
        found = pa.StructArray.from_arrays(list(parts.values()), fields=list(values.type), mask=values.is_null())
    else:
        found = _resolved(values, base)
    return table.set_column(index, table.schema.field(index), found)


def _resolved(uris: pa.Array, base: str) -> pa.Array:
    return pa.array([u if u is None or "://" in u else normalize(u, base) for u in uris.to_pylist()], uris.type)
