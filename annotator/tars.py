"""Maps in tar files of their own (`dense: tar`): how such files are named, written and read.

    png/<task>/<file key>/<first>-<end>-<attempt>.tar      members <file key>-<row>.<task>.png, as WebDataset reads them

A tar file is created before the label file whose rows say where in it each map lies. Until that one is created nothing
counts; a tar file that no label file names is left over from a worker that was killed or came second. It takes space
and does no harm; nobody removes it while others may be at work, as it may be about to be named.

Why an attempt is named by a digest of what it wrote (2026-11): two attempts never aim at one name with different
bytes, so none can be overwritten. One that is made again after a kill finds its own tar file there, whole; and the same
labels give the same label files, byte for byte, which a random name would not.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from annotator.envelope import IMAGE, PLACE
from annotator.errors import NotFoundError, OutputError
from annotator.shards import Shard
from annotator.storage import Storage, join

_TAR = re.compile(r"png/((?!\.)[^/]+)/((?!\.)[^/]+)/(\d{12})-(\d{12})-[0-9a-f]{16}\.tar")
_BLOCK = tarfile.BLOCKSIZE
_PLACE_KEYS = {field.name for field in PLACE}


def tars_folder(output: str) -> str:
    """Return the uri of the folder that holds all tar files of an output."""
    return join(output, "png")


def tar_path(task: str, shard: Shard, attempt: str) -> str:
    """Return the path of a shard's tar file below the output."""
    return f"png/{task}/{shard.key}-{attempt}.tar"


def parse_tar_path(path: str) -> tuple[str, Shard] | None:
    """Return the task and the shard that a tar file is of, or None when none of ours is called so."""
    match = _TAR.fullmatch(path)
    return None if match is None else (match[1], Shard(match[2], int(match[3]), int(match[4])))


def member_name(task: str, file_key: str, row: int) -> str:
    """Return what a row's map is called in a tar file; what comes before the first dot is the sample's key."""
    return f"{file_key}-{row:012d}.{task}.png"


class TarWriter:
    """Writes maps into a local tar file: headers hold no time and no owner, so the same maps give the same bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tar = tarfile.TarFile.open(path, "w", format=tarfile.GNU_FORMAT)
        self._digest = hashlib.sha256()

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        """Add a member and return where its bytes lie: the first, and how many."""
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))
        self._digest.update(f"{name} {len(data)} ".encode())
        self._digest.update(data)
        return self._tar.offset - _padded(len(data)), len(data)

    def close(self) -> str:
        """Finish the file and return its attempt: a digest of names and bytes of all members."""
        self._tar.close()
        return self._digest.hexdigest()[:16]


# -- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """What lies at a place: the block before it, which should be the member's header, and the bytes that are there."""

    header: bytes
    data: bytes

    def problem(self, name: str, size: int) -> str | None:
        """Return why this is not the whole member of this name and size, or None."""
        if len(self.data) != size:
            return f"the file ends after {len(self.data)} of {size} bytes"
        try:
            found = tarfile.TarInfo.frombuf(self.header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as err:
            return f"no member begins there ({err})"
        if (found.name, found.size) == (name[: tarfile.LENGTH_NAME], size):
            return None
        return f"{found.name} of {found.size} bytes lies there, expected {name} of {size}"


def is_place(value: Any) -> bool:
    """Return whether a column's value says where a map is kept."""
    return isinstance(value, Mapping) and value.keys() == _PLACE_KEYS


def place_problem(place: Mapping[str, Any]) -> str | None:
    """Return why no map can lie at a place, or None. Paths come from label files, so they are not trusted."""
    path, offset, size = (place[name] for name in ("path", "offset", "size"))
    if not isinstance(path, str) or parse_tar_path(path) is None:
        return f"{path!r} is no tar file of an output"
    if offset is None or size is None or offset < _BLOCK or offset % _BLOCK or size < 1:
        return f"no map of {size} bytes can begin at byte {offset} of {path}"
    return None


def read_map(storage: Storage, output: str, place: Mapping[str, Any]) -> bytes:
    """Return the PNG at a place, by one ranged read.

    Raises ValueError for a place that can't be, or a file that ends before; NotFoundError if the file is gone.
    """
    problem = place_problem(place)
    if problem is not None:
        raise ValueError(problem)
    start, length = int(place["offset"]), int(place["size"])  # pandas makes them floats
    data = storage.read(join(output, place["path"]), start=start, length=length)
    if len(data) != length:
        raise ValueError(_short(place, data))
    return data


def read_members(storage: Storage, output: str, places: Sequence[Mapping[str, Any]]) -> list[Member]:
    """Return what lies at these places, which can be (`place_problem`); one read for all that follow each other.

    Raises NotFoundError if a file is gone.
    """
    members = []
    for run in _runs(places):
        start = run[0]["offset"] - _BLOCK
        end = run[-1]["offset"] + run[-1]["size"]
        data = storage.read(join(output, run[0]["path"]), start=start, length=end - start)
        for place in run:
            at = place["offset"] - start
            members.append(Member(data[at - _BLOCK : at], data[at : at + place["size"]]))
    return members


def with_maps(storage: Storage, output: str, table: pa.Table) -> pa.Table:
    """Return label rows with every map as bytes, wherever it is kept; columns may lie in a struct a task.

    Memory: all maps of the table. Raises OutputError if a tar file is gone or does not hold a map.
    """
    for at, column in enumerate(table.schema):
        dtype = with_maps_type(column.type)
        if dtype != column.type:
            filled = [_filled(storage, output, chunk) for chunk in table.column(at).chunks]
            table = table.set_column(at, column.with_type(dtype), pa.chunked_array(filled, dtype))
    return table


def with_maps_type(dtype: pa.DataType) -> pa.DataType:
    """Return the type of a column with every map as bytes."""
    if dtype == PLACE:
        return IMAGE
    if pa.types.is_struct(dtype):
        return pa.struct([field.with_type(with_maps_type(field.type)) for field in dtype])
    return dtype


def _filled(storage: Storage, output: str, array: pa.Array) -> pa.Array:
    if array.type != PLACE:
        if array.type == with_maps_type(array.type):
            return array
        fields = [field.with_type(with_maps_type(field.type)) for field in array.type]
        inner = [_filled(storage, output, array.field(field.name)) for field in array.type]
        return pa.StructArray.from_arrays(inner, fields=fields, mask=array.is_null())
    places = array.to_pylist()
    known = [place for place in places if place is not None]
    problems = [problem for problem in map(place_problem, known) if problem]
    try:
        members = [] if problems else read_members(storage, output, known)
    except NotFoundError as err:
        raise OutputError(f"{err}; run annotator verify") from None
    problems += [_short(p, m.data) for p, m in zip(known, members, strict=False) if len(m.data) != p["size"]]
    if problems:
        raise OutputError(f"{output}: {problems[0]}; run annotator verify")
    found = iter(members)
    return pa.array([None if p is None else {"bytes": next(found).data, "path": None} for p in places], IMAGE)


def _short(place: Mapping[str, Any], data: bytes) -> str:
    return f"{place['path']} ends after {len(data)} of the map's {place['size']} bytes"


def _runs(places: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Yield places in parts of which each lies in one tar file, member after member."""
    run: list[Mapping[str, Any]] = []
    for place in places:
        if run and (place["path"], place["offset"]) != (run[-1]["path"], _next_offset(run[-1])):
            yield run
            run = []
        run.append(place)
    if run:
        yield run


def _next_offset(place: Mapping[str, Any]) -> int:
    return int(place["offset"] + _padded(place["size"]) + _BLOCK)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
