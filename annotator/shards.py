"""Shards: their keys, where their labels lie, which of them are committed.

A shard is up to `shard_rows` consecutive rows of one manifest file. Its key is fixed by the pinned
manifest, so a retry, a zombie and a second driver all aim at the same label file, and one wins.

    labels/<task>/<file key>/<first>-<end>.parquet      first and end in 12 digits, end excluded
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass

from annotator.storage import Storage, join

_LABEL_FILE = re.compile(r"(\d{12})-(\d{12})\.parquet")


@dataclass(frozen=True, order=True, slots=True)
class Shard:
    """Rows [first, end) of the manifest file with this key."""

    file_key: str
    first: int
    end: int

    @property
    def key(self) -> str:
        return f"{self.file_key}/{self.first:012d}-{self.end:012d}"

    def __str__(self) -> str:
        return self.key


def make_file_key(path: str) -> str:
    """Return the key of a manifest file from its path under the manifest root.

    A slug of the name for people, eight hex digits of the path's digest for certainty; it does not move
    when other files are added.
    """
    name = path.rsplit("/", 1)[-1].removesuffix(".parquet").lower()
    slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-")[:40].strip("-") or "manifest"
    return f"{slug}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def cut(file_key: str, rows: int, shard_rows: int) -> list[Shard]:
    """Return the shards of a manifest file, in row order; the last one may be short."""
    return [Shard(file_key, first, min(first + shard_rows, rows)) for first in range(0, rows, shard_rows)]


@functools.lru_cache(maxsize=64)  # asked for each name of a listing
def labels_folder(output: str, task: str) -> str:
    """Return the uri of the folder that holds a task's label files and nothing else."""
    return join(output, "labels", task)


def label_uri(output: str, task: str, shard: Shard) -> str:
    """Return the uri of a shard's label file; its existence means that the shard is done."""
    return join(labels_folder(output, task), f"{shard.key}.parquet")


def parse_label_uri(output: str, task: str, uri: str) -> Shard | None:
    """Return the shard whose label file this is, or None when no label file of ours is called so."""
    prefix = labels_folder(output, task) + "/"
    file_key, _, name = uri.removeprefix(prefix).rpartition("/")
    match = _LABEL_FILE.fullmatch(name)
    if not uri.startswith(prefix) or not match or not file_key or "/" in file_key:
        return None
    return Shard(file_key, int(match[1]), int(match[2]))


def committed(storage: Storage, output: str, task: str, file_key: str) -> set[Shard]:
    """Return the shards of one manifest file that have a label file for this task."""
    folder = join(labels_folder(output, task), file_key)
    found = (parse_label_uri(output, task, info.uri) for info in storage.list(folder))
    return {shard for shard in found if shard is not None}
