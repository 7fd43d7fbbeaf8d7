"""The doctor on this machine: what is in the way of a job is said before it starts, each thing once."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest

import annotator
from annotator.checkup import _check_resources, _conclude
from annotator.errors import AccessError, JobError
from annotator.job import StorageOptions
from annotator.machine import Machine
from annotator.storage import Storage
from tests.running.command import Cli, cli, job, job_file
from tests.running.make import make_job

__all__ = ["cli", "job", "job_file"]


def kinds(checkup: annotator.checkup.Checkup) -> list[str]:
    return [finding.kind for finding in checkup.problems]


def test_a_job_that_can_run_is_fit(cli: Cli, job_file: Path) -> None:
    done = cli("doctor", job_file)
    assert done.code == 0, done.out
    assert "of 2 tries at once to create one object exactly one won" in done.out
    assert done.out.endswith("fit to run\n")


def test_without_a_job_versions_and_disk_are_told_and_nothing_is_written(cli: Cli, tmp_path: Path) -> None:
    found = cli("doctor", "--json").json
    machine = found["machines"][0]
    assert machine["host"] == socket.gethostname()
    assert machine["annotator"].startswith(annotator.__version__)
    assert min(machine["free"]) > 0
    assert found["exclusive"] is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "kind", "word"),
    [
        ({"manifest": "nowhere"}, "manifest", "nowhere"),
        ({"tasks": {"seg": {"checkpoint": "nowhere.pth"}}}, "checkpoint", "nowhere.pth"),
        ({"output": "/proc/labels"}, "output", "/proc/labels"),
        ({"shard_rows": 65536, "tasks": {"seg": {"checkpoint": "nowhere.pth"}}}, "disk", "free"),
    ],
)
def test_each_thing_that_is_wrong_is_named(
    job: annotator.Job, change: dict[str, Any], kind: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=10**9)
    monkeypatch.setattr("annotator.machine.shutil.disk_usage", lambda _: usage)
    checkup = annotator.doctor(job.model_copy(update=change))
    assert not checkup.ok
    found = [finding for finding in checkup.problems if finding.kind == kind]
    assert any(word in finding.message for finding in found)


def test_an_image_that_may_not_be_read_is_told(job: annotator.Job) -> None:
    (Path(job.manifest).parent / "images" / "image-0000.jpg").unlink()
    assert kinds(annotator.doctor(job)) == ["image"]


@pytest.mark.s3
def test_rights_are_tried_and_not_guessed(
    s3_bucket: str, moto_s3: StorageOptions, job: annotator.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = job.model_copy(update={"output": f"{s3_bucket}/labels", "storage": moto_s3})
    assert annotator.doctor(there).exclusive
    assert [info.size > 0 for info in Storage(options=moto_s3).list(f"{s3_bucket}/labels/_annotator/probes")] == [True]

    def refuse(self: Storage, source: object, uri: str, *, output: str) -> bool:
        raise AccessError(f"{uri}: AccessDenied")

    monkeypatch.setattr(Storage, "create", refuse)
    assert kinds(annotator.doctor(there)) == ["output"]


def test_a_store_that_overwrites_is_found_out(job: annotator.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def overwrite(self: Storage, source: Path | bytes, uri: str, *, output: str) -> bool:
        self.replace(source, uri, output=output)
        return True

    monkeypatch.setattr(Storage, "create", overwrite)
    checkup = annotator.doctor(job)
    assert checkup.exclusive is False
    assert "2 won" in checkup.problems[0].message


def machine(host: str, **changes: Any) -> Machine:
    settings: dict[str, Any] = {
        "host": host, "python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "annotator": "0.1.0+a", "folder": "/a",
        "cpus": 8, "gpus": (), "cuda": None, "free": (1, 1),
    }  # fmt: skip
    return Machine(**settings | changes)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"python": "3.12.1"}, "python"),
        ({"ray": "2.61.0"}, "ray"),
        ({"annotator": "0.1.0+b"}, "annotator"),
        ({"python": "3.11.9"}, None),  # a patch release is no difference to Ray
    ],
)
def test_machines_that_differ_are_named(changes: dict[str, str], kind: str | None) -> None:
    checkup = _conclude(None, machine("head"), [machine("node", **changes)], [], gpus=0)
    assert kinds(checkup) == ([kind] if kind else [])
    assert all("node" in finding.message for finding in checkup.problems)


def test_nodes_with_disks_of_their_own_are_not_one_output(job: annotator.Job) -> None:
    """Each made the object, on its own disk: labels would be scattered."""
    nodes = [machine(host, tries=2, created=1) for host in ("head", "node")]
    checkup = _conclude(job, nodes[0], nodes[1:], [], gpus=0)
    assert checkup.exclusive is False
    assert "don't share this folder" in checkup.problems[0].message


@pytest.mark.parametrize(
    ("wanted", "nodes", "kind"),
    [
        (1, [{"CPU": 8}], "gpu"),
        (2, [{"GPU": 1}, {"GPU": 1}], "gpu"),  # two GPUs, but on two nodes
        (1, [{"CPU": 8}, {"GPU": 1}], None),
        (0, [{"CPU": 8}], None),
        (None, [{"CPU": 8}, {"GPU": 4}], "gpu"),  # a warning: the driver would choose the CPU
        (None, [{"CPU": 8}], None),
    ],
)
def test_gpus_that_no_node_has_are_missed(
    job: annotator.Job, wanted: float | None, nodes: list[dict[str, float]], kind: str | None
) -> None:
    found = _check_resources(job.model_copy(update={"gpus_per_worker": wanted}), nodes, machine("head"))
    assert [finding.kind for finding in found] == ([kind] if kind else [])
    assert [finding.warning for finding in found] == ([wanted is None] if kind else [])


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("http://127.0.0.1:9", "nobody answers"),
        ("head:8265", "http://head:8265"),
        ("http://", "http://head:8265"),
        ("http://head:port", "port"),
    ],
)
def test_an_address_where_no_job_server_is_is_refused_at_once(
    cli: Cli, job_file: Path, address: str, word: str
) -> None:
    start = time.monotonic()
    done = cli("submit", job_file, "--address", address)
    assert (done.code, time.monotonic() - start < 12) == (2, True)
    assert word in done.err


def test_the_way_a_cluster_is_guarded_is_said_in_so_many_words(
    cli: Cli, job_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    at = ["--address", "http://127.0.0.1:9"]
    assert "token or disabled" in cli("submit", job_file, *at, "--auth", "maybe").err
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert "no-token" in cli("submit", job_file, *at, "--auth", "token").err
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert "no-token" in cli("jobs", "list", *at).err


def test_what_travels_names_absolute_places_and_no_secret(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> None:
    import yaml

    from annotator.submit import _job_text

    job = make_job(tmp_path, tiny_checkpoints, count=1, tasks=("seg",), sources={"roots": ["here"]})
    relative = job.model_copy(update={"manifest": "m", "output": "out", "tasks": {"seg": {"checkpoint": "a.pth"}}})
    sent = yaml.safe_load(_job_text(relative))
    here = str(Path.cwd())
    assert (sent["manifest"], sent["output"]) == (f"{here}/m", f"{here}/out")
    assert (sent["tasks"]["seg"]["checkpoint"], sent["sources"]["roots"]) == (f"{here}/a.pth", [f"{here}/here"])
    assert annotator.Job(**sent).shard_rows == job.shard_rows
    secret = job.model_copy(update={"where": "uri != 'https://user:password@host/a.jpg'"})
    with pytest.raises(JobError, match="user info"):
        _job_text(secret)
