"""How many workers a cluster gets, without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from annotator import pool
from annotator.errors import JobError
from annotator.job import Job, WorkerRange, parse
from annotator.pool import block_size, cpus_per_worker, num_workers, wait_for_node

CPUS: Mapping[str, float] = {"CPU": 8.0}


@pytest.mark.parametrize(
    ("share", "gpus", "workers"),
    [(1, [4, 4], 8), (0.5, [1, 1], 4), (0.75, [4], 4), (0.3, [1], 3), (2, [4, 1], 2), (0.2, [1], 5)],
)
def test_auto_counts_the_workers_that_the_gpus_of_each_node_hold(share: float, gpus: list[float], workers: int) -> None:
    """A worker's GPUs are of one node, and a share is of one GPU."""
    job = Job(manifest="/m", output="/o", tasks={"seg": {}}, gpus_per_worker=share)
    nodes = [CPUS, *({**CPUS, "GPU": count} for count in gpus)]
    assert num_workers(job, nodes, shards=100) == (workers, workers)


@pytest.mark.parametrize("settings", [{}, {"workers": 3}, {"workers": WorkerRange(min=1, max=9)}])
def test_a_worker_that_fits_on_no_node_is_refused_not_waited_for(settings: dict[str, Any]) -> None:
    job = Job(manifest="/m", output="/o", tasks={"seg": {}}, gpus_per_worker=2, **settings)
    with pytest.raises(JobError, match=r"a worker wants 2 GPU and no node has more than 1.*gpus_per_worker"):
        num_workers(job, [{**CPUS, "GPU": 1.0}] * 4, shards=100)


def test_between_rounds_nodes_that_were_all_taken_away_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(manifest="/m", output="/o", tasks={"seg": {}}, gpus_per_worker=1)
    seen: list[list[Mapping[str, float]]] = [[CPUS], [CPUS], [CPUS, {**CPUS, "GPU": 1.0}]]
    monkeypatch.setattr(pool, "LOOK_S", 0.0)
    wait_for_node(job, lambda: seen.pop(0))
    assert seen == []
    monkeypatch.setattr(pool, "NODE_WAIT_S", 0.05)
    wait_for_node(job, lambda: [CPUS])  # in vain: the round then says what is lacking


def test_more_than_one_gpu_is_a_whole_number() -> None:
    """Ray takes no other, and would say so in the middle of a run."""
    with pytest.raises(JobError, match=r"gpus_per_worker: 1\.5.*whole number"):
        parse(Job, {"manifest": "/m", "output": "/o", "tasks": {"seg": {}}, "gpus_per_worker": 1.5}, "job.yaml")


def test_a_block_of_shards_is_small_enough_for_a_lost_worker_to_leave_little() -> None:
    """Ray hands out blocks: a lost worker leaves those it had to others, whole."""
    assert block_size(100, workers=8) == 1
    assert block_size(2_000, workers=8) == 7
    assert block_size(100_000, workers=8) == 8
    assert block_size(100_000, workers=1000) == 3


@pytest.mark.parametrize(("workers", "cpus"), [(1, 8), (2, 8), (4, 4), (64, 1)])
def test_on_cpus_workers_share_the_cluster_and_none_claims_more_than_a_node_has(workers: int, cpus: float) -> None:
    job = Job(manifest="/m", output="/o", tasks={"seg": {}}, gpus_per_worker=0)
    assert cpus_per_worker(job, [CPUS, CPUS], workers) == cpus
    assert cpus_per_worker(job.model_copy(update={"gpus_per_worker": 0.5}), [CPUS, CPUS], workers) == 1
