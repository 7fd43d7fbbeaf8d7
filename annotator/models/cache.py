"""Where a checkpoint's bytes lie on this machine: local files as they are, s3:// ones fetched once per node.

    $XDG_CACHE_HOME/annotator/checkpoints/<key>/weights      the bytes
                                               /digest.json  their size and sha256, written when they were whole
                                         lock                held while one process fetches or makes room

The key is a digest of uri, size and etag, so a replaced object is another entry. A file that no longer has the
digest that it was fetched with is fetched again. Least recently used entries go when the cache is over its bound;
a process that has one mapped keeps it until it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from annotator.errors import CheckpointError, NotFoundError

if TYPE_CHECKING:
    from annotator.storage import ObjectInfo, Storage

CACHE_BYTES = 128 * 2**30  # all released v1 checkpoints in float32 are some 70 GB
_PART_BYTES = 16 * 2**20
_FETCHERS = 8
_REMEMBER_BYTES = 32 * 2**20


def local_copy(uri: str, storage: Storage | None = None) -> Path:
    """Return a local path that holds the checkpoint's bytes, fetching them if need be.

    Concurrent processes of one machine fetch once. Raises CheckpointError for a missing file and for a disk
    that is too full, and StorageError when storage fails.
    """
    from annotator.storage import Storage, is_local, normalize

    if is_local(uri):
        path = Path(normalize(uri))
        if path.is_dir():
            raise CheckpointError(f"{uri}: is a folder; expected a checkpoint file; name a file, or pass task and size")
        if not path.is_file():
            raise CheckpointError(f"{uri}: no such checkpoint; expected a .pth, .safetensors or .pt2 file")
        return path
    storage = storage or Storage()
    try:
        info = storage.info(normalize(uri))
    except NotFoundError:
        raise CheckpointError(f"{uri}: no such checkpoint; expected a .pth, .safetensors or .pt2 object") from None
    key = hashlib.sha256(f"{info.uri}\n{info.size}\n{info.etag}".encode()).hexdigest()[:32]
    folder = cache_folder("checkpoints") / key
    try:
        if not _is_whole(folder, info):
            with _locked(folder.parent / "lock"):
                if not _is_whole(folder, info):  # else another process fetched it meanwhile
                    shutil.rmtree(folder, ignore_errors=True)
                    _make_room(folder.parent, info)
                    _fetch(info, storage, folder)
        os.utime(folder)  # marks it as used
    except OSError as err:
        raise CheckpointError(
            f"{folder.parent}: can't keep {uri} there ({err.strerror}); repair the folder, or set XDG_CACHE_HOME"
        ) from err
    return folder / "weights"


def file_digest(uri: str, storage: Storage | None = None) -> str:
    """Return the sha256 of the checkpoint's bytes in hex; read in small pieces, once per file and process."""
    return _path_digest(local_copy(uri, storage))


def _path_digest(path: Path) -> str:
    status = path.stat()
    return _sha256(str(path), status.st_size, status.st_mtime_ns, status.st_ino)


@functools.lru_cache(maxsize=256)
def _sha256(path: str, size: int, mtime_ns: int, inode: int) -> str:
    """Return the digest of a file in this very state; the other arguments tell one state from another.

    Digests of large files are remembered on disk, so that a run with nothing to do needs no minute to say so.
    """
    if size < _REMEMBER_BYTES:
        return _read_sha256(path)
    state = hashlib.sha256(f"{path}\n{size}\n{mtime_ns}\n{inode}".encode()).hexdigest()[:32]
    memory = cache_folder("digests") / state
    with contextlib.suppress(OSError):
        known = memory.read_text(encoding="ascii")
        if len(known) == 64:
            return known
    digest = _read_sha256(path)
    with contextlib.suppress(OSError):  # a memory that can't be written costs time, nothing else
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary = memory.with_name(f"{state}.{os.getpid()}")
        temporary.write_text(digest, encoding="ascii")
        temporary.replace(memory)
    return digest


def _read_sha256(path: str) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(2**20))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def cache_folder(name: str) -> Path:
    """Return a folder of this machine's cache, made if need be. Raises CheckpointError where it can't be."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base) / "annotator" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise CheckpointError(
            f"{folder}: can't be created ({err.strerror}), and {name} are kept there; set XDG_CACHE_HOME"
        ) from None
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file's lock; the system lets go of it even when the process is killed."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_whole(folder: Path, info: ObjectInfo) -> bool:
    try:
        record = json.loads((folder / "digest.json").read_text(encoding="ascii"))
        weights = folder / "weights"
        sizes = {info.size, int(record["size"]), weights.stat().st_size}
        return len(sizes) == 1 and _path_digest(weights) == str(record["sha256"])
    except (OSError, ValueError, KeyError):
        return False


def _make_room(cache: Path, info: ObjectInfo) -> None:
    """Remove the least recently used entries until the new one fits the bound and the disk."""
    entries = sorted((e for e in cache.iterdir() if e.is_dir()), key=lambda e: e.stat().st_mtime)
    sizes = {e: sum(f.stat().st_size for f in e.iterdir()) for e in entries}
    while entries and (
        sum(sizes[e] for e in entries) + info.size > CACHE_BYTES or shutil.disk_usage(cache).free < info.size
    ):
        shutil.rmtree(entries.pop(0), ignore_errors=True)
    free = shutil.disk_usage(cache).free
    if free < info.size:
        raise CheckpointError(
            f"{cache}: {free / 1e9:.1f} GB free, and {info.uri} takes {info.size / 1e9:.1f}; "
            "make room, or set XDG_CACHE_HOME to a larger disk"
        )


def _fetch(info: ObjectInfo, storage: Storage, folder: Path) -> None:
    folder.mkdir()
    weights = folder / "weights"
    with weights.open("wb") as file, ThreadPoolExecutor(_FETCHERS) as pool:

        def fetch(start: int) -> None:
            with storage.open(info.uri, info) as source:
                source.seek(start)
                written = os.pwrite(file.fileno(), source.read(_PART_BYTES), start)
            if written != min(_PART_BYTES, info.size - start):
                raise CheckpointError(f"{info.uri}: {written} bytes came at {start}, fewer than expected; try again")

        for _ in pool.map(fetch, range(0, info.size, _PART_BYTES)):
            pass
        os.fsync(file.fileno())
    record = {"uri": info.uri, "size": info.size, "sha256": _path_digest(weights)}
    (folder / "digest.json").write_text(json.dumps(record), encoding="ascii")
