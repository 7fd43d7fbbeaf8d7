"""One measurement in a process of its own, so that its peak memory is its own: order in on stdin, result on stdout.

    bare     forward passes over one batch in device memory, network by network, and nothing else
    worker   the worker called directly: fetch to commit, no Ray
    job      `annotator.run`, on Ray or without

A job is measured from when all its workers are in full swing to when the first shard is missing that would keep
them so: the start of Ray, loading, compiling and the last shards are left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from annotator.cluster import CALLS_PER_WORKER
from annotator.errors import AnnotatorError, JobError
from annotator.job import Job
from annotator.planning import Plan
from annotator.preflight import has_gpu
from annotator.report import Report, Reporter
from annotator.session import KEEP_FREED
from annotator.watch import Silent

Kind = Literal["bare", "worker", "ray", "no-ray"]

_BARE_BATCHES = 10
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bare:
    """What the device does alone: seconds an input by network, and on what."""

    seconds: dict[str, float]
    batch_size: int
    dtype: str
    device: str
    threads: int
    peak_host_bytes: int
    peak_device_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a worker or a whole job did in its steady state; CPU in seconds an image.

    cpu_by_stage   of the worker, by stage; "other" is the rest of its process
    cpu_s          of the job's whole family of processes
    """

    images: int
    seconds: float
    cpu_by_stage: dict[str, float]
    cpu_s: float
    bytes_to_host: float
    bytes_out: float
    device_idle: float | None
    peak_host_bytes: int
    peak_device_bytes: int

    @property
    def images_per_s(self) -> float:
        """Images a second."""
        return self.images / self.seconds


def measure_bare(job: Job) -> Bare:
    """Return the bare loop's seconds an input, from a process of its own."""
    return Bare(**_in_own_process("bare", job))


def mean(one: Bare, other: Bare) -> Bare:
    """Return the mean speed of two measurements of one loop, and the larger of their peaks."""
    return replace(
        one,
        seconds={name: (seconds + other.seconds[name]) / 2 for name, seconds in one.seconds.items()},
        peak_host_bytes=max(one.peak_host_bytes, other.peak_host_bytes),
        peak_device_bytes=max(one.peak_device_bytes, other.peak_device_bytes),
    )


def measure_job(kind: Kind, job: Job) -> Measured:
    """Return how a worker or a whole job did, from a process of its own."""
    return Measured(**_in_own_process(kind, job))


def _in_own_process(kind: Kind, job: Job) -> dict[str, Any]:
    order = json.dumps({"kind": kind, "job": job.model_dump(mode="json")})
    command = [sys.executable, "-m", "annotator.bench.phases"]
    env = KEEP_FREED if job.gpus_per_worker == 0 or not has_gpu() else {}  # as a run starts its workers
    done = subprocess.run(
        command, input=order, stdout=subprocess.PIPE, text=True, check=False, env={**env, **os.environ}
    )
    last = done.stdout.strip().rpartition("\n")[2]
    reply = json.loads(last) if last.startswith("{") else {"error": f"its process ended with code {done.returncode}"}
    if "error" in reply:
        raise JobError(f"bench {kind}: {reply['error']}")
    found: dict[str, Any] = reply
    return found


# -- in the process of its own -------------------------------------------------------------------------------------


class Snapshots(Silent):
    """A watcher that keeps, for each shard that came back, when that was and how far everything was."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []

    def planned(self, plan: Plan, report: Report) -> None: ...

    def progressed(self, report: Report) -> None:
        """Take one."""
        self.taken.append({"at": time.perf_counter(), "family_s": family_cpu_s(), **deepcopy(report.to_dict())})


def steady(taken: list[dict[str, Any]], in_flight: int) -> Measured:
    """Return what happened between two snapshots at which as many shards were in flight.

    Raises JobError when there are too few shards to tell.
    """
    if len(taken) < 3 * in_flight:
        raise JobError(f"{len(taken)} shards came back, {3 * in_flight} are needed; take more --images")
    first, last = taken[in_flight - 1], taken[-in_flight]
    images = last["images"] - first["images"]
    bad = {task: by for task, by in last["statuses"].items() if set(by) != {"ok"}}
    if bad:
        raise JobError(f"not every image was labelled: {bad}, {last['errors']}")
    host = {n: cpu - _cpu(first, n) for n, (_, cpu) in last["stages"].items() if n != "wait"}
    other = last["cpu_s"] - first["cpu_s"] - sum(host.values())
    return Measured(
        images=images,
        seconds=last["at"] - first["at"],
        cpu_by_stage={name: max(0.0, cpu) / images for name, cpu in (*host.items(), ("other", other))},
        cpu_s=(last["family_s"] - first["family_s"]) / images,
        bytes_to_host=(last["bytes_to_host"] - first["bytes_to_host"]) / images,
        bytes_out=(last["bytes_out"] - first["bytes_out"]) / images,
        device_idle=last["device_idle"],
        peak_host_bytes=last["peak_host_bytes"],
        peak_device_bytes=last["peak_device_bytes"],
    )


def _cpu(snapshot: Mapping[str, Any], stage: str) -> float:
    cpu: float = snapshot["stages"].get(stage, (0.0, 0.0))[1]
    return cpu


def _bare(job: Job) -> Bare:
    import torch

    from annotator.preflight import preflight
    from annotator.stages.networks import blank_input, build_networks, choose_device, open_tasks
    from annotator.stages.times import peak_memory
    from annotator.stages.trial import bare_seconds
    from annotator.storage import Storage

    ready = preflight(job)
    tasks = open_tasks(ready.job, Storage(options=job.storage), tuple(job.tasks))
    device = choose_device(ready.job)
    built = build_networks(ready.job, tasks, device)
    with torch.inference_mode():
        seconds = {
            name: bare_seconds(network, blank_input(tasks[name]), device, built.batch_size, batches=_BARE_BATCHES)
            for name, network in built.by_name.items()
        }
    on_gpu = device.type == "cuda"
    return Bare(
        seconds=seconds,
        batch_size=built.batch_size,
        dtype=str(ready.job.dtype),
        device=torch.cuda.get_device_name(device) if on_gpu else "CPU",
        threads=torch.get_num_threads(),
        peak_host_bytes=peak_memory(),
        peak_device_bytes=torch.cuda.max_memory_allocated(device) if on_gpu else 0,
    )


def _worker(job: Job) -> Measured:
    from annotator.pipeline import plan_left
    from annotator.preflight import preflight
    from annotator.storage import Storage
    from annotator.worker import Worker

    ready, snapshots = preflight(job), Snapshots()
    shards = list(plan_left(ready, None).shards("bench"))
    with (
        Worker(ready.job) as worker,
        ThreadPoolExecutor(CALLS_PER_WORKER) as calls,
        Reporter(ready.job, Storage(), snapshots) as reporter,
    ):
        for call in as_completed([calls.submit(worker, shard) for shard in shards]):
            reporter.add(call.result())
    return steady(snapshots.taken, CALLS_PER_WORKER)


def _job(job: Job, *, ray: bool) -> Measured:
    from annotator.pipeline import run

    snapshots = Snapshots()
    report = run(job, ray=ray, watcher=snapshots)
    return steady(snapshots.taken, CALLS_PER_WORKER * report.workers)


def family_cpu_s() -> float:
    """Return CPU seconds of this process, of all its descendants that live, and of those of theirs that ended."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        pid = int(path.parent.name)
        parents[pid], seconds[pid] = int(fields[1]), sum(int(ticks) for ticks in fields[11:15]) / _TICKS
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(seconds.get(pid, 0.0) for pid in family)


def main() -> None:
    """Take the order, measure, print one line of JSON last."""
    order = json.loads(sys.stdin.read())
    job, kind = Job.model_validate(order["job"]), order["kind"]
    try:
        if kind == "bare":
            result: Bare | Measured = _bare(job)
        else:
            result = _worker(job) if kind == "worker" else _job(job, ray=kind == "ray")
    except AnnotatorError as err:
        print(json.dumps({"error": str(err)}))
        return
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
