"""What all tests share: a clean environment, an S3 server of their own, photographs, tiny checkpoints."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from annotator.job import StorageOptions

ROOT = Path(__file__).resolve().parent.parent

# Before torch, cv2 or Ray are imported by anyone, and inherited by every process that a test starts.
os.environ.update(
    OMP_NUM_THREADS="1",  # torch: the suite shares few cores with Ray's processes
    RAY_AUTH_MODE="disabled",  # else the first local cluster writes a token file to the home folder
    RAY_USAGE_STATS_ENABLED="0",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
)

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}
# Without these a test would find a developer's own profiles, or wait for a cloud machine's metadata server.
NO_AWS_ACCOUNT = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}

# Deadlines measure the machine, not the code, where cores are shared.
hypothesis.settings.register_profile("annotator", deadline=None)
hypothesis.settings.load_profile("annotator")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests that start Ray first, for they take longest, and skip those for GPUs where there is none."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch  # only when there is such a test

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def clean_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take AWS_* and ANNOTATOR_* of the developer's shell out of the test's sight."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "ANNOTATOR_")):
            monkeypatch.delenv(name)
    has_server = {"moto_s3", "rgw_s3"} & set(request.fixturenames)
    wanted = {**NO_AWS_ACCOUNT, **(S3_ENVIRONMENT if has_server else {})}
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def moto_s3() -> Iterator[StorageOptions]:
    """Start an S3 server (moto) on a free port of this machine, for the session.

    AWS_* credentials for it are set in the environment of every test that uses it, directly or not.
    """
    from annotator.job import StorageOptions

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "tests.servers.moto_server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**NO_AWS_ACCOUNT, **S3_ENVIRONMENT}.items():
            patch.setenv(name, value)
        try:
            _wait_until_it_answers(url, server)
            yield StorageOptions(endpoint_url=url, region="us-east-1")
        finally:
            server.terminate()
            server.wait(timeout=20)


def _wait_until_it_answers(url: str, server: subprocess.Popen[bytes], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=5):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the S3 test server did not start (exit status {server.poll()})")
            time.sleep(0.1)


@pytest.fixture(scope="session")
def rgw_s3() -> Iterator[StorageOptions]:
    """Start a second S3 server, one that people run for real: Ceph's RADOS gateway (tests/servers/rgw.py).

    Its packages are installed if need be and if we may; where we may not, its tests are skipped and say why.
    The credentials are those of `moto_s3`. Keep what is written below 2 GB in all.
    """
    from annotator.job import StorageOptions
    from tests.servers import rgw

    try:
        rgw.install()
    except rgw.NotInstallableError as err:
        pytest.skip(f"no RADOS gateway: {err}")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**NO_AWS_ACCOUNT, **S3_ENVIRONMENT}.items():
            patch.setenv(name, value)
        with rgw.running() as gateway:
            yield StorageOptions(endpoint_url=gateway.url, region="us-east-1")


@pytest.fixture
def s3_bucket(moto_s3: StorageOptions) -> str:
    """Make a fresh bucket on the test server; returns "s3://name"."""
    return make_bucket(moto_s3)


def make_bucket(options: StorageOptions) -> str:
    """Make a bucket of a new name and return its uri."""
    import boto3

    name = f"test-{uuid.uuid4().hex[:12]}"
    client = boto3.client("s3", endpoint_url=options.endpoint_url, region_name=options.region)
    client.create_bucket(Bucket=name)
    client.close()
    return f"s3://{name}"


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """Return the photographs that the repository ships, sorted; what they are: tests/photos/README.md."""
    return sorted(p for p in (ROOT / "tests" / "photos").iterdir() if p.suffix in {".jpg", ".png"})


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make one checkpoint a dense task: random weights, 2 layers, width 32, input 64x48; by task name."""
    from annotator.models import random_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints")
    paths = {task: folder / f"{task}.safetensors" for task in ("seg", "depth", "normal")}
    for seed, (task, path) in enumerate(paths.items()):
        random_checkpoint(path, task=task, embed_dim=32, num_layers=2, num_heads=4, input_hw=(64, 48), seed=seed)
    return paths
