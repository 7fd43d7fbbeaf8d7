"""One run, disturbed by a schedule that a seed draws, and what came of it."""

from __future__ import annotations

import io
import json
import os
import random
import re
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

import annotator
from annotator.cluster import CALLS_PER_WORKER
from annotator.stages.encode import Spool
from annotator.storage import Storage
from tests.chaos.cluster import Nodes, go_on, owns, raylet, stop, three_nodes, wait_until
from tests.chaos.proxy import Proxy
from tests.chaos.servers import Server

TASKS = ("seg", "depth", "normal")
COUNT, SHARD_ROWS = 240, 4
WORKERS = 2  # on three nodes of one CPU: Ray starts a worker again only where a CPU is free
SHARDS = COUNT // SHARD_ROWS
IN_FLIGHT = WORKERS * CALLS_PER_WORKER

KINDS = (
    "driver killed",
    "worker killed",
    "node lost",
    "worker stopped",
    "server restarted",
    "throttled",
    "slow replies",
    "replies lost",
)
MORE = ("driver killed", "worker killed", "throttled")
"""A schedule has each of KINDS once, and two of these on top."""

PUT_S, OTHERS_PUT_S = 0.4, 10.0
"""How much longer a commit takes; those of others while a stopped worker's shard is done again."""

LONGEST_S = 400.0


@dataclass(frozen=True)
class Event:
    """What happens once so many label files are there."""

    commits: int
    kind: str


def schedule(seed: int) -> tuple[Event, ...]:
    """Return the events of a seed, in order; the last one comes while a quarter of the work is still to do."""
    rng = random.Random(seed)
    kinds = [*KINDS, *rng.choices(MORE, k=2)]
    rng.shuffle(kinds)
    commits = sorted(rng.sample(range(3, SHARDS * len(TASKS) * 3 // 4), len(kinds)))
    return tuple(map(Event, commits, kinds))


@dataclass(kw_only=True)
class Result:
    """What a disturbed run came to.

    executions   how often work on a shard was begun, over all shards; `most` is that of one shard
    exits        how the drivers that nobody killed ended
    late         label files that a stopped worker tried to create when others had
    strays       processes and spool folders that were left when all was over
    report       what the last driver told, and `began`: the images that it found to do
    """

    seed: int
    events: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    differences: int = 0
    executions: int = 0
    most: int = 0
    late: int = 0
    exits: list[int] = field(default_factory=list)
    verified: bool = False
    strays: list[str] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    began: int = 0
    seconds: float = 0.0

    @property
    def bound(self) -> int:
        """Executions that the events explain: each one can cost what is in flight."""
        return SHARDS + IN_FLIGHT * sum(self.events.values())

    @property
    def _told(self) -> int:
        return int(self.report.get("images", 0)) + int(self.report.get("found", 0))

    @property
    def problems(self) -> list[str]:
        """What is not as promised."""
        wanted = SHARDS * SHARD_ROWS * len(TASKS)
        found = {
            f"{self.rows} rows, {wanted} expected": self.rows != wanted,
            f"{self.differences} rows differ from the undisturbed run's": self.differences > 0,
            "verify found problems": not self.verified,
            f"{self.executions} executions, {self.bound} can be explained": self.executions > self.bound,
            f"a shard was executed {self.most} times": self.most > 1 + sum(self.events.values()),
            f"no stopped worker came too late: {self.late}": self.late < self.events["worker stopped"],
            f"left running: {self.strays}": bool(self.strays),
            f"events that did not happen: {set(KINDS) - set(self.events)}": not set(KINDS) <= set(self.events),
            f"the last driver found {self.began} images to do and told of {self._told}": self.began != self._told,
            f"exit codes {self.exits}": not set(self.exits) <= {0, 4, 5} or self.exits[-1:] != [0],
        }
        return [problem for problem, is_so in found.items() if is_so]


class Chaos:
    """Disturbs one run of a job; use once."""

    def __init__(self, job: annotator.Job, nodes: Nodes, server: Server, proxy: Proxy, folder: Path, seed: int) -> None:
        self._job, self._nodes, self._server, self._proxy = job, nodes, server, proxy
        self._folder, self._random = folder, random.Random(seed)
        self._driver: subprocess.Popen[str] | None = None
        self.result = Result(seed=seed)

    def run(self) -> Result:
        """Run the job to its end, whatever happens to it."""
        start = time.monotonic()
        self._proxy.put_s = PUT_S
        try:
            self._start()
            for event in schedule(self.result.seed):
                self._wait(lambda event=event: len(self._proxy.commits) >= event.commits)
                self._say(event.kind)
                if self._do(event.kind):
                    self.result.events[event.kind] += 1
            self._proxy.put_s = 0.0
            self._wait(lambda: self.result.exits[-1:] == [0])
            wait_until(lambda: not self._nodes.workers(), "Ray lets the workers go")
        except Exception:
            self._say(f"the driver's last words: {self._last_words()}")
            raise
        finally:
            self._end()
        self.result.seconds = time.monotonic() - start
        self.result.executions = sum(self._proxy.begun.values())
        self.result.most = max(self._proxy.begun.values())
        return self.result

    def _say(self, text: str) -> None:
        print(f"seed {self.result.seed}: {len(self._proxy.commits)} files: {text}", file=sys.stderr, flush=True)

    # -- the driver -------------------------------------------------------------------------------

    def _start(self) -> None:
        path = self._folder / "job.json"
        path.write_text(self._job.model_dump_json(exclude_defaults=True))  # JSON is YAML
        command = [sys.executable, "-m", "annotator.cli", "run", str(path), "--address", self._nodes.address, "--json"]
        with (self._folder / "driver.err").open("a") as err, (self._folder / "driver.out").open("w") as out:
            self._driver = subprocess.Popen(command, stdout=out, stderr=err, text=True)

    def _wait(self, condition: Any) -> None:
        """Wait for the condition; a driver that ends with work left is started again, as a person would."""

        def is_so() -> bool:
            assert self._driver is not None
            code = self._driver.poll()
            if code is not None and self.result.exits[-1:] != [0]:
                self.result.exits.append(code)
                self._say(f"the driver ended with {code}")
                if code in (4, 5) and len(self.result.exits) < 8:
                    self._start()
                elif code != 0:
                    raise RuntimeError(f"the driver ended with {code}: {self._last_words()}")
            return bool(condition()) or self.result.exits[-1:] == [0]

        wait_until(is_so, "the run goes on", LONGEST_S)

    def _last_words(self) -> str:
        return (self._folder / "driver.err").read_text()[-2000:]

    def _end(self) -> None:
        self._proxy.on_commit = lambda path, port: False
        if self._driver is not None:
            self._driver.kill()
            self._driver.wait()
        with suppress(ValueError):  # it told nothing
            self.result.report = json.loads((self._folder / "driver.out").read_text())
            log = (self._folder / "driver.err").read_text()
            self.result.began = int(re.findall(r"^round 1: (\d+) images", log, re.MULTILINE)[-1])

    # -- events -----------------------------------------------------------------------------------

    def _do(self, kind: str) -> bool:
        """Let an event happen; return whether it did."""
        if kind == "driver killed":
            return self._kill_driver()
        if kind == "worker killed":
            return self._kill_worker()
        if kind == "node lost":
            return self._lose_node()
        if kind == "worker stopped":
            return self._stop_worker()
        if self._is_over():
            return False
        if kind == "server restarted":
            self._server.restart(pause_s=self._random.uniform(2, 6))
            return True
        fault, share, seconds = {
            "throttled": ("slow_down", 0.4, self._random.uniform(4, 8)),
            "slow replies": ("slow", 0.3, 4.0),
            "replies lost": ("lost", 0.2, 4.0),
        }[kind]
        before = self._proxy.hits[fault]
        self._proxy.disturb(fault, share=share, seconds=LONGEST_S)  # a driver that starts asks for nothing yet
        self._wait(lambda: self._proxy.hits[fault] > before)
        self._proxy.disturb(fault, share=share, seconds=seconds)
        return self._proxy.hits[fault] > before

    def _is_over(self) -> bool:
        return self._driver is None or self._driver.poll() is not None

    def _kill_driver(self) -> bool:
        assert self._driver is not None
        if self._driver.poll() is not None:
            return False
        workers = self._nodes.workers()
        self._driver.kill()
        self._driver.wait()
        self._start()
        wait_until(lambda: not set(workers) & set(self._nodes.workers()), "a killed driver's workers end")
        return True

    def _kill_worker(self) -> bool:
        self._wait(lambda: bool(self._nodes.workers()))
        workers = self._nodes.workers()
        if workers:
            self._random.choice(workers).kill()
        return bool(workers)

    def _lose_node(self) -> bool:
        self._wait(lambda: bool(self._nodes.workers(self._nodes.others)))
        busy = [node for node in self._nodes.others if self._nodes.workers([node])]
        self._nodes.lose(self._random.choice(busy or self._nodes.others))
        time.sleep(self._random.uniform(0, 5))
        self._nodes.add()
        return True

    def _stop_worker(self) -> bool:
        """Stop a node amid a commit, as a paused machine is, until its shard has come in from elsewhere."""
        stopped: list[tuple[Any, psutil.Process, str]] = []

        def on_commit(path: str, port: int) -> bool:
            with self._proxy._lock:
                if stopped:
                    return False
                for node in self._nodes.others:
                    for worker in self._nodes.workers([node]):
                        if owns(worker, port):
                            stop(worker.pid, raylet(node))
                            stopped.append((node, worker, path))
                            return True
            return False

        self._proxy.on_commit = on_commit
        self._proxy.put_s = OTHERS_PUT_S  # the worker on the head must not do all that is left meanwhile
        self._wait(lambda: bool(stopped))
        self._proxy.on_commit = lambda path, port: False
        if not stopped:
            return False
        [(node, worker, path)] = stopped
        self._proxy.hurried = path.split("/", 1)[1]
        self._wait(lambda: path in self._proxy.commits)
        self._proxy.put_s = PUT_S
        late: list[str] = []
        self._proxy.on_late = lambda found, port: late.extend([found] * owns(worker, port))
        go_on(worker.pid)
        wait_until(lambda: path in late, "the stopped worker comes too late", 30)
        self.result.late += 1
        self._nodes.lose(node)
        self._nodes.add()
        return True


def tables(storage: Storage, output: str) -> dict[str, bytes]:
    """Return every label file by its path below labels/."""
    head = f"{output}/labels/"
    return {info.uri.removeprefix(head): storage.read(info.uri) for info in storage.list(head)}


def count_differences(ours: dict[str, bytes], theirs: dict[str, bytes]) -> int:
    """Return how many rows differ, are missing or are too many; a file that differs elsewhere counts as one."""
    count = 0
    for path in sorted({*ours, *theirs}):
        if ours.get(path) != theirs.get(path):
            one, other = (_rows(labels.get(path)) for labels in (ours, theirs))
            count += max(1, max(len(one), len(other)) - sum(a == b for a, b in zip(one, other, strict=False)))
    return count


def _rows(file: bytes | None) -> list[dict[str, Any]]:
    return [] if file is None else list(pq.read_table(io.BytesIO(file)).to_pylist())


@contextmanager
def marked() -> Iterator[str]:
    """Mark all processes that are started meanwhile, by their environment."""
    mark = uuid.uuid4().hex
    os.environ["CHAOS"] = mark
    try:
        yield mark
    finally:
        del os.environ["CHAOS"]


def strays(mark: str) -> list[str]:
    """Return the processes that bear the mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("CHAOS") == mark and process.pid != os.getpid():
                found.append(f"{process.pid} {' '.join(process.cmdline())[:100]}")
    return found


def again(seed: int) -> str:
    """Return the command that runs this seed's schedule again."""
    return f"make chaos SEEDS=1 FIRST={seed}"


def disturbed(
    job: annotator.Job, undisturbed: dict[str, bytes], server: Server, folder: Path, short: str, seed: int
) -> Result:
    """Run the job on a cluster of its own while the seed's events happen; compare with the undisturbed labels.

    Logs and spool go to the folder, what is Ray's to one of a `short` name: socket paths have 107 bytes.
    """
    print(f"seed {seed}; again: {again(seed)}", file=sys.stderr, flush=True)
    proxy = Proxy(server.url, seed=seed, shard_rows=SHARD_ROWS)
    job = job.model_copy(update={"storage": job.storage.model_copy(update={"endpoint_url": proxy.url})})
    with proxy.running(), marked() as mark:
        with three_nodes(short) as nodes:
            chaos = Chaos(job, nodes, server, proxy, folder, seed)
            result = chaos.run()
        with suppress(TimeoutError):
            wait_until(lambda: not strays(mark), "all processes end", 20)
        Spool(str(folder / "spool")).close()  # the next worker's: it removes what a killed one left
        result.strays = strays(mark) + [str(path) for path in (folder / "spool").iterdir()]
    storage = Storage(options=job.storage.model_copy(update={"endpoint_url": server.url}))
    labels = tables(storage, job.output)
    result.rows = sum(pq.read_metadata(io.BytesIO(data)).num_rows for data in labels.values())
    result.differences = count_differences(undisturbed, labels)
    result.verified = bool(annotator.verify(job.output, storage).ok)
    return result
