"""A line a shard: who, what, where; JSON on demand; nothing of an image, no secret."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

import annotator
from annotator.logs import SHARDS, LogForm, log_shard, log_to_stderr
from annotator.shards import Shard
from annotator.summary import Summary
from tests.running.command import Cli, cli, job, job_file

__all__ = ["cli", "job", "job_file"]


@pytest.fixture(autouse=True)
def quiet_again() -> object:
    """Undo what a test said about logging."""
    yield
    SHARDS.handlers, SHARDS.propagate = [], True
    SHARDS.setLevel(logging.NOTSET)


def test_a_run_logs_each_shard_once_as_json(cli: Cli, job_file: Path, job: annotator.Job) -> None:
    done = cli("run", job_file, "--no-ray", "--log", "json", "--json")
    lines = [json.loads(line) for line in done.err.splitlines()]  # nothing else is on standard error
    assert len({line["shard"] for line in lines}) == len(lines) == done.json["shards"]
    assert sum(line["images"] for line in lines) == done.json["images"]
    assert {line["run"] for line in lines} == {done.json["run_id"]}
    assert {(line["outcome"], bool(line["node"]), line["seconds"] > 0) for line in lines} == {("done", True, True)}


def test_the_same_in_words(cli: Cli, job_file: Path) -> None:
    lines = cli("run", job_file, "--no-ray", "--log", "text", "--limit", 1).err.splitlines()
    assert len(lines) == 1
    assert all(f" {word}=" in lines[0] for word in ("run", "shard", "node", "images", "ok", "seconds"))


def test_unless_asked_for_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    log_shard("run", Summary(shard=Shard(file_key="a-00000000", first=0, end=5)))
    assert capsys.readouterr() == ("", "")


def test_a_shard_that_is_put_off_says_why_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr(LogForm.JSON)
    log_shard("run", Summary(shard=Shard(file_key="a-00000000", first=0, end=5), deferred="first\nsecond"))
    (line,) = capsys.readouterr().err.splitlines()
    assert (json.loads(line)["level"], json.loads(line)["why"]) == ("WARNING", "first\nsecond")
