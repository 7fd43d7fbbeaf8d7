"""How many workers a job gets on the nodes of a cluster, and what each of them claims there. No Ray in here.

A node is what Ray says that it has: {"CPU": 8.0, "GPU": 1.0, ...}.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from annotator.errors import JobError
from annotator.job import Job, WorkerRange

NODE_WAIT_S, LOOK_S = 600.0, 5.0
"""How long a round waits for a node where the round before had one, and how often it looks."""

BLOCKS_PER_WORKER = 32
MOST_SHARDS = 8
"""Of a block. What Ray retries is a block, and a lost worker had four: larger ones would leave more to do at the end of
a round, when the others have nothing left, and save a third of a millisecond a shard (docs/benchmarks.md)."""


def num_workers(job: Job, nodes: Sequence[Mapping[str, float]], *, shards: int) -> tuple[int, int]:
    """Return the least and the most workers for a cluster of these nodes; never more than there are shards.

    Raises JobError when the job wants GPUs and no node has as many: Ray would wait for one without an end.
    """
    most = max(1, shards)
    gpus = [node.get("GPU", 0.0) for node in nodes]
    if job.gpus_per_worker and max(gpus, default=0.0) < job.gpus_per_worker:
        raise JobError(
            f"a worker wants {job.gpus_per_worker:g} GPU and no node has more than {max(gpus, default=0.0):g}; "
            "add GPU nodes, or set gpus_per_worker: 0 to label on CPUs"
        )
    if isinstance(job.workers, WorkerRange):
        return min(job.workers.min, most), min(job.workers.max, most)
    if job.workers != "auto":
        count = job.workers
    elif job.gpus_per_worker:
        count = sum(_fitting(count, job.gpus_per_worker) for count in gpus)
    else:
        count = max(1, int(sum(node.get("CPU", 0.0) for node in nodes)) // 4)
    return min(count, most), min(count, most)


def _fitting(gpus: float, share: float) -> int:
    """Return the workers that the GPUs of a node hold; a share is of one GPU."""
    return int(gpus // share) if share >= 1 else int(gpus) * int(1 / share)


def wait_for_node(job: Job, look: Callable[[], Sequence[Mapping[str, float]]]) -> None:
    """Wait until one of the nodes that `look` finds holds a worker, or for long enough: spot nodes come back."""
    end = time.monotonic() + NODE_WAIT_S
    while time.monotonic() < end:
        with suppress(JobError):
            num_workers(job, look(), shards=1)
            return
        time.sleep(LOOK_S)


def cpus_per_worker(job: Job, nodes: Sequence[Mapping[str, float]], workers: int) -> float:
    """Return CPUs a worker claims: its share of the cluster where it computes on them, else a token one."""
    cpus = [node.get("CPU", 0.0) for node in nodes]
    if job.gpus_per_worker or not cpus:
        return 1.0
    return max(1.0, min(sum(cpus) // workers, max(cpus)))  # what no node has would be waited for without an end


def block_size(shards: int, *, workers: int) -> int:
    """Return how many shards Ray hands out, and retries, at once."""
    return max(1, min(MOST_SHARDS, shards // (BLOCKS_PER_WORKER * workers)))
