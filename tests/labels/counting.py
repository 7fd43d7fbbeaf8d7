"""What readers ask of storage: every read of a local file, every request to an S3 server."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from s3fs import S3FileSystem

from annotator.storage import Storage

FOOTER_GUESS = 65_536
"""What Arrow reads of a file's end to find its footer; no option changes that."""


class Reads(list[tuple[int, int]]):
    """Reads as (offset, bytes)."""

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self)

    def overlap(self, ranges: list[tuple[int, int]], end: int) -> int:
        """Return the bytes that they took from these ranges (start, end), the guess at the footer left out."""
        inner = [(at, min(at + size, end - FOOTER_GUESS)) for at, size in self]
        return sum(max(0, min(stop, b) - max(at, a)) for at, stop in set(inner) for a, b in ranges)


class _CountingFile(io.RawIOBase):
    """A local file that is open while it is read only, for Arrow does not close what it is given."""

    def __init__(self, path: str, reads: Reads) -> None:
        super().__init__()
        self._path, self._reads, self._at = path, reads, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: os.path.getsize(self._path)}[whence]
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        with open(self._path, "rb") as file:
            file.seek(self._at)
            data = file.read(-1 if size is None else size)
        self._reads.append((self._at, len(data)))
        self._at += len(data)
        return data

    def readinto(self, buffer: Any, /) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _CountingFiles(LocalFileSystem):  # type: ignore[misc]
    def __init__(self, reads: Reads) -> None:
        super().__init__(skip_instance_cache=True)
        self.reads = reads

    def open(self, path: str, mode: str = "rb", **_: Any) -> BinaryIO:
        return cast(BinaryIO, _CountingFile(path, self.reads))


@contextmanager
def local_reads() -> Iterator[Reads]:
    """Note what is read of local files, by datasets and by `Storage.open`."""
    reads = Reads()
    files = pafs.PyFileSystem(pafs.FSSpecHandler(_CountingFiles(reads)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Storage, "arrow", lambda _self, uri: (files, uri))
        patch.setattr(Storage, "open", lambda _self, uri, info=None: _CountingFile(uri, reads))
        yield reads


def bytes_read() -> int:
    """Return how many bytes this process has read so far, as the kernel counts them."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar:")))


@contextmanager
def s3_requests() -> Iterator[list[tuple[str, str, Reads]]]:
    """Note each request to S3: its operation, its key, and the range that it asks for if it does."""
    requests: list[tuple[str, str, Reads]] = []
    real = S3FileSystem._call_s3

    async def call(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        words = {**(args[0] if args and isinstance(args[0], dict) else {}), **kwargs}
        first, _, last = str(words.get("Range", "")).removeprefix("bytes=").partition("-")
        reads = Reads([(int(first), int(last) - int(first) + 1)] if last else [])
        requests.append((method, str(words.get("Key", "")), reads))
        return await real(self, method, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3FileSystem, "_call_s3", call)
        yield requests


def map_ranges(source: Any, column: str = "mask.bytes") -> list[tuple[int, int]]:
    """Return where the bytes of maps lie in a label file, (start, end) a row group."""
    metadata = pq.ParquetFile(source).metadata
    chunks = [
        metadata.row_group(g).column(i) for g in range(metadata.num_row_groups) for i in range(metadata.num_columns)
    ]
    return [
        (chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size)
        for chunk in chunks
        if chunk.path_in_schema == column
    ]
