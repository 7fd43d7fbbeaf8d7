"""Processes to run disturbed jobs in, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import annotator
from tests.faults.zygote import Zygotes, zygotes
from tests.running.make import make_job


@pytest.fixture(scope="session")
def small_job(tmp_path_factory: pytest.TempPathFactory) -> annotator.Job:
    """Six pictures in two shards, one task, the smallest of models. Each test gives it an output of its own."""
    from annotator.models import random_checkpoint

    folder = tmp_path_factory.mktemp("corpus")
    weights = folder / "seg.safetensors"
    random_checkpoint(weights, task="seg", embed_dim=16, num_layers=1, num_heads=2, input_hw=(32, 32), seed=0)
    return make_job(folder, {"seg": weights}, 6, tasks=("seg",), shard_rows=3, spool_dir=str(folder / "spool"))


@pytest.fixture(scope="session")
def workers(small_job: annotator.Job) -> Iterator[Zygotes]:
    """Two zygotes: this is work for processors, and CI has two."""
    folder = Path(small_job.output).parent
    with zygotes(2, lambda index: small_job.model_copy(update={"output": str(folder / f"warm-{index}")})) as found:
        yield found
