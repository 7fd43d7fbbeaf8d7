"""Snapshots of label files, as `annotator compact` makes them: what they hold, and whether that is what is there now.

    OUTPUT/tables/<task>/<segment>-<number>.parquet     the rows: a segment's files are sorted by image_id, end to end
    OUTPUT/tables/<task>/_<segment>.sources.parquet     the label files that a segment was made of, path and version
    OUTPUT/tables/<task>/_snapshot.json                 what counts: the segments, and each file's first and last id

A snapshot is current if the label files are, by path and version, just those of its segments. It is only ever a copy:
whoever finds it out of date, or incomplete, reads the label files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from annotator.errors import NotFoundError, OutputError
from annotator.shards import Shard, labels_folder
from annotator.storage import ObjectInfo, Storage, join


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFile:
    """One file of a segment: its name, size in bytes, rows, and the first and the last image_id in it."""

    name: str
    size: int
    rows: int
    first_id: str
    last_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Files that are sorted by image_id, one after the other."""

    name: str
    files: tuple[TableFile, ...]

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def sources(self) -> str:
        """The name of the table of label files that it was made of."""
        return f"_{self.name}.sources.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A task's snapshot; `digest` is that of its label files (`sources_digest`)."""

    task: str
    digest: str
    segments: tuple[Segment, ...]

    @property
    def names(self) -> set[str]:
        """The names of all files that it needs."""
        return {file.name for s in self.segments for file in s.files} | {s.sources for s in self.segments}

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def tables_folder(output: str, task: str) -> str:
    """Return the uri of the folder that holds a task's snapshot."""
    return join(output, "tables", task)


def snapshot_uri(output: str, task: str) -> str:
    return join(tables_folder(output, task), "_snapshot.json")


def read_snapshot(storage: Storage, output: str, task: str) -> Snapshot | None:
    """Return a task's snapshot, current or not; None if there is none. Raises OutputError for one that is damaged."""
    uri = snapshot_uri(output, task)
    try:
        data = json.loads(storage.read(uri))
        segments = (
            Segment(name=s["name"], files=tuple(TableFile(**file) for file in s["files"])) for s in data["segments"]
        )
        return Snapshot(task=data["task"], digest=data["digest"], segments=tuple(segments))
    except NotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as err:
        raise OutputError(
            f"{uri}: not a snapshot ({type(err).__name__}); delete {tables_folder(output, task)}, it can be made again"
        ) from None


def current_snapshot(storage: Storage, output: str, task: str, labels: Sequence[ObjectInfo]) -> list[ObjectInfo] | None:
    """Return the files of the snapshot if it holds just these label files and is complete, else None."""
    snapshot = read_snapshot(storage, output, task)
    if snapshot is None or snapshot.digest != sources_digest(sources_of(output, task, labels)):
        return None
    folder = tables_folder(output, task)
    there = {info.uri.removeprefix(folder + "/"): info for info in storage.list(folder)}
    wanted = [file for segment in snapshot.segments for file in segment.files]
    if any(file.name not in there or there[file.name].size != file.size for file in wanted):
        return None
    return [there[file.name] for file in wanted]


def sources_of(output: str, task: str, labels: Iterable[ObjectInfo]) -> dict[str, str]:
    """Return the version of each label file, by its path below the task's folder."""
    prefix = labels_folder(output, task) + "/"
    return {info.uri.removeprefix(prefix): str(info.version) for info in labels}


def sources_digest(sources: dict[str, str]) -> str:
    """Return a digest of label files and their versions."""
    lines = "".join(f"{path} {version}\n" for path, version in sorted(sources.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def find_places(storage: Storage, output: str, task: str, image_id: str) -> Iterator[tuple[Shard, int]]:
    """Yield where images of this id lie, as the snapshot knows it: of a file or two a few row groups are read."""
    snapshot = read_snapshot(storage, output, task)
    for segment in snapshot.segments if snapshot is not None else ():
        for file in segment.files:
            if file.first_id <= image_id <= file.last_id:
                try:
                    yield from _places(storage, join(tables_folder(output, task), file.name), image_id)
                except NotFoundError:
                    return  # a newer snapshot has taken its place meanwhile


def _places(storage: Storage, uri: str, image_id: str) -> Iterator[tuple[Shard, int]]:
    with storage.open(uri) as source:
        try:
            parquet = pq.ParquetFile(source, pre_buffer=True)
            column = parquet.schema_arrow.get_field_index("image_id")
            for group in range(parquet.num_row_groups):
                found = parquet.metadata.row_group(group).column(column).statistics
                if found is None or not found.has_min_max or found.min <= image_id <= found.max:
                    table = parquet.read_row_group(group, columns=["image_id", "shard", "row"])
                    for row in table.to_pylist():
                        if row["image_id"] == image_id:
                            key, _, span = row["shard"].rpartition("/")
                            yield Shard(key, *map(int, span.split("-"))), row["row"]
        except (pa.ArrowException, OSError) as err:
            text = " ".join(str(err).split())[:100]
            raise OutputError(f"{uri}: can't be read ({text}); delete the folder, it can be made again") from None
