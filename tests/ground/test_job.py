"""A job says what is wrong with it in one line, and names the nearest known key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from annotator.errors import JobError
from annotator.job import Job, load_job, parse

GOOD: dict[str, Any] = {"manifest": "m", "output": "o", "tasks": {"seg": {"checkpoint": "w.pth"}}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shardrows": 3}, "unknown key 'shardrows'; did you mean 'shard_rows'?"),
        ({"limits": {"atempts": 3}}, "unknown key 'limits.atempts'; did you mean 'attempts'?"),
        ({"zzz": 3}, "unknown key 'zzz'; known keys: "),
        ({"storage": {"secret_key": "x"}}, "looks like a secret"),
        ({"storage": {"endpoint_url": "http://u:p@h"}}, "must not hold user info"),
        ({"output": "s3://a:b@c/d"}, "must not hold user info"),
        ({"shard_rows": 0}, "shard_rows"),
        ({"workers": {"min": 3, "max": 2}}, "min must not be above max"),
        ({"tasks": {}}, "tasks"),
        ({"dtype": "float8"}, "dtype"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError) as caught:
        parse(Job, GOOD | change, "job.yaml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_reach_nested_keys(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("manifest: m\noutput: o\ntasks: {seg: {checkpoint: w.pth}}\nlimits: {max_bytes: 1MiB}\n")
    job = load_job(path, {"limits.attempts": 2, "tasks.depth.checkpoint": "d.pth", "shard_rows": 7})
    assert (job.limits.attempts, job.limits.max_bytes, job.shard_rows) == (2, 2**20, 7)
    assert job.tasks["depth"] == {"checkpoint": "d.pth"}


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "\x00"])
def test_what_is_no_job_file_is_said_so(text: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(JobError, match=r"job\.yaml"):
        load_job(path)


def test_a_job_survives_the_hop_through_json() -> None:
    job = parse(Job, GOOD | {"workers": {"min": 1, "max": 3}, "limits": {"max_bytes": "2MiB"}}, "job")
    assert Job.model_validate_json(job.model_dump_json()) == job
