"""Local files: plain reads, folder scans, and the create and replace that a commit rests on.

Why a lock to replace (2026-11): no call of a file system renames only if the target is unchanged. Replacers that
name a version take turns at one lock file of the output; it is held while one compares and renames.

Why a hard link (2026-11): `open("x")` shows half a file to readers until it is written, and `rename`
overwrites. A link to a finished, synced file is the one call that is both whole and first-come. NFS has it
as well; object-store mounts and some overlay filesystems do not, and are refused with the reason.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from annotator.errors import NotFoundError
from annotator.faults import no_hard_link

_LOCK_S = 10.0  # for a rename and two syncs of those who wait before us


def open_plain(path: str) -> int:
    """Return a file descriptor of a plain file; a pipe or device would block or never end."""
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise NotFoundError(f"{path}: is not a file")
    return number


def resolve(path: str) -> str:
    """Return the path with symbolic links resolved, as far as it exists."""
    try:
        return os.path.realpath(path, strict=True)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return os.path.realpath(path)  # other errors must not pass for "no link": what they hide is not known


def read_plain(path: str, start: int, length: int | None) -> bytes:
    with os.fdopen(open_plain(path), "rb") as file:
        file.seek(start)
        return file.read(-1 if length is None else length)


def md5(source: Path | bytes) -> bytes:
    """Return the MD5 digest of bytes or of a file."""
    digest = hashlib.md5(usedforsecurity=False)
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as body:
        while part := body.read(2**20):
            digest.update(part)
    return digest.digest()


def scan(path: str) -> list[tuple[str, bool, os.stat_result]]:
    """Return (name, is a folder, status) of a folder's files and folders, links followed, in the order of uris."""
    found = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # gone by now, or a link to nowhere
                    status = entry.stat()
                    if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
                        found.append((entry.name, stat.S_ISDIR(status.st_mode), status))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda item: item[0] + "/" * item[1])


def _write_temporary(source: Path | bytes, output: str) -> str:
    """Write source to a new file in the output's `_annotator/tmp`, durably, and return its path."""
    folder = os.path.join(output, "_annotator", "tmp")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, uuid.uuid4().hex)
    try:
        with open(path, "xb") as file:
            if isinstance(source, bytes):
                file.write(source)
            else:
                with open(source, "rb") as body:
                    shutil.copyfileobj(body, file, 2**20)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise
    return path


def create(source: Path | bytes, path: str, output: str) -> bool:
    if os.path.lexists(path):  # spares the copy; the link below decides
        return False
    temporary = _write_temporary(source, output)
    try:
        folder = _make_folder(os.path.dirname(path))
        try:
            os.link(temporary, path)
        except FileExistsError:
            return os.stat(temporary).st_nlink > 1  # NFS: linked, and the reply was lost
        except OSError as err:
            raise (no_hard_link(err, path) or err) from None
        _sync_folder(folder)
        return True
    finally:
        os.unlink(temporary)


def replace(source: Path | bytes, path: str, output: str) -> None:
    temporary = _write_temporary(source, output)
    try:
        folder = _make_folder(os.path.dirname(path))
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def version(status: os.stat_result) -> str:
    """Return what tells a file from any that replaced it. Not its time of change: a link to it changes that."""
    return f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"


def replace_if(source: Path | bytes, expected: str, path: str, output: str) -> bool:
    temporary = _write_temporary(source, output)
    try:
        with _locked(os.path.join(output, "_annotator", "replace.lock")):
            try:
                if version(os.stat(path)) != expected:
                    return False
            except FileNotFoundError:
                return False
            os.replace(temporary, path)
            _sync_folder(os.path.dirname(path))
            return True
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold a lock that other processes and threads wait for. Raises BlockingIOError when one has it for too long."""
    end = time.monotonic() + _LOCK_S
    with open(path, "ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # dropped when the file is closed, or its holder dies
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise BlockingIOError(errno.EAGAIN, f"{path} is locked by a process that does not go on") from None
                time.sleep(0.01)
        yield


def sweep(output: str, older_than_s: float) -> None:
    """Remove what killed writers left in the output's `_annotator/tmp`: files that nobody wrote to for so long."""
    oldest = time.time() - older_than_s
    for name, is_folder, status in scan(os.path.join(output, "_annotator", "tmp")):
        if not is_folder and status.st_mtime < oldest:
            with suppress(FileNotFoundError, PermissionError):  # another user's: not ours to remove
                os.unlink(os.path.join(output, "_annotator", "tmp", name))


def _make_folder(path: str) -> str:
    """Make a folder and its parents, each durably, and return it."""
    if not os.path.isdir(path):
        parent = _make_folder(os.path.dirname(path))
        os.makedirs(path, exist_ok=True)
        _sync_folder(parent)
    return path


def _sync_folder(path: str) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
