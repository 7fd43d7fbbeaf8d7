"""Label files checked in processes of their own, for outputs of many of them.

Why not threads alone (2026-11): judging a label file is a hundred short calls into Arrow, OpenCV and numpy, and
threads that all want Python's lock between them take longer than one (two cores, small maps: 1.5 times as long).
Why not `multiprocessing`: it runs the caller's main module again, which a script without a guard does not survive.
A file that crashes its reader costs that file only.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO

from annotator.labels.check import Result, check_file
from annotator.labels.scan import LabelFile, map_bounded
from annotator.storage import Storage, is_local

FEW_FILES = 500
"""So many files are checked here, by threads: starting processes takes longer."""

_CHUNK = 32
_REMOTE_THREADS = 8  # of each process, to wait for storage

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


def check_files(
    storage: Storage, files: Iterable[LabelFile], *, deep: bool = False
) -> Iterator[tuple[LabelFile, Result]]:
    """Yield each label file and what was found in it, in order, on all processors."""
    waiting = iter(files)
    few = list(islice(waiting, FEW_FILES))
    yield from map_bounded(partial(check_file, storage, deep=deep), few, threads=_threads(few))
    chunks = iter(lambda: list(islice(waiting, _CHUNK)), [])
    first = next(chunks, None)
    if first is None:
        return
    processors = os.cpu_count() or 1
    with _children(processors) as children:

        def check(chunk: list[LabelFile]) -> list[Result]:
            child = children.get()
            try:
                return _ask(child, storage, chunk, deep)
            finally:
                children.put(child)

        def all_chunks() -> Iterator[list[LabelFile]]:
            yield first
            yield from chunks

        for chunk, results in map_bounded(check, all_chunks(), threads=processors):
            yield from zip(chunk, results, strict=True)


def _threads(files: Sequence[LabelFile]) -> int | None:
    """Return how many threads to read files with: no more than processors where storage answers at once."""
    return (os.cpu_count() or 1) if all(is_local(file.info.uri) for file in files) else None


class _Child:
    """One process that checks label files, started when first asked and again after a crash."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, order: tuple[Storage, Sequence[LabelFile], bool]) -> list[Result] | Exception:
        """Return the results, or the error that ended the check. Raises EOFError when the process died of it."""
        if self._process is None:
            path = os.pathsep.join(p for p in (_PACKAGE_ROOT, os.environ.get("PYTHONPATH")) if p)
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
            )
        pipes = self._process.stdin, self._process.stdout
        assert pipes[0] is not None and pipes[1] is not None
        try:
            pickle.dump(order, pipes[0])
            pipes[0].flush()
            reply: list[Result] | Exception = pickle.load(pipes[1])
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            self.close()
            raise EOFError from None
        return reply

    def close(self) -> None:
        """End the process, which has nothing to lose."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@contextmanager
def _children(num: int) -> Iterator[queue.SimpleQueue[_Child]]:
    all_of_them = [_Child() for _ in range(num)]
    idle: queue.SimpleQueue[_Child] = queue.SimpleQueue()
    for child in all_of_them:
        idle.put(child)
    try:
        yield idle
    finally:
        for child in all_of_them:
            child.close()


def _ask(child: _Child, storage: Storage, chunk: Sequence[LabelFile], deep: bool) -> list[Result]:
    """Return what a child finds; a file that kills it is found out and named."""
    try:
        reply = child.ask((storage, chunk, deep))
    except EOFError:
        if len(chunk) == 1:
            problem = (
                "unreadable",
                "reading it ended the process that read it; restore it, or delete it and run again",
            )
            return [Result(problems=[problem])]
        return [result for file in chunk for result in _ask(child, storage, [file], deep)]
    if isinstance(reply, Exception):
        raise reply
    return reply


def _serve(orders: IO[bytes], replies: IO[bytes]) -> None:
    """Answer orders until there are no more."""
    while True:
        try:
            storage, files, deep = pickle.load(orders)
        except EOFError:
            return
        threads = 1 if all(is_local(file.info.uri) for file in files) else _REMOTE_THREADS
        try:
            results = map_bounded(partial(check_file, storage, deep=deep), files, threads=threads)
            reply: list[Result] | Exception = [result for _, result in results]
        except Exception as err:  # told to whoever asked, and raised there
            reply = err
        pickle.dump(reply, replies)
        replies.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asking process ends us
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not pass for an answer
    _serve(sys.stdin.buffer, answers)
