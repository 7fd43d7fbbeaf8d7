"""The tar files that a label file names (`dense: tar`), judged: whether each map is where its row says, whole.

Why a shard's own tar files alone may be named (2026-11): so which tar files nobody names is found by going through two
sorted listings side by side, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import groupby
from tarfile import BLOCKSIZE, RECORDSIZE
from typing import Any

import pyarrow as pa

from annotator import png
from annotator.envelope import IMAGE, PLACE, ROW_GROUP_ROWS
from annotator.errors import NotFoundError
from annotator.labels.scan import LabelFile
from annotator.shards import Shard
from annotator.storage import Storage, join
from annotator.tars import Member, member_name, parse_tar_path, place_problem, read_members, tars_folder
from annotator.tasks import Flaw

MAX_NAMED = 50
"""Tar files that nobody names of which a report gives the path."""


_HINT = "restore it, or delete it and the label file and run the job again"  # an attempt finds what is there by name


@dataclass(frozen=True, kw_only=True, slots=True)
class UnusedTars:
    """Tar files that no label file names, and their bytes; `paths`, below the output, of the first of them."""

    files: int = 0
    num_bytes: int = 0
    paths: tuple[str, ...] = ()


class TarCheck:
    """Reads the maps that a label file's rows name. `named` has the tar files, and where the last map in each ends."""

    def __init__(self, storage: Storage, file: LabelFile) -> None:
        self.named: dict[str, int] = {}
        self._storage, self._file = storage, file

    def parts(self, table: pa.Table) -> Iterator[tuple[int, pa.Table, list[Flaw]]]:
        """Yield the rows with maps as bytes, in parts: number of the first row, rows, what is wrong with their places.

        A map whose place is wrong is null. Memory: the maps of a row group.
        """
        columns = [f.name for f in table.schema if f.type == PLACE]
        if not columns:
            yield 0, table, []
            return
        for first in range(0, len(table), ROW_GROUP_ROWS):
            rows, flaws = table.slice(first, ROW_GROUP_ROWS), list[Flaw]()
            for column in columns:
                found: dict[int, bytes] = {}
                for at, read in self._read(rows, column):
                    if isinstance(read, Flaw):
                        flaws.append(read)
                    else:
                        found[at] = read
                values = [{"bytes": found[at], "path": None} if at in found else None for at in range(len(rows))]
                rows = rows.set_column(rows.schema.get_field_index(column), column, pa.array(values, IMAGE))
            yield first, rows, flaws

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with the tar files as wholes, once all rows were read."""
        for path, end in self.named.items():
            try:
                size = self._storage.info(join(self._file.output, path)).size
            except NotFoundError:
                continue  # each of its rows says so
            if size % RECORDSIZE or size < end + 2 * BLOCKSIZE:
                yield "tar", f"{path}: {size} bytes are no whole tar file, its last map ends at {end}; {_HINT}"

    def _read(self, rows: pa.Table, column: str) -> Iterator[tuple[int, bytes | Flaw]]:
        """Yield number in the table and PNG, or what is wrong, of each row that names a place."""
        places = {at: place for at, place in enumerate(rows[column].to_pylist()) if place is not None}
        wrong = {at: problem for at, place in places.items() if (problem := self._misplaced(place))}
        yield from ((at, Flaw("tar", at, problem)) for at, problem in wrong.items())
        numbers = rows["row"].to_pylist()
        for path, group in groupby(sorted(places.keys() - wrong.keys()), key=lambda at: places[at]["path"]):
            some = list(group)
            ends = [places[at]["offset"] + places[at]["size"] for at in some]
            self.named[path] = max(self.named.get(path, 0), *ends)
            try:
                members = read_members(self._storage, self._file.output, [places[at] for at in some])
            except NotFoundError:
                yield from ((at, Flaw("tar", at, f"{path} is gone; {_HINT}")) for at in some)
                continue
            for at, member in zip(some, members, strict=True):
                flaw = self._flaw(at, numbers[at], places[at], member)
                yield at, member.data if flaw is None else flaw

    def _misplaced(self, place: Mapping[str, Any]) -> str | None:
        problem = place_problem(place)
        if problem is None and parse_tar_path(place["path"]) != (self._file.record.task, self._file.shard):
            return f"{place['path']} is a tar file of another shard or task"
        return problem

    def _flaw(self, at: int, row: int, place: Mapping[str, Any], member: Member) -> Flaw | None:
        name = member_name(self._file.record.task, self._file.shard.file_key, row)
        problem = member.problem(name, place["size"])
        if problem is not None:
            return Flaw("tar", at, f"{place['path']} at byte {place['offset']}: {problem}")
        try:
            png.check(member.data)
        except ValueError as err:
            return Flaw("checksum", at, f"{place['path']} at byte {place['offset']}: {err}")
        return None


class TarListing:
    """All tar files of an output, and which of them the label files name; both come sorted, and go by side by side."""

    def __init__(self, storage: Storage, output: str) -> None:
        self._output = output
        self._infos = storage.list(tars_folder(output))
        self._next = next(self._infos, None)
        self._files = self._bytes = 0
        self._paths: list[str] = []

    def see(self, task: str, shard: Shard, named: AbstractSet[str] | None) -> None:
        """Take in the tar files that the next label file names; None if it can't say, then all of its shard are."""
        stem = f"png/{task}/{shard.key}"
        self._pass(stem + ".", named, f"{stem}-")

    def unused(self) -> UnusedTars:
        """Return what no label file named, once all were seen."""
        self._pass(None, frozenset(), "")
        return UnusedTars(files=self._files, num_bytes=self._bytes, paths=tuple(self._paths))

    def _pass(self, end: str | None, named: AbstractSet[str] | None, own: str) -> None:
        while self._next is not None:
            path = self._next.uri.removeprefix(self._output + "/")
            if end is not None and path >= end:
                return
            if not path.startswith(own) or (named is not None and path not in named):
                self._files += 1
                self._bytes += self._next.size
                self._paths += [path] if len(self._paths) < MAX_NAMED else []
            self._next = next(self._infos, None)
