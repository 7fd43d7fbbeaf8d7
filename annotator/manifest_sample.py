"""A sample: some rows of a manifest, chosen by chance, as a manifest and a job of their own."""

from __future__ import annotations

import hashlib
import posixpath
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import ManifestError
from annotator.footer import find_source
from annotator.job import Job
from annotator.manifest import Manifest, PinnedFile, pin_manifest, selected_rows
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
    sampled = job.model_copy(update={"manifest": folder, "output": output, "where": None})
    done = join(folder, "_done")  # manifests leave out names that begin so
    if not storage.exists(done):
        manifest = pin_manifest(job, storage, write=False)
        for file, rows in _choose(storage, manifest, num_images):
            _write(storage, file, rows, folder, output)
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


def _write(storage: Storage, file: PinnedFile, rows: npt.NDArray[np.int64], folder: str, output: str) -> None:
    """Write these rows of a manifest file under its own name."""
    base = posixpath.dirname(file.uri)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "sample.parquet"
        with storage.open(file.uri) as source:
            parquet = pq.ParquetFile(source)
            schema = parquet.schema_arrow
            uri = find_source(file.uri, schema).uri
            start = 0
            with pq.ParquetWriter(path, schema) as writer:
                for group in range(parquet.num_row_groups):
                    count = parquet.metadata.row_group(group).num_rows
                    here = rows[(rows >= start) & (rows < start + count)] - start
                    start += count
                    if len(here):
                        writer.write_table(_absolute(parquet.read_row_group(group).take(pa.array(here)), uri, base))
        name = f"{file.key}.parquet"
        storage.create(path, join(folder, name), output=output)


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
