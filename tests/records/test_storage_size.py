"""The contract of storage where size makes the difference, and what only a server that checks can show."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from annotator import faults
from annotator.errors import CredentialsError, NotFoundError
from annotator.job import StorageOptions
from annotator.storage import Storage, is_local
from tests.conftest import make_bucket
from tests.records.conftest import Place

BIG = 120 * 2**20  # beyond 100 MiB, where S3 libraries turn to uploads in parts


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "spool"
    with path.open("wb") as file:
        for _ in range(BIG // 2**20):
            file.write(os.urandom(2**20))
    return path


@pytest.mark.slow
def test_a_file_of_120_mb_is_created_whole_once_and_in_one_piece(place: Place, big: Path) -> None:
    uri = place.uri("labels", "big.parquet")
    assert place.create(big, "labels", "big.parquet") is True
    assert hashlib.sha256(place.storage.read(uri)).digest() == hashlib.sha256(big.read_bytes()).digest()
    info = place.storage.info(uri)
    assert info.size == BIG
    assert info.etag is None or "-" not in info.etag  # the etag of an upload in parts ends in their number
    assert place.create(b"late", "labels", "big.parquet") is False
    assert place.storage.info(uri) == info


@pytest.mark.slow
def test_nobody_sees_a_large_file_before_it_is_whole(place: Place, big: Path) -> None:
    uri, stop, sizes = place.uri("labels", "big.parquet"), threading.Event(), set()

    def look() -> None:
        other = Storage(place.storage.options)
        while not stop.is_set():
            try:
                sizes.add(other.info(uri).size)
            except NotFoundError:
                sizes.add(0)
            time.sleep(0.01)

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        place.create(big, "labels", "big.parquet")
        stop.set()
        looking.result()
    assert 0 in sizes
    assert sizes <= {0, BIG}


@pytest.mark.slow
def test_5000_names_are_listed_each_once_in_order(place: Place) -> None:
    """Five pages of S3."""
    names = sorted(f"n/{number % 7}/{number}" for number in range(5000))
    _fill(place, names)
    assert place.names("n") == names
    assert place.names("n/3") == [name for name in names if name.startswith("n/3/")]


def _fill(place: Place, names: list[str]) -> None:
    """Make empty files of these names, quickly."""
    if is_local(place.root):
        for name in names:
            path = Path(place.root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return
    import boto3

    bucket, url = place.root.removeprefix("s3://"), place.storage.options.endpoint_url
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda name: client.put_object(Bucket=bucket, Key=name, Body=b"x"), names))
    client.close()


# -- a server that checks signatures, which moto doesn't ------------------------------------------


@pytest.mark.s3
def test_a_wrong_secret_is_told_at_once(rgw_s3: StorageOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = make_bucket(rgw_s3)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not the secret")
    storage = Storage(rgw_s3, timeout_s=29)  # another client than that of other tests, which have the secret
    for call in (
        lambda: storage.read(f"{bucket}/x"),
        lambda: storage.info(f"{bucket}/x"),
        lambda: list(storage.list(bucket)),
        lambda: storage.create(b"x", f"{bucket}/x", output=bucket),
    ):
        before = faults.met[faults.RETRIED]
        with pytest.raises(CredentialsError, match=r"s3://.*: SignatureDoesNotMatch; renew") as caught:
            call()
        assert faults.met[faults.RETRIED] == before
        assert "not the secret" not in str(caught.value)
