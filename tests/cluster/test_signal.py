"""SIGTERM, with which Docker, Kubernetes and Slurm stop a process, ends a run as Ctrl-C does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import annotator
from tests.running.make import is_whole, make_job
from tests.running.test_ray import num_files, wait_until


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--no-ray"], pytest.param([], marks=pytest.mark.ray)])
def test_sigterm_interrupts_a_run_and_the_next_one_goes_on(
    options: list[str], tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=50, tasks=("seg",), shard_rows=1, workers=1)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_defaults=True)))
    command = [sys.executable, "-m", "annotator.cli", "run", str(path), "--quiet", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        wait_until(lambda: num_files(job) >= 2)
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert "what is finished is committed" in said
    (record,) = (Path(job.output) / "_annotator" / "runs").glob("*.json")
    assert json.loads(record.read_text())["state"] == "interrupted"
    assert 2 <= num_files(job) < 50
    annotator.run(job, ray=False)
    assert is_whole(job)
