"""Two drivers at once, as two people start them: the work is shared, and no label file is written twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import annotator
from tests.running.make import file_bytes, is_whole, make_job, table

pytestmark = pytest.mark.slow

COUNT = 60


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> annotator.Job:
    """60 pictures in 30 shards, two tasks."""
    return make_job(tmp_path, tiny_checkpoints, COUNT, tasks=("seg", "depth"), shard_rows=2)


RUN = [sys.executable, "-m", "annotator.cli", "run", "--no-ray", "--quiet", "--json"]


def _write(job: annotator.Job, folder: Path) -> Path:
    path = folder / f"job-{uuid.uuid4().hex}.json"
    path.write_text(job.model_dump_json(exclude_defaults=True))  # JSON is YAML
    return path


@contextmanager
def driver(job: annotator.Job, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start `annotator run` on a job in a process of its own."""
    command = [*RUN, str(_write(job, folder))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def report_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    report: dict[str, Any] = json.loads(out)
    return report


def test_two_drivers_share_the_work_and_both_end_well(tmp_path: Path, job: annotator.Job) -> None:
    """The first one pauses until the second has begun, so that neither can be done before the other starts."""
    with driver(job, tmp_path) as one:
        _wait_for_labels(job, 1)
        _stop(one)
        there = len(file_bytes(job.output))
        with driver(job, tmp_path) as two:
            _wait_for_labels(job, there + 1)
            one.send_signal(signal.SIGCONT)
            reports = [report_of(one), report_of(two)]
    assert [report["state"] for report in reports] == ["done", "done"]
    assert all(report["shards"] > 0 for report in reports)
    for task in ("seg", "depth"):  # a driver counts the rows of the files that it created
        assert sum(sum(report["statuses"].get(task, {}).values()) for report in reports) == COUNT
        assert table(job.output, task).num_rows == COUNT
    assert is_whole(job)
    alone = job.model_copy(update={"output": str(tmp_path / "alone")})
    annotator.run(alone, ray=False)
    ours, theirs = file_bytes(alone.output), file_bytes(job.output)
    assert sorted(ours) == sorted(theirs)
    assert [name for name, data in ours.items() if theirs[name] != data] == []


def test_a_changed_job_beside_a_running_one_is_refused_by_name(tmp_path: Path, job: annotator.Job) -> None:
    changes = {"shard_rows": 3, "decode": "fast"}  # pinned with the manifest; part of the fingerprint
    with driver(job, tmp_path) as first:
        _wait_for_labels(job, 1)
        _stop(first)  # it is amid its work, however slow we are
        for field, value in changes.items():
            path = _write(job.model_copy(update={field: value}), tmp_path)
            other = subprocess.run([*RUN, str(path)], capture_output=True, text=True, timeout=100)
            assert (other.returncode, other.stderr.count("\n")) == (3, 1), other.stderr
            assert field in other.stderr
        first.send_signal(signal.SIGCONT)
        assert report_of(first)["state"] == "done"
    assert is_whole(job)


def _stop(process: subprocess.Popen[str]) -> None:
    """Stop a process amid whatever it does, and wait until it has stopped."""
    process.send_signal(signal.SIGSTOP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), "it was to be running still"


def _wait_for_labels(job: annotator.Job, count: int) -> None:
    end = time.monotonic() + 100
    while len(file_bytes(job.output)) < count:
        assert time.monotonic() < end, "the driver makes no labels"
        time.sleep(0.05)
