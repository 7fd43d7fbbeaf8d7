"""Submit to a real cluster: a Ray head with job server, two nodes, an S3 server; follow, cancel, submit again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import annotator
from annotator.job import StorageOptions
from annotator.metrics import COUNTERS, GAUGES
from annotator.models import random_checkpoint
from annotator.storage import Storage
from tests.cluster.ray_cluster import RayCluster, Scraper, ray_cluster
from tests.conftest import NO_AWS_ACCOUNT, S3_ENVIRONMENT, make_bucket
from tests.running.command import Cli, cli
from tests.running.make import write_images

__all__ = ["cli"]

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(300, method="thread")]

TOKEN = "a-token-that-nobody-may-see-0123456789abcdef"
IMAGES, SHARD_ROWS = 72, 3
ONLY_WITH_FAULTS = {"annotator_storage_retries_total"}


def wait_until(condition: Callable[[], bool], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(moto_s3: StorageOptions) -> Iterator[RayCluster]:
    """A cluster guarded by a token; its nodes have credentials of their own for the S3 server."""
    env = {**NO_AWS_ACCOUNT, **S3_ENVIRONMENT, "RAY_AUTH_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
    with ray_cluster(workers=2, auth="token", env=env) as started:
        yield started


@pytest.fixture(scope="module")
def job_file(moto_s3: StorageOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job whose images, manifest, weights and labels are in a bucket."""
    folder, storage = tmp_path_factory.mktemp("submit"), Storage(options=moto_s3)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in S3_ENVIRONMENT.items():
            patch.setenv(name, value)
        bucket = make_bucket(moto_s3)
        for name in write_images(folder / "images", IMAGES):
            storage.create(folder / "images" / name, f"{bucket}/images/{name}", output=bucket)
        weights = folder / "seg.safetensors"
        random_checkpoint(weights, task="seg", embed_dim=64, num_layers=2, num_heads=4, input_hw=(128, 96), seed=1)
        storage.create(weights, f"{bucket}/weights/seg.safetensors", output=bucket)
        annotator.build_manifest(f"{bucket}/images", f"{bucket}/manifest", storage)
    job = {
        "manifest": f"{bucket}/manifest",
        "output": f"{bucket}/labels",
        "tasks": {"seg": {"checkpoint": f"{bucket}/weights/seg.safetensors"}},
        "storage": {"endpoint_url": moto_s3.endpoint_url, "region": "us-east-1"},
        "shard_rows": SHARD_ROWS,
        "workers": 2,
        "gpus_per_worker": 0,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


@pytest.fixture
def at(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options that name the cluster, token mode said in so many words; the token comes from the environment."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    return ["--address", cluster.url, "--auth", "token"]


def committed(job_file: Path, storage: Storage) -> int:
    output = yaml.safe_load(job_file.read_text())["output"]
    return sum(1 for _ in storage.list(f"{output}/labels"))


def test_the_doctor_finds_the_cluster_fit_and_creation_exclusive_on_its_nodes(
    cli: Cli, at: list[str], job_file: Path
) -> None:
    done = cli("doctor", job_file, *at, "--json")
    assert done.code == 0, done.out
    found = done.json
    assert (len(found["machines"]), found["tries"], found["exclusive"], found["problems"]) == (3, 6, True, [])
    assert len({machine["annotator"] for machine in found["machines"]}) == 1
    # what runs there came with the job: Ray unpacked our wheel
    assert {"py_modules_files" in machine["folder"] for machine in found["machines"]} == {True}


def test_the_doctor_says_from_a_node_what_the_job_may_not_do(cli: Cli, at: list[str], job_file: Path) -> None:
    wrong = ["--set", "output=s3://no-such-bucket/labels", "--set", "tasks.seg.checkpoint=s3://no-such-bucket/seg.pth"]
    done = cli("doctor", job_file, *at, *wrong, "--set", "gpus_per_worker=1", "--json")
    assert done.code == 7
    kinds = [finding["kind"] for finding in done.json["problems"]]
    assert kinds.count("output") == kinds.count("checkpoint") == 3  # from each machine
    assert kinds.count("gpu") == 1


def test_a_job_is_submitted_followed_cancelled_and_submitted_again(
    cli: Cli, at: list[str], job_file: Path, moto_s3: StorageOptions, cluster: RayCluster, tmp_path: Path
) -> None:
    storage, output = Storage(options=moto_s3), yaml.safe_load(job_file.read_text())["output"]
    total = IMAGES // SHARD_ROWS
    first = cli("submit", job_file, *at, "--json").json["id"]
    command = [sys.executable, "-m", "annotator.cli", "jobs", "logs", "-f", first, *at]
    with open(tmp_path / "followed", "w") as said, subprocess.Popen(command, stdout=said) as follower:
        wait_until(lambda: committed(job_file, storage) >= 2)
        wait_until(lambda: "round 1" in (tmp_path / "followed").read_text())
        assert follower.poll() is None
        assert cli("jobs", "cancel", first, *at, "--json").json["status"] == "STOPPED"
        assert follower.wait(timeout=30) == 0
    left = committed(job_file, storage)
    assert 2 <= left < total
    records = [json.loads(storage.read(info.uri)) for info in storage.list(f"{output}/_annotator/runs")]
    assert [record["state"] for record in records] == ["interrupted"]
    said_of_it = cli("submit", job_file, *at, "--log", "json").out.splitlines()
    again = said_of_it[0].split()[1].strip(",")
    assert [line.split()[:4] for line in said_of_it[1:]] == [
        ["annotator", "jobs", "logs", "-f"],
        ["annotator", "jobs", "status", again],
        ["annotator", "jobs", "cancel", again],
    ]
    with Scraper(cluster.metrics) as scraper:
        assert cli("jobs", "logs", "-f", again, *at).err.endswith("SUCCEEDED\n")
    assert committed(job_file, storage) == total
    assert annotator.verify(output, storage).ok
    lines = [
        json.loads(line) for line in cli("jobs", "logs", again, *at).out.splitlines() if line.startswith('{"time"')
    ]
    assert sum(line["images"] for line in lines) == IMAGES - SHARD_ROWS * left
    assert len({line["shard"] for line in lines}) == len(lines) == total - left
    assert_metrics_tell_of_the_run(scraper, total - left)
    listed = {job["id"]: job["status"] for job in cli("jobs", "list", *at, "--json").json["jobs"]}
    assert (listed[first], listed[again]) == ("STOPPED", "SUCCEEDED")
    assert cli("jobs", "status", again, *at, "--json").json["exit_code"] == 0
    assert_nothing_secret_travelled(cluster, again)


def assert_metrics_tell_of_the_run(scraper: Scraper, shards: int) -> None:
    """Prometheus sees, under the names that we say, most of what the run did: it looks now and then."""
    expected = {f"ray_{name}" for name in (*COUNTERS, *GAUGES)} - {f"ray_{name}" for name in ONLY_WITH_FAULTS}
    assert expected - scraper.names == set()
    assert 1 <= scraper.most("ray_annotator_shards_done") <= shards
    assert 0 < scraper.most("ray_annotator_rows_total", task="seg", status="ok") <= SHARD_ROWS * shards


def assert_nothing_secret_travelled(cluster: RayCluster, job_id: str) -> None:
    """Neither in what Ray keeps of a job nor in its logs."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(cluster.url, headers={"Authorization": f"Bearer {TOKEN}"})
    info = client.get_job_info(job_id)
    assert set(info.runtime_env) - {"_ray_commit"} == {"env_vars", "py_modules", "working_dir"}
    assert sorted(info.runtime_env["env_vars"]) == ["RAY_JOB_STOP_SIGNAL", "RAY_JOB_STOP_WAIT_TIME_S"]
    assert TOKEN not in cluster.logs()


def test_without_the_token_the_job_server_says_what_is_wanted(
    cli: Cli, cluster: RayCluster, job_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = cli("jobs", "list", "--address", cluster.url, "--auth", "disabled")
    assert (refused.code, refused.out) == (2, "")
    assert "RAY_AUTH_TOKEN" in refused.err
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    assert cli("submit", job_file, "--address", cluster.url, "--auth", "token").code == 2


def test_an_id_that_the_cluster_does_not_know_is_said_to_be_unknown(cli: Cli, at: list[str]) -> None:
    for verb in ("status", "logs", "cancel"):
        done = cli("jobs", verb, "annotator-nowhere", *at)
        assert done.code == 2
        assert "no job annotator-nowhere" in done.err
    assert cli("jobs", "logs", "-f", "annotator-nowhere", *at).code == 2


def test_a_cluster_without_a_token_takes_a_job_as_well(
    cli: Cli, tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    write_images(tmp_path / "images", 4)
    annotator.build_manifest(str(tmp_path / "images"), str(tmp_path / "manifest"))
    job = {
        "manifest": str(tmp_path / "manifest"),
        "output": str(tmp_path / "labels"),
        "tasks": {"seg": {"checkpoint": str(tiny_checkpoints["seg"])}},
        "sources": {"roots": [str(tmp_path / "images")]},
        "workers": 1,
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    with ray_cluster(workers=0, auth="disabled", env={}) as cluster:
        at = ["--address", cluster.url, "--auth", "disabled"]
        submitted = cli("submit", tmp_path / "job.yaml", *at, "--json").json
        followed = cli("jobs", "logs", "-f", submitted["id"], *at)
    assert followed.err.endswith("SUCCEEDED\n"), followed.out
    assert annotator.verify(str(tmp_path / "labels")).ok
