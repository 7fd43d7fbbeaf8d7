"""Faults at one storage call of a run, and a list of all the calls that a run makes.

`Storage._retry` stands between every verb of storage and what it does, so that is where faults come in: below it are
the system and the server, above it is everything that annotator makes of an answer.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from annotator import faults, local, rounds
from annotator.errors import AnnotatorError
from annotator.faults import translate
from annotator.job import Job
from annotator.storage import Storage

WRITES = ("create", "replace", "replace_if")
TIMEOUT_S = 1.0  # of a try on S3; a test must not wait for half a minute

# What a disk or a network file system answers, by the name of what S3 would say.
ERRNO = {
    "500": errno.EIO,
    "503": errno.EAGAIN,
    "reset": errno.ECONNRESET,
    "timeout": errno.ETIMEDOUT,
    "forbidden": errno.EACCES,
    "missing": errno.ENOENT,
    "full": errno.ENOSPC,
    "read_only": errno.EROFS,
}


@dataclass(frozen=True, order=True)
class Call:
    """A call of storage: the nth of this verb for this uri in a run. Threads may change their order, not these."""

    verb: str
    uri: str
    nth: int

    def __str__(self) -> str:
        return f"{self.verb} {self.uri} #{self.nth}"


@dataclass(frozen=True)
class Fault:
    """What befalls a call.

    before, after             the process is killed, for real, before the call or when it is done
    half, unlinked, linked    it is killed amid a write: half the temporary file is there; all of it; the file as well
    passing                   three tries fail, in three ways, the fourth succeeds
    staying                   all tries fail, in four ways
    lost                      the call is done and its reply lost, once
    lost_staying              the same, and all further tries fail
    short                     every read of a file gives fewer bytes than asked for
    forbidden, missing, full, read_only    that answer, at every try
    """

    call: Call
    kind: str

    def __str__(self) -> str:
        return f"{self.kind} at {self.call}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Fault:
        return Fault(Call(**data["call"]), data["kind"])


class Injector:
    """Stands in for `Storage._retry` in this process; a process injects once and is thrown away."""

    def __init__(self, job: Job, fault: Fault | None) -> None:
        self.calls: list[Call] = []
        self.was_hit = False
        self._fault = fault
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self._places = {job.output: "OUT", str(Path(job.manifest).parent): "IN"}
        self._retry: Callable[..., Any] = Storage._retry

    def install(self) -> None:
        injector = self

        def retry(self: Storage, uri: str, call: Callable[[], Any]) -> Any:
            return injector._serve(self, uri, call, _verb())

        run = Storage._run
        Storage._retry = retry  # type: ignore[method-assign]
        Storage._run = lambda self, call, timeout_s: run(self, call, min(timeout_s, TIMEOUT_S))  # type: ignore[method-assign]
        faults._FIRST_PAUSE_S = faults._LONGEST_PAUSE_S = 0.001
        rounds.PATIENCE_S = 0.0

    def _serve(self, store: Storage, uri: str, call: Callable[[], Any], verb: str) -> Any:
        with self._lock:
            name = self._name(uri)
            self._counts[verb, name] += 1
            this = Call(verb, name, self._counts[verb, name])
            self.calls.append(this)
        if self._fault is None or this != self._fault.call:
            return self._retry(store, uri, call)
        self.was_hit = True
        return self._retry(store, uri, _faulty(self._fault.kind, call, uri))

    def _name(self, uri: str) -> str:
        for place, name in self._places.items():
            if uri.startswith(place):
                return re.sub(r"/runs/.+", "/runs/ID.json", name + uri[len(place) :])
        return uri


def _verb() -> str:
    """Return the verb of storage that called `_retry`, whatever helper of it did."""
    frame = sys._getframe(2)
    while frame.f_code.co_name in ("_s3", "_get", "_put", "_head") and frame.f_back is not None:
        frame = frame.f_back
    return {"_list_local": "list", "_list_s3": "list"}.get(frame.f_code.co_name, frame.f_code.co_name)


def die() -> NoReturn:
    """End this process as `kill -9` does: nobody cleans up."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def _faulty(kind: str, call: Callable[[], Any], uri: str) -> Callable[[], Any]:
    """Return what stands in for the call; it is called once a try."""
    tries = 0

    def serve() -> Any:
        nonlocal tries
        tries += 1
        if kind == "before":
            die()
        if kind == "after":
            with contextlib.suppress(Exception):  # "there is no such file" is an answer too
                call()
            die()
        if kind in ("half", "unlinked", "linked"):
            _dying(kind, call)
        if kind == "passing" and tries <= 3:
            _fail(("500", "503", "reset")[tries - 1], uri)
        if kind == "staying":
            _fail(("timeout", "500", "503", "reset")[(tries - 1) % 4], uri)
        if kind in ("lost", "lost_staying") and tries == 1:
            call()
            _fail("reset", uri)
        if kind == "lost_staying":
            _fail("timeout", uri)
        if kind in ERRNO:
            _fail(kind, uri)
        return _in_short_reads(call) if kind == "short" else call()

    return serve


def _fail(name: str, uri: str) -> NoReturn:
    error = OSError(ERRNO[name], os.strerror(ERRNO[name]))
    known = translate(error, uri)
    assert isinstance(known, AnnotatorError)  # the fault is one that annotator should know
    raise error


def _dying(kind: str, call: Callable[[], Any]) -> NoReturn:
    """Make the call and die amid it."""
    if kind == "half":
        local._write_temporary = _write_half
    elif kind == "unlinked":
        for name in ("link", "replace"):
            setattr(os, name, lambda *_, **__: die())
    else:
        setattr(os, "unlink", lambda *_, **__: die())  # noqa: B010
        setattr(local, "_sync_folder", lambda _: die())  # noqa: B010
    call()
    raise AssertionError(f"{kind}: the call came to its end")


def _write_half(source: Path | bytes, output: str) -> str:
    folder = Path(output, "_annotator", "tmp")
    folder.mkdir(parents=True, exist_ok=True)
    data = source if isinstance(source, bytes) else source.read_bytes()
    (folder / "half").write_bytes(data[: len(data) // 2])
    die()


def _in_short_reads(call: Callable[[], Any]) -> Any:
    """Make the call with files that give half of what a read asks for."""
    real = os.fdopen

    class Short(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            view = memoryview(buffer)
            return super().readinto(view[: max(1, len(view) // 2)])

        def readall(self) -> bytes:
            return io.RawIOBase.readall(self)

        def read(self, size: int | None = -1) -> bytes:
            return io.RawIOBase.read(self, -1 if size is None else size)

    def fdopen(number: int, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return io.BufferedReader(Short(number, "rb")) if mode == "rb" else real(number, mode, *args, **kwargs)

    os.fdopen = fdopen  # type: ignore[assignment]
    try:
        return call()
    finally:
        os.fdopen = real
