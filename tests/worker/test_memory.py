"""What a GPU's memory does not hold is said before any work, with what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import annotator
from annotator import cluster
from annotator.errors import JobError
from annotator.models import load_model
from annotator.shards import Shard
from annotator.stages import networks
from annotator.stages.memory import Memory, keep_to_share, too_large
from tests.running.make import make_job

T4 = Memory("Tesla T4", 15_800_000_000, 15_300_000_000)


class Heavy(torch.nn.Module):
    """Stands for a model that is larger than the memory that is left: it can't be moved there."""

    def _apply(self, *_: Any, **__: Any) -> Heavy:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def make_heavy(monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    def load(uri: str, **options: Any) -> torch.nn.Module:
        return Heavy() if options["task"] == task else load_model(uri, **options)

    monkeypatch.setattr(networks, "load_network", load)


def test_models_that_do_not_fit_together_end_the_run_and_say_what_to_change(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_heavy(monkeypatch, "depth")
    job = make_job(tmp_path, tiny_checkpoints, count=4)
    with pytest.raises(JobError, match=r"seg, depth and normal together.*fewer tasks at once.*dtype: bfloat16"):
        annotator.run(job, ray=False)
    assert not list(Path(job.output).rglob("*.parquet"))


def test_as_it_says_the_tasks_that_fit_go_into_the_same_output_one_job_after_the_other(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_heavy(monkeypatch, "depth")
    job = make_job(tmp_path, tiny_checkpoints, count=4)
    for task in ("seg", "normal"):
        annotator.run(job.model_copy(update={"tasks": {task: job.tasks[task]}}), ray=False)
    assert len(list((Path(job.output) / "labels").rglob("*.parquet"))) == 2


def test_on_ray_the_first_shard_brings_the_message_and_no_worker_dies_of_it(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor that died while it started would be started again and again, and Ray would say no more than that."""
    make_heavy(monkeypatch, "seg")
    job = make_job(tmp_path, tiny_checkpoints, count=4, tasks=("seg",), gpus_per_worker=0)
    ready = annotator.preflight.preflight(job)
    shard = Shard(ready.manifest.files[0].key, 0, 4)
    order = cluster._Order(job=ready.job, tasks=("seg",), last_round=False, redo=frozenset())
    with pytest.raises(JobError, match="does not hold the models of seg"):
        cluster._Started(order)(shard)


def test_the_message_names_only_what_would_help() -> None:
    alone = too_large({"seg": "bfloat16"}, 1, T4)
    assert alone == (
        "the GPU's memory does not hold the models of seg and one image, even with batch_size: 1 (Tesla T4: 15.8 GB, "
        "15.3 GB of them free); take smaller checkpoints, or use GPUs with more memory"
    )
    together = too_large({"seg": "float32", "depth": "float32"}, 0.5, T4)
    for word in ("seg and depth together", "0.5 of it", "fewer tasks", "dtype: bfloat16", "gpus_per_worker above 0.5"):
        assert word in together


@pytest.mark.parametrize(("share", "kept"), [(0.5, [0.475]), (1.0, []), (2.0, [])])
def test_workers_that_share_a_gpu_are_held_to_their_share(
    share: float, kept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the first would take what is free for its batch, and the next would not find room for its models."""
    fractions: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    keep_to_share(torch.device("cuda"), share)
    assert fractions == kept
    keep_to_share(torch.device("cpu"), 0.5)
    assert fractions == kept
