"""No secret at rest or on show: marked ones are planted wherever a user could put one, and looked for everywhere.

A job runs on a Ray cluster of the test's own, against an S3 server, with rows that fail in every way that makes a
message of a uri. What is searched: the output byte by byte, and the values in its Parquet files; what the commands
print; the logs of Ray's session; what Ray's control service knows of jobs, actors, tasks, workers, nodes and keys.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from annotator.job import StorageOptions
from annotator.storage import Storage
from tests.conftest import make_bucket
from tests.running.command import Cli
from tests.running.make import write_images

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

MARK = "hid7f3e"
"""Begins every planted secret; nothing else holds it."""

ASK = """
import json, sys
import ray
from ray.experimental import internal_kv
from ray.util import state

found = {}
for name in ("actors", "jobs", "nodes", "objects", "tasks", "workers", "runtime_envs", "placement_groups"):
    ask = getattr(state, f"list_{name}")
    listed = ask(address=sys.argv[2], detail=True, limit=10_000, raise_on_missing_output=False)
    found[name] = [str(one) for one in listed]
ray.init(address=sys.argv[1], log_to_driver=False)
for space in (None, b"fun", b"package", b"serve", b"session", b"job", b"cluster", b"dashboard", b"tracing"):
    for key in internal_kv._internal_kv_list(b"", namespace=space):
        found[f"kv {space} {key}"] = repr(internal_kv._internal_kv_get(key, namespace=space))
json.dump(found, open(sys.argv[3], "w"))
"""


def secret(place: str) -> str:
    return f"{MARK}-{place}"


@dataclass
class Run:
    """A job that ran, and all that it left."""

    folder: Path
    output: Path
    session: Path
    printed: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, object]] = field(default_factory=list)


def places_of(run: Run) -> Iterator[tuple[str, bytes]]:
    """Yield everything that must hold no secret, by name."""
    for name, text in run.printed.items():
        yield name, text.encode()
    for root in (run.output, run.session):
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield str(path), path.read_bytes()
            if path.suffix == ".parquet":
                table = pq.read_table(path)
                yield f"values of {path}", f"{table.schema.metadata} {table.to_pylist()}".encode()


def found_in(run: Run) -> list[str]:
    return [name for name, data in places_of(run) if MARK.encode() in data]


@dataclass
class RayHead:
    """A cluster of one node, with a dashboard that tells what Ray knows."""

    address: str
    dashboard: str
    folder: Path


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def planted(moto_s3: StorageOptions, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment with secrets wherever one can be in it."""
    credentials = tmp_path_factory.mktemp("aws") / "credentials"
    credentials.write_text(
        f"[lab]\naws_access_key_id = lab\naws_secret_access_key = {secret('profile-key')}\n"
        f"aws_session_token = {secret('profile-token')}\n"
    )
    return {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "env",
        "AWS_SECRET_ACCESS_KEY": secret("env-key"),
        "AWS_SESSION_TOKEN": secret("env-token"),
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
        "HTTPS_PROXY": f"http://user:{secret('proxy')}@127.0.0.1:9",
    }


@pytest.fixture(scope="module")
def ray_head(planted: dict[str, str]) -> Iterator[RayHead]:
    folder = Path(tempfile.mkdtemp(prefix="ann-"))  # short: socket paths have 107 bytes
    port, dashboard = free_ports(2)
    ray = str(Path(sys.executable).parent / "ray")
    command = [
        ray, "start", "--head", "--block", f"--port={port}", f"--temp-dir={folder}", "--node-ip-address=127.0.0.1",
        "--num-cpus=2", f"--object-store-memory={100 * 2**20}",
        "--include-dashboard=true", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
    ]  # fmt: skip
    with open(folder / "start.log", "wb") as log:
        head = subprocess.Popen(command, env=planted, stdout=log, stderr=log, start_new_session=True)
    try:
        yield RayHead(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", folder)
    finally:
        os.killpg(head.pid, signal.SIGKILL)  # asked to end, `--block` waits for services that are gone already
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def write_corpus(bucket: str, folder: Path, storage: Storage) -> None:
    """Write pictures and two manifest files whose uris hold secrets in all the ways they can."""
    (good,) = write_images(folder / "images", 1)
    data = (folder / "images" / good).read_bytes()
    name = bucket[5:]
    client = boto3.client("s3", endpoint_url=storage.options.endpoint_url, region_name=storage.options.region)
    signed = f"{good}?X-Amz-Signature={secret('signed-read')}"  # a key may be called so, and then it is read
    for key in (f"images/{good}", f"images/{signed}"):
        client.put_object(Bucket=name, Key=key, Body=data)
    client.put_object(Bucket=name, Key=f"images/broken.jpg?sig={secret('signed-broken')}", Body=b"no picture")
    presigned = client.generate_presigned_url("get_object", Params={"Bucket": name, "Key": f"images/{good}"})
    client.close()
    uris = [
        f"{bucket}/images/{good}",
        f"{bucket}/images/{signed}",
        f"images/{signed}",
        f"{bucket}/images/broken.jpg?sig={secret('signed-broken')}",
        f"{bucket}/images/missing.jpg?X-Amz-Signature={secret('signed-missing')}",
        f"s3://key:{secret('user-s3')}@{name}/images/{good}",
        f"s3://key:{secret('user')}/slash@{name}/images/{good}",
        f"s3://no-such-bucket-{name}/a.jpg?X-Amz-Security-Token={secret('signed-bucket')}",
        f"https://user:{secret('user-https')}@images.invalid/a.jpg",
        f"http://user:{secret('user')}/slash@images.invalid/a.jpg",
        f"https://images.invalid/a.jpg?token={secret('query-unknown')}",
        f"http://127.0.0.1:9/a.jpg?token={secret('query-private')}",
        f"{presigned}&token={secret('presigned')}",
        f"http://127.0.0.1:hidden/a.jpg?token={secret('query-port')}",
        f"ftp://user:{secret('user-ftp')}@images.invalid/a.jpg?token={secret('query-ftp')}",
        f"file://user:{secret('user-file')}@server/a.jpg?token={secret('query-file')}",
    ]
    tables = {"a": pa.table({"uri": uris}), "b": pa.table({"image": [{"bytes": None, "path": uri} for uri in uris]})}
    for key, table in tables.items():
        pq.write_table(table, folder / f"{key}.parquet")
        storage.create(folder / f"{key}.parquet", f"{bucket}/{key}.parquet", output=bucket)


@pytest.fixture(scope="module")
def run(
    ray_head: RayHead,
    planted: dict[str, str],
    moto_s3: StorageOptions,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoints: dict[str, Path],
) -> Run:
    folder = tmp_path_factory.mktemp("secrets")
    bucket = make_bucket(moto_s3)
    write_corpus(bucket, folder, Storage(options=moto_s3))
    job = {
        "manifest": bucket,
        "output": str(folder / "out"),
        "tasks": {"seg": {"checkpoint": str(tiny_checkpoints["seg"])}},
        "shard_rows": 8,
        "workers": 1,
        "sources": {"schemes": ["s3", "file", "http", "https"]},
        "limits": {"attempts": 1, "fetch_timeout_s": 5},
        "storage": {"endpoint_url": moto_s3.endpoint_url, "region": "us-east-1", "profile": "lab"},
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    done = Run(folder, folder / "out", ray_head.folder)

    def typed(*words: str) -> str:
        command = [sys.executable, "-m", "annotator.cli", *words]
        ended = subprocess.run(command, env=planted, capture_output=True, text=True, timeout=200, check=False)
        done.printed[" ".join(words[:1])] = ended.stdout + ended.stderr
        return ended.stdout

    plan = typed("plan", str(path))
    assert "32 images in 4 shards left" in plan, done.printed
    report = json.loads(typed("run", str(path), "--address", ray_head.address, "--json"))
    assert report["state"] == "done", done.printed
    typed("status", str(done.output))
    typed("verify", str(done.output))
    typed("preview", str(done.output), "--out", str(folder / "sheet.png"))
    asked = folder / "ray.json"
    subprocess.run(
        [sys.executable, "-c", ASK, ray_head.address, ray_head.dashboard, str(asked)],
        check=True, timeout=120, env={name: value for name, value in planted.items() if not name.startswith("AWS_")},
    )  # fmt: skip
    done.printed["what Ray knows"] = asked.read_text()
    tables = [pq.read_table(path) for path in sorted((done.output / "labels").rglob("*.parquet"))]
    done.rows = [row for table in tables for row in table.to_pylist()]
    return done


@pytest.mark.timeout(300, method="thread")
def test_no_planted_secret_is_found_anywhere(run: Run) -> None:
    assert found_in(run) == []


def test_rows_with_secrets_were_read_and_failed_as_they_should(run: Run) -> None:
    """Else the search would prove little."""
    classes = [row["error_class"] for row in run.rows]
    assert len(run.rows) == 32
    assert {"not_found", "fetch_failed", "unsupported_format", "scheme_not_allowed", "address_not_allowed"} <= {
        *classes
    }
    assert classes.count(None) == 6
    assert all(row["error"] for row in run.rows if row["error_class"])


def test_the_places_searched_are_those_where_secrets_could_be(run: Run) -> None:
    names = {Path(name).name for name, _ in places_of(run)}
    known = json.loads(run.printed["what Ray knows"])
    assert {"gcs_server.out", "raylet.out", "seg.json"} <= names
    assert any(name.startswith("worker-") and name.endswith(".err") for name in names)
    assert any("_RayWorker" in str(actor) or "MapWorker" in actor for actor in known["actors"])
    assert known["jobs"] and known["tasks"] and known["nodes"] and known["workers"]
    assert sum(name.startswith("kv ") for name in known) > 5


def test_the_search_would_find_one(run: Run, tmp_path: Path) -> None:
    """In a log, in a compressed label column that its bytes don't show, and in what was printed."""
    for place in ("log", "label", "printed"):
        other = Run(tmp_path, tmp_path / f"{place}-out", tmp_path / f"{place}-session")
        other.output.mkdir()
        other.session.mkdir()
        assert found_in(other) == []
        if place == "log":
            (other.session / "worker.err").write_text(f"error: {secret('control')}")
        elif place == "label":
            rows = [{"error": f"{i} {secret('control')} {i * i}"} for i in range(1000)]
            pq.write_table(
                pa.Table.from_pylist(rows), other.output / "a.parquet", compression="zstd", use_dictionary=False
            )
        else:
            other.printed["run"] = secret("control")
        assert found_in(other), place


@pytest.mark.parametrize(
    "change",
    [
        {"storage": {"aws_secret_access_key": secret("job-key")}},
        {"storage": {"password": secret("job-password")}},
        {"storage": {"endpoint_url": f"https://user:{secret('endpoint')}@s3.example.com"}},
        {"manifest": f"s3://key:{secret('manifest')}@bucket/m"},
        {"output": f"s3://bucket/out?X-Amz-Signature={secret('output')}"},
        {"tasks": {"seg": {"checkpoint": f"s3://key:{secret('checkpoint')}@bucket/seg.pth"}}},
        {"tasks": {"seg": {"checkpoint": {"root": f"s3://key:{secret('root')}@bucket/w"}}}},
        {"sources": {"roots": [f"https://user:{secret('source')}@images.example/"]}},
        {"secret_key": secret("job-top")},
        f"manifest: m\npassword: [{secret('job-broken')}\n",
        f"manifest: m\npassword: *{secret('job-alias')}\n",
    ],
)
def test_a_job_that_holds_a_secret_is_refused_and_the_secret_not_repeated(
    change: str | dict[str, Any], cli: Cli, tmp_path: Path
) -> None:
    path = tmp_path / "job.yaml"
    job = {"manifest": "m", "output": str(tmp_path / "out"), "tasks": {"seg": {"checkpoint": "seg.pth"}}}
    path.write_text(change if isinstance(change, str) else yaml.safe_dump({**job, **change}))
    refused = cli("plan", path)
    assert (refused.code, MARK in refused.out + refused.err) == (2, False), refused.err
    assert not (tmp_path / "out").exists()
