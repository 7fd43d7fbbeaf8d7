"""Checkpoints from S3 are fetched once per machine, whole, within bounds; digests are cheap."""

from __future__ import annotations

import hashlib
import multiprocessing
from pathlib import Path

import pytest

from annotator.errors import CheckpointError
from annotator.job import StorageOptions
from annotator.models import cache
from annotator.models.cache import file_digest, local_copy
from annotator.models.checkpoint import inspect_checkpoint, load_model
from annotator.storage import Storage
from tests.models.support import tiny

pytestmark = pytest.mark.s3


@pytest.fixture
def remote(tmp_path: Path, s3_bucket: str, moto_s3: StorageOptions, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Storage(moto_s3)


def put(storage: Storage, uri: str, data: bytes) -> str:
    storage.replace(data, uri, output="")
    return uri


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/annotator/checkpoints").glob("*/weights"))


def test_remote_checkpoint_loads_like_a_local_one(tmp_path: Path, s3_bucket: str, remote: Storage) -> None:
    info = tiny(tmp_path / "x.safetensors")
    uri = put(remote, f"{s3_bucket}/w/x.safetensors", Path(info.uri).read_bytes())
    found = inspect_checkpoint(uri, storage=remote)
    assert (found.uri, found.sha256, found.config, found.random) == (uri, info.sha256, info.config, True)
    assert load_model(uri, storage=remote).config == info.config
    assert file_digest(uri, remote) == info.sha256
    assert len(entries(tmp_path)) == 1


def test_parts_are_put_together_in_order(
    tmp_path: Path, s3_bucket: str, remote: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_PART_BYTES", 1000)
    data = bytes(i * 7 % 251 for i in range(10_123))
    assert local_copy(put(remote, f"{s3_bucket}/x.pth", data), remote).read_bytes() == data


def test_replaced_object_is_fetched_anew(s3_bucket: str, remote: Storage) -> None:
    uri = put(remote, f"{s3_bucket}/x.pth", b"first")
    assert local_copy(uri, remote).read_bytes() == b"first"
    put(remote, uri, b"other")
    assert local_copy(uri, remote).read_bytes() == b"other"


def test_damaged_and_unfinished_copies_are_fetched_anew(s3_bucket: str, remote: Storage) -> None:
    uri = put(remote, f"{s3_bucket}/x.pth", b"the weights")
    path = local_copy(uri, remote)
    path.write_bytes(b"the w3ights")
    assert local_copy(uri, remote).read_bytes() == b"the weights"
    (path.parent / "digest.json").unlink()  # what a killed fetch leaves behind
    path.write_bytes(b"the")
    assert local_copy(uri, remote).read_bytes() == b"the weights"


def test_least_recently_used_entries_make_room(
    tmp_path: Path, s3_bucket: str, remote: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bound 2,500 bytes: three entries of 1,000 don't fit; the one not used last goes."""
    monkeypatch.setattr(cache, "CACHE_BYTES", 2500)
    a, b, c = (put(remote, f"{s3_bucket}/{n}.pth", n.encode() * 1000) for n in "abc")
    for uri in (a, b, a, c):
        local_copy(uri, remote)
    assert {p.read_bytes()[:1] for p in entries(tmp_path)} == {b"a", b"c"}


def test_disk_that_is_too_full_is_an_error_before_anything_is_fetched(
    s3_bucket: str, remote: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = put(remote, f"{s3_bucket}/x.pth", b"x" * 100)
    usage = type("Usage", (), {"free": 99})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="make room, or set XDG_CACHE_HOME"):
        local_copy(uri, remote)


def test_missing_object_is_a_checkpoint_error(s3_bucket: str, remote: Storage) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth: no such checkpoint"):
        load_model(f"{s3_bucket}/none.pth", storage=remote)


def fetch(uri: str, storage: Storage) -> tuple[str, int]:
    path = local_copy(uri, storage)
    return str(path), path.stat().st_ino


def test_concurrent_processes_fetch_once(s3_bucket: str, remote: Storage) -> None:
    """One inode: nobody replaced the file that another process may have mapped already."""
    uri = put(remote, f"{s3_bucket}/x.pth", b"w" * 300_000)
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert len(set(pool.starmap(fetch, [(uri, remote)] * 3))) == 1


def test_digest_is_that_of_the_files_bytes_and_follows_changes(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for content in (b"one", b"another" * 400_000):
        path.write_bytes(content)
        assert file_digest(str(path)) == hashlib.sha256(content).hexdigest()
