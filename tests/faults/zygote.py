"""Runs of annotator in processes of their own, by the hundred: each is forked from one that has everything loaded.

A process that is killed leaves what a killed process leaves, no more is cleaned up and no cache survives; starting
Python and torch anew each time would take seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from annotator.job import Job
from tests.faults.inject import Call, Fault

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `done`, `killed`, or the name of annotator's error. `calls` are those it made of storage."""

    ended: str
    exit_code: int = 0
    message: str = ""
    was_hit: bool = False
    is_whole: bool | None = None
    calls: tuple[Call, ...] = ()


class Zygote:
    """A process that forks one run at a time. Use from one thread at a time."""

    def __init__(self, warm_up: Job) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._send({"warm_up": warm_up.model_dump(mode="json")})

    def run(
        self,
        job: Job,
        fault: Fault | None = None,
        *,
        verify: bool = False,
        retry: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        started: Callable[[int], None] | None = None,
    ) -> Outcome:
        """Run a job in a new process, and verify its output if it was done. `started` is told the process's id.

        `retry` labels rows with these error classes again instead.
        """
        fault_data = fault.to_dict() if fault is not None else None
        request = {"job": job.model_dump(mode="json"), "fault": fault_data, "verify": verify, "retry": retry}
        self._send({**request, "environment": environment or {}})
        pid = self._receive()["pid"]
        if started is not None:
            started(pid)
        data = self._receive()
        return Outcome(**{**data, "calls": tuple(Call(**call) for call in data.pop("calls", ()))})

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe(self._process.stdin).close()
        self._process.wait(timeout=30)
        self._pipe(self._process.stdout).close()

    def _send(self, request: dict[str, Any]) -> None:
        pipe = self._pipe(self._process.stdin)
        pipe.write(json.dumps(request) + "\n")
        pipe.flush()

    def _receive(self) -> dict[str, Any]:
        line = self._pipe(self._process.stdout).readline()
        if not line:
            raise AssertionError(f"the zygote ended with {self._process.wait(timeout=10)}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


class Zygotes:
    """Several of them, for as many runs at once."""

    def __init__(self, zygotes: list[Zygote]) -> None:
        self.all = zygotes
        self._free: queue.SimpleQueue[Zygote] = queue.SimpleQueue()
        for zygote in zygotes:
            self._free.put(zygote)

    @contextlib.contextmanager
    def one(self) -> Iterator[Zygote]:
        zygote = self._free.get()
        try:
            yield zygote
        finally:
            self._free.put(zygote)

    def map(self, call: Callable[[Zygote, Any], Any], items: Iterable[Any]) -> list[Any]:
        """Return call(zygote, item) of every item, as many at once as there are zygotes."""

        def one(item: Any) -> Any:
            with self.one() as zygote:
                return call(zygote, item)

        with ThreadPoolExecutor(len(self.all)) as pool:
            return list(pool.map(one, items))


@contextlib.contextmanager
def zygotes(count: int, warm_up: Callable[[int], Job]) -> Iterator[Zygotes]:
    """Yield that many, each warmed up by a job of its own."""
    found: list[Zygote] = []
    try:
        for index in range(count):
            found.append(Zygote(warm_up(index)))
        yield Zygotes(found)
    finally:
        for zygote in found:
            zygote.close()


# -- in the zygote --------------------------------------------------------------------------------


def _serve(requests: IO[str], replies: IO[str]) -> None:
    import cv2
    import torch

    import annotator
    from annotator import cluster

    torch.set_num_threads(1)
    cv2.setNumThreads(1)  # a pool of threads would not be there after a fork
    cluster.CALLS_PER_WORKER = 1  # two shards at once would race for what is cached, and calls would differ
    for line in requests:
        request = json.loads(line)
        if "warm_up" in request:
            job = Job.model_validate(request["warm_up"])
            annotator.run(job, ray=False)
            annotator.verify(job.output)
            alone = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
            assert not alone, f"threads that no fork would have: {alone}"
            continue
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reading)
            _child(request, writing)
        os.close(writing)
        _reply(replies, {"pid": pid})
        with os.fdopen(reading) as outcome:
            text = outcome.read()
        _, status = os.waitpid(pid, 0)
        killed = {"ended": "killed", "exit_code": -os.WTERMSIG(status), "was_hit": True}
        _reply(replies, killed if os.WIFSIGNALED(status) else json.loads(text))


def _reply(replies: IO[str], data: dict[str, Any]) -> None:
    replies.write(json.dumps(data) + "\n")
    replies.flush()


def _child(request: dict[str, Any], writing: int) -> None:
    """Run the job, say how it ended, and end."""
    try:
        outcome = _run(request)
    except BaseException:
        outcome = {"ended": "bug", "exit_code": 1, "message": traceback.format_exc()[-3000:]}
    with os.fdopen(writing, "w") as file:
        json.dump(outcome, file)
    os._exit(0)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    import annotator
    from annotator.errors import AnnotatorError
    from annotator.storage import Storage
    from tests.faults.inject import Injector

    job = Job.model_validate(request["job"])
    os.environ.update(request["environment"])
    injector = Injector(job, Fault.from_dict(request["fault"]) if request["fault"] else None)
    injector.install()
    data: dict[str, Any] = {"ended": "done"}
    try:
        if request["retry"]:
            annotator.retry(job.output, request["retry"], job=job, ray=False)
        else:
            annotator.run(job, ray=False)
    except AnnotatorError as err:
        data = {"ended": type(err).__name__, "exit_code": err.exit_code, "message": str(err)}
    data |= {"was_hit": injector.was_hit, "calls": [vars(call) for call in injector.calls]}
    if request["verify"] and data["ended"] == "done":
        data["is_whole"] = annotator.verify(job.output, Storage(options=job.storage)).ok
    return data


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not pass for a reply
    _serve(sys.stdin, channel)
