"""What would go wrong with a manifest, found before a run pays for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annotator.errors import ManifestError, StorageError
from annotator.footer import Footer, Source, find_source, read_footer
from annotator.manifest import manifest_files
from annotator.manifest_rows import text_batches
from annotator.storage import ObjectInfo, Storage, normalize

HUGE_ROW_GROUP = 200_000
"""Rows of a row group above which reading a shard's few rows costs far more than the rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something about a manifest. A warning costs time; what is none would be wrong or refused.

    kind: unreadable, unusable, mixed_columns, null_uri, duplicate_uri, duplicate_image_id, huge_row_group
    """

    kind: str
    where: str
    message: str
    warning: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestCheck:
    """The outcome of a check: counts of what could be read, and what was found."""

    files: int
    rows: int
    problems: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.warning for finding in self.problems)


def check_manifest(uri: str, storage: Storage | None = None) -> ManifestCheck:
    """Return what is wrong with a manifest file or folder. Raises ManifestError if there is none.

    Reads footers and the text columns, no image. 32 bytes of memory a row.
    """
    storage = storage or Storage()
    files = manifest_files(normalize(uri), storage)
    findings: list[Finding] = []
    rows, schemas = 0, {}
    digests: dict[str, list[npt.NDArray[np.void]]] = {"uri": [], "image_id": []}
    for _, info in files:
        try:
            footer = read_footer(storage, info)
            rows += footer.rows
            try:
                source = find_source(info.uri, footer.schema)
            except ManifestError as err:
                findings.append(Finding(kind="unusable", where=info.uri, message=str(err)))
                continue
            schemas[info.uri] = footer.schema
            findings += _check_groups(info, footer)
            findings += _check_text(storage, info, footer, source, digests)
        except ManifestError as err:
            findings.append(Finding(kind="unreadable", where=info.uri, message=str(err)))
        except StorageError as err:
            findings.append(Finding(kind="unreadable", where=info.uri, message=f"can't be read: {err}"))
    findings += _check_schemas(schemas)
    for name, parts in digests.items():
        repeated = _count_repeated(parts)
        if repeated:
            message = f"{repeated} rows have the {name} of an earlier row; each would be labelled again"
            findings.append(Finding(kind=f"duplicate_{name}", where=uri, message=message))
    return ManifestCheck(files=len(files), rows=rows, problems=tuple(findings))


def digests_of(texts: list[str]) -> npt.NDArray[np.void]:
    """Return 16 bytes for each text; two of 10^9 collide with a probability of about 10^-21."""
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    return np.frombuffer(joined, "V16")


def _check_groups(info: ObjectInfo, footer: Footer) -> Iterator[Finding]:
    counts = [footer.metadata.row_group(group).num_rows for group in range(footer.metadata.num_row_groups)]
    largest = max(counts, default=0)
    if largest > HUGE_ROW_GROUP:
        message = f"a row group of {largest} rows is read for every shard; write groups of at most {HUGE_ROW_GROUP}"
        yield Finding(kind="huge_row_group", where=info.uri, message=message, warning=True)


def _check_text(
    storage: Storage,
    info: ObjectInfo,
    footer: Footer,
    source: Source,
    digests: dict[str, list[npt.NDArray[np.void]]],
) -> Iterator[Finding]:
    """Yield what is wrong with uris and ids, and collect their digests."""
    for label, column in (("uri", source.uri), ("image_id", source.image_id)):
        nulls = 0
        for batch in text_batches(storage, info, footer, column) if column is not None else ():
            texts = [text for text in batch.to_pylist() if text]
            nulls += len(batch) - len(texts)
            digests[label].append(digests_of(texts))
        if nulls and label == "uri" and source.data is None:
            message = f"{nulls} rows have no uri; each becomes an unreadable row"
            yield Finding(kind="null_uri", where=info.uri, message=message)


def _check_schemas(schemas: dict[str, pa.Schema]) -> Iterator[Finding]:
    first = next(iter(schemas), None)
    for uri, schema in schemas.items():
        if first is not None and schema != schemas[first]:
            message = f"has other columns or types than {first}; where and keep_columns may refuse it"
            yield Finding(kind="mixed_columns", where=uri, message=message, warning=True)


def _count_repeated(parts: list[npt.NDArray[np.void]]) -> int:
    if not parts:
        return 0
    together = np.concatenate(parts)
    return len(together) - len(np.unique(together))
