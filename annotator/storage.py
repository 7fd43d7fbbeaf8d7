"""Local folders and S3 behind eight verbs: info, read, open, list, create, replace, replace_if, delete.

The one promise that everything rests on is `create`: an object comes into being whole, once, by whoever
is first, and nobody ever sees half of it (DESIGN section 3, "Commit"); of all who `replace_if`, one does.

Why our own retries (2026-11): s3fs, botocore and aiohttp each retry some faults, with bodies they may have
read already and without saying that a first try may have gone through. They are switched off here; each
try of ours opens the body afresh, and carries its MD5, so a short one can't be stored: a signature covers no body
over https, and Ceph's gateway 16.2 takes an empty one whatever the signature says (seen in a chaos run).
Why no listing cache: another worker's commit must be visible at once.
Uris are local paths or `s3://bucket/key`. A key may hold any character, "?" and "%" included.
"""

from __future__ import annotations

import base64
import io
import os
import posixpath
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from operator import methodcaller
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import unquote

import pyarrow.fs as pafs

from annotator import local
from annotator.errors import NotFoundError, StorageError, TransientStorageError
from annotator.fast_get import fast_get
from annotator.faults import ExistsError, OutOfRangeError, retry
from annotator.job import StorageOptions

T = TypeVar("T")

MAX_PUT_BYTES = 5 * 2**30
"""S3's limit for one PutObject (AWS: "Uploading objects", 5 GB)."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SLOWEST_UPLOAD = 2**20  # bytes a second below which a PUT is given up and tried again
_ABANDONED_S = 86_400.0  # no upload to a local disk takes a day
_MARK = "annotator-writer"  # metadata of a replaced object, by which its writer knows it


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectInfo:
    """One file or object. `etag` is None for local files; `version` changes with each write."""

    uri: str
    size: int
    etag: str | None
    version: str | None = None


def is_local(uri: str) -> bool:
    """Return whether the uri is a local path (file:// included)."""
    return not uri.startswith("s3://")


def join(base: str, *parts: str) -> str:
    """Return base and parts joined by single slashes; empty parts are left out."""
    uri = base.rstrip("/") if base.strip("/") else base[:1]
    for part in filter(None, (p.strip("/") for p in parts)):
        uri = f"{uri}{part}" if uri.endswith("/") or not uri else f"{uri}/{part}"
    return uri


def normalize(uri: str, base: str | None = None) -> str:
    """Return the uri as an absolute local path or an s3:// uri, without a trailing slash.

    A relative one is resolved under `base`, else under the working directory. file:// is decoded as
    RFC 8089 says; s3 keys are taken as they are. Raises StorageError for any other scheme.
    """
    match = _SCHEME.match(uri)
    scheme = match[1].lower() if match else ""
    if match and scheme in ("s3", "s3a", "s3n"):
        return "s3://" + uri[match.end() :].rstrip("/")
    if match and scheme == "file":
        host, slash, path = uri[match.end() :].partition("/")
        if not slash or host not in ("", "localhost"):
            raise StorageError(f"{uri}: a file:// uri needs an absolute path on this machine (file:///folder/name)")
        return os.path.normpath("/" + unquote(path))
    if match:
        raise StorageError(f"{uri}: unknown scheme {match[1]!r}; known are s3://, file:// and plain local paths")
    if base is not None and not is_local(base) and not uri.startswith("/"):
        bucket, _, key = base[5:].partition("/")
        # the key of a relative uri: "./" and "../" go, but never out of the bucket
        path = posixpath.normpath(posixpath.join("/", key, uri)) if "./" in uri else posixpath.join("/", key, uri)
        return f"s3://{bucket}{path}".rstrip("/")
    return os.path.abspath(os.path.join(base or os.getcwd(), uri))


@dataclass(frozen=True, slots=True)
class Storage:
    """Access to local files and S3. Cheap to build and to pickle; safe to use from many threads.

    Passing faults are tried up to `attempts` times with growing pauses, then raise TransientStorageError.
    `timeout_s` bounds one try (an upload gets time for its size on top).
    """

    options: StorageOptions = field(default_factory=StorageOptions)
    attempts: int = 4
    timeout_s: float = 30.0

    def info(self, uri: str) -> ObjectInfo:
        """Return size and etag, asked for now. Raises NotFoundError; a folder is not an object."""
        if is_local(uri):
            status = self._retry(uri, lambda: os.stat(_path(uri)))
            if not stat.S_ISREG(status.st_mode):
                raise NotFoundError(f"{uri}: is not a file")
            return ObjectInfo(uri=uri, size=status.st_size, etag=None, version=local.version(status))
        reply = self._head(uri)
        return ObjectInfo(uri=uri, size=int(reply["ContentLength"]), etag=_etag(reply), version=_etag(reply))

    def exists(self, uri: str) -> bool:
        """Return whether the object exists now."""
        try:
            self.info(uri)
        except NotFoundError:
            return False
        return True

    def read(self, uri: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Return the object from `start` on, or `length` bytes of that, fewer at its end. One ranged GET on S3."""
        if is_local(uri):
            return self._retry(uri, lambda: local.read_plain(_path(uri), start, length))
        found = fast_get(self.options, self.timeout_s, *_split(uri), start, length, os.getpid())
        return self._get(uri, start, length) if found is None else cast(bytes, found)

    def open(self, uri: str, info: ObjectInfo | None = None) -> BinaryIO:
        """Return the object as a seekable binary file that reads exactly what it is asked for.

        `info`, where it is known already, spares a request; another version than that is not read.
        """
        if is_local(uri):
            return self._retry(uri, lambda: os.fdopen(local.open_plain(_path(uri)), "rb"))
        return cast(BinaryIO, _RemoteFile(self, info or self.info(uri)))

    def list(self, folder: str) -> Iterator[ObjectInfo]:
        """Yield every file below the folder, sorted by uri, fresh from storage, page by page.

        Nothing for a missing folder. Raises NotFoundError for a missing bucket.
        """
        if is_local(folder):
            return self._list_local(_path(folder), folder.rstrip("/") + "/", frozenset())
        return self._list_s3(folder)

    def create(self, source: Path | bytes, uri: str, *, output: str) -> bool:
        """Create the object with all of source's bytes if it does not exist. True: created; False: it existed.

        Atomic: of any number of writers one wins, and readers see nothing or the whole. After a lost reply the
        call tries again and may find its own object: that counts as existed, which is as good.
        `output` is the output folder: local files are written to its `_annotator/tmp` first.
        Raises OutputError if the filesystem has no hard links.
        """
        if is_local(uri):
            return self._retry(uri, lambda: local.create(source, _path(uri), _path(output)))
        return self._put(source, uri, {"IfNoneMatch": "*"})

    def replace(self, source: Path | bytes, uri: str, *, output: str) -> None:
        """Write the object, over any that exists; readers see the old one or the new one, whole."""
        if is_local(uri):
            self._retry(uri, lambda: local.replace(source, _path(uri), _path(output)))
        else:
            self._put(source, uri, {})

    def replace_if(self, source: Path | bytes, version: str, uri: str, *, output: str) -> bool:
        """Replace the object if it is still the version that `info` gave. False: it is another by now, or gone.

        Atomic: of all writers that name a version one wins. After a lost reply the call knows its own object on S3;
        on a disk it says False if the rename was done and an error followed.
        """
        if is_local(uri):
            return self._retry(uri, lambda: local.replace_if(source, version, _path(uri), _path(output)))
        mark = uuid.uuid4().hex
        for etag in (f'"{version}"', version):  # RGW 16.2 knows the bare one alone (reference/io.md, part 1)
            try:
                if self._put(source, uri, {"IfMatch": etag, "Metadata": {_MARK: mark}}):
                    return True
                found = self._head(uri)
            except NotFoundError:
                break
            if _etag(found) != version:
                return bool(found.get("Metadata", {}).get(_MARK) == mark)  # ours, if the first reply was lost
        return False

    def delete(self, uri: str) -> None:
        """Remove an object if it exists. Never for labels: only for what can be made again from them."""
        if is_local(uri):
            self._retry(uri, lambda: Path(_path(uri)).unlink(missing_ok=True))
        else:
            bucket, key = _split(uri)
            self._s3(uri, "delete_object", Bucket=bucket, Key=key)

    def sweep(self, output: str) -> None:
        """Remove temporary files that killed writers left in the output more than a day ago (local outputs only)."""
        if is_local(output):
            self._retry(output, lambda: local.sweep(_path(output), _ABANDONED_S))

    def arrow(self, uri: str) -> tuple[pafs.FileSystem, str]:
        """Return an Arrow filesystem and the path in it, for dataset readers. Read only."""
        if is_local(uri):
            return pafs.LocalFileSystem(), os.path.abspath(_path(uri))
        handler = pafs.FSSpecHandler(_filesystem(self.options, self.timeout_s, self.attempts, os.getpid()))
        return pafs.PyFileSystem(handler), uri[5:]

    def _retry(self, uri: str, call: Callable[[], T]) -> T:
        """Return call(), tried again while it fails in passing; errors become annotator's own."""
        return retry(call, uri, self.attempts)

    def _list_local(self, path: str, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[ObjectInfo]:
        for name, is_folder, status in self._retry(path, lambda: local.scan(path)):
            if not is_folder:
                yield ObjectInfo(uri=prefix + name, size=status.st_size, etag=None, version=local.version(status))
            elif (inode := (status.st_dev, status.st_ino)) not in above:  # a link to a folder above ends here
                yield from self._list_local(os.path.join(path, name), f"{prefix}{name}/", above | {inode})

    def _list_s3(self, folder: str) -> Iterator[ObjectInfo]:
        bucket, key = _split(folder, folder=True)
        more: dict[str, str] = {}
        while True:
            page = self._s3(folder, "list_objects_v2", Bucket=bucket, Prefix=key, **more)
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):  # a "folder" that a console made
                    uri, etag = f"s3://{bucket}/{entry['Key']}", _etag(entry)
                    yield ObjectInfo(uri=uri, size=int(entry["Size"]), etag=etag, version=etag)
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _s3(self, uri: str, operation: str, **kwargs: Any) -> dict[str, Any]:
        """Return the reply to one S3 operation without a body either way."""
        call = methodcaller("_call_s3", operation, **kwargs)
        return cast("dict[str, Any]", self._retry(uri, lambda: self._run(call, self.timeout_s)))

    def _run(self, call: Callable[[Any], Any], timeout_s: float) -> Any:
        from fsspec.asyn import sync

        fs = _filesystem(self.options, self.timeout_s, 1, os.getpid())
        return sync(fs.loop, call, fs, timeout=timeout_s)

    def _get(self, uri: str, start: int, length: int | None, etag: str | None = None) -> bytes:
        """Return bytes [start, start + length) of an object, fewer at its end."""
        bucket, key = _split(uri)
        kwargs = {"Bucket": bucket, "Key": key, **({"IfMatch": f'"{etag}"'} if etag else {})}
        if length is not None or start:
            # at least one byte, so that even a read of nothing notices a missing object
            kwargs["Range"] = f"bytes={start}-" + ("" if length is None else str(start + max(length, 1) - 1))

        async def get(fs: Any) -> bytes:
            reply = await fs._call_s3("get_object", **kwargs)
            body = reply["Body"]
            try:
                data = bytearray()
                while length is None or len(data) < length:  # a server may ignore the range and send all
                    chunk = await body.read(2**20 if length is None else min(2**20, length - len(data)))
                    if not chunk:
                        break
                    data += chunk
            finally:
                body.close()
            if len(data) < min(int(reply["ContentLength"]), len(data) if length is None else length):
                raise TransientStorageError(f"{uri}: the reply ended after {len(data)} bytes")
            return bytes(data)

        try:
            return cast(bytes, self._retry(uri, lambda: self._run(get, self.timeout_s)))
        except OutOfRangeError:
            return b""

    def _head(self, uri: str) -> dict[str, Any]:
        bucket, key = _split(uri)
        try:
            return self._s3(uri, "head_object", Bucket=bucket, Key=key)
        except (NotFoundError, TransientStorageError):
            raise
        except StorageError:
            self._get(uri, 0, 1)  # a reply to HEAD has no body, so it can't say why; this one can
            raise

    def _put(self, source: Path | bytes, uri: str, settings: dict[str, Any]) -> bool:
        """Write an object by one PutObject. False: the condition among the settings does not hold.

        Never multipart: some servers ignore the condition there (reference/io.md, part 1).
        """
        bucket, key = _split(uri)
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size > MAX_PUT_BYTES:
            raise StorageError(f"{uri}: {size} bytes exceed one S3 PUT (5 GiB); use a smaller shard_rows")

        settings = {**settings, "ContentMD5": base64.b64encode(local.md5(source)).decode()}

        def put() -> bool:
            with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as body:

                async def call(fs: Any) -> Any:
                    return await fs._call_s3("put_object", Bucket=bucket, Key=key, Body=body, **settings)

                self._run(call, self.timeout_s + size / _SLOWEST_UPLOAD)
            return True

        try:
            return self._retry(uri, put)
        except ExistsError:
            return False


class _RemoteFile(io.RawIOBase):
    """An S3 object as a file; each read is one ranged GET of the version that was opened."""

    def __init__(self, storage: Storage, info: ObjectInfo) -> None:
        super().__init__()
        self._storage, self._info, self._at = storage, info, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._info.size}[whence])
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._info.size - self._at)
        length = left if size is None or size < 0 else min(size, left)
        if not length:
            return b""
        try:
            data = self._storage._get(self._info.uri, self._at, length, self._info.etag)
        except ExistsError:
            raise TransientStorageError(f"{self._info.uri}: was replaced while it was read; read it again") from None
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        return self.read(-1)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


@lru_cache(maxsize=16)
def _filesystem(options: StorageOptions, timeout_s: float, tries: int, pid: int) -> Any:
    """Return the s3fs filesystem of this process; `tries` is how often s3fs itself may try a read."""
    from s3fs import S3FileSystem

    fs = S3FileSystem(
        endpoint_url=options.endpoint_url,
        client_kwargs={"region_name": options.region} if options.region else {},
        config_kwargs={
            "connect_timeout": min(timeout_s, 10.0),
            "read_timeout": timeout_s,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "max_pool_connections": 256,  # botocore's default of 10 would queue a worker's fetches
            # what S3-compatible servers understand
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
        default_cache_type="none",
        use_listings_cache=False,
        skip_instance_cache=True,
        **({"profile": options.profile} if options.profile else {}),
    )
    fs.retries = tries
    return fs


def _split(uri: str, *, folder: bool = False) -> tuple[str, str]:
    """Return bucket and key; for a folder the key ends in a slash, or is empty for the whole bucket."""
    bucket, _, key = uri[5:].partition("/")
    if "@" in bucket or (":" in bucket and not bucket.startswith("arn:")):  # botocore would quote it in its message
        raise StorageError(f"{uri}: holds a user or a password; credentials come from the environment or a profile")
    if folder:
        key = key.rstrip("/")
        return bucket, f"{key}/" if key else ""
    if not bucket or not key:
        raise NotFoundError(f"{uri}: names no object; expected s3://bucket/key")
    return bucket, key


def _etag(reply: dict[str, Any]) -> str | None:
    etag = reply.get("ETag")
    return str(etag).strip('"') if etag else None


def _path(uri: str) -> str:
    return normalize(uri) if "://" in uri else uri
