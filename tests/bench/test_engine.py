"""The engine's bench measures what it says, and a null model costs nothing but gives labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import annotator
from annotator.bench.engine import STAGES, EngineBench, bench_engine
from annotator.bench.phases import family_cpu_s, steady
from annotator.bench.setup import TASKS, Setup, make_job, make_picture, parse_size, parse_tasks
from annotator.errors import JobError


def setup(model: str, **changes: Any) -> Setup:
    settings = {"shard_rows": 2, "workers": 1, "batch_size": 2}
    defaults: dict[str, Any] = {"checkpoints": {}, "images": 14, "image_wh": (64, 48), "settings": settings}
    return Setup(model=model, **(defaults | changes))


@pytest.fixture(scope="module")
def measured() -> EngineBench:
    # many shards: the worker's clock and its family's are read at the two ends of a shard's way back
    return bench_engine(setup("tiny", images=64), ray=False)


@pytest.mark.slow
def test_every_figure_is_there_and_makes_sense(measured: EngineBench) -> None:
    bare, worker, whole = measured.bare, measured.runs["worker"], measured.runs["no-ray"]
    assert bare is not None and set(bare.seconds) == set(TASKS)
    assert (bare.batch_size, bare.dtype) == (2, "float32")
    for run in (worker, whole):
        assert run.images > 0 < run.images_per_s
        assert set(STAGES) <= set(run.cpu_by_stage)
        assert run.cpu_by_stage["decode"] > 0 < run.cpu_by_stage["forward"]
        assert run.cpu_s >= 0.9 * sum(run.cpu_by_stage.values())
        maps = 48 * 64 * (1 + 2 + 3)  # seg 1 byte a pixel, depth 2, normal 3
        assert 0.95 * maps <= run.bytes_to_host <= 1.2 * maps  # a batch may lie across either end
        assert run.peak_host_bytes > 50 * 2**20
    assert 0 < measured.efficiency["no-ray"] < 1.5


@pytest.mark.slow
def test_the_result_is_json_and_a_table(measured: EngineBench) -> None:
    plain = json.loads(json.dumps(measured.to_dict()))
    assert plain["runs"]["worker"]["efficiency"] == pytest.approx(measured.efficiency["worker"])
    assert "whole job, no Ray" in measured.table()


def snapshot(shard: int, **changes: Any) -> dict[str, Any]:
    """One second, ten images and a CPU second a shard; 0.4 s of it in decode."""
    defaults = {
        "at": float(shard),
        "family_s": 2.0 * shard,
        "images": 10 * shard,
        "cpu_s": 1.0 * shard,
        "stages": {"decode": (9.0, 0.4 * shard), "wait": (9.0, 9.0)},
        "statuses": {"seg": {"ok": 10 * shard}},
        "errors": {},
        "bytes_to_host": 100 * shard,
        "bytes_out": 50 * shard,
        "device_idle": 0.5,
        "peak_host_bytes": 7,
        "peak_device_bytes": 8,
    }
    return defaults | changes


def test_the_steady_state_leaves_out_as_many_shards_at_either_end_as_are_in_flight() -> None:
    """Ten shards, two in flight: from the second to the ninth, 7 s and 70 images."""
    found = steady([snapshot(n) for n in range(1, 11)], in_flight=2)
    assert (found.images, found.seconds) == (70, 7.0)
    assert found.cpu_s == pytest.approx(0.2)
    assert found.cpu_by_stage == pytest.approx({"decode": 0.04, "other": 0.06})
    assert found.bytes_to_host == pytest.approx(10)


def test_too_few_shards_are_an_error() -> None:
    with pytest.raises(JobError, match="take more --images"):
        steady([snapshot(n) for n in range(5)], in_flight=2)


def test_a_bench_that_did_not_label_every_image_is_an_error() -> None:
    bad = {"seg": {"ok": 1, "failed": 1}}
    with pytest.raises(JobError, match="not every image was labelled"):
        steady([snapshot(n, statuses=bad) for n in range(9)], in_flight=2)


def test_a_null_model_gives_labels_and_they_are_marked_as_meaningless(tmp_path: Path) -> None:
    job = make_job(tmp_path, setup("null", tasks=(*TASKS, "pose"), images=3, settings={"shard_rows": 3}))
    report = annotator.run(job, ray=False)
    assert set(report.random) == {*TASKS, "pose"}
    assert report.statuses == {task: {"ok": 3} for task in (*TASKS, "pose")}
    assert report.stages["forward"][1] < 0.05
    assert report.efficiency is None
    assert annotator.verify(job.output).ok
    masks = [row["mask"]["bytes"] for row in annotator.open_labels(job.output, "seg").to_table().to_pylist()]
    assert len(set(masks)) == 1 and len(masks[0]) > 500


def test_there_is_no_null_detector() -> None:
    with pytest.raises(JobError, match="no null detector"):
        setup("null", tasks=("person",))


def test_pictures_are_the_same_everywhere() -> None:
    first, again, other = (make_picture((40, 30), seed=seed) for seed in (1, 1, 2))
    assert first.shape == (30, 40, 3)
    assert (first == again).all() and (first != other).any()


def test_options_are_read() -> None:
    assert parse_tasks(["seg", "depth=a.pth"]) == (("seg", "depth"), {"depth": "a.pth"})
    assert parse_size("1024x768") == (1024, 768)
    for text in ("1024", "axb", "0x5"):
        with pytest.raises(JobError, match="--image"):
            parse_size(text)


def test_cpu_of_a_child_that_ended_counts() -> None:
    import subprocess
    import sys

    before = family_cpu_s()
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    assert family_cpu_s() - before > 0.05
