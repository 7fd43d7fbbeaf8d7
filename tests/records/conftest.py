"""Places to store things in: a local folder and buckets of two servers, as one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from annotator.job import StorageOptions
from annotator.storage import Storage, join
from tests.conftest import S3_ENVIRONMENT, make_bucket
from tests.records.faulty import FaultyServer


@dataclass(frozen=True)
class Place:
    """Somewhere empty: `root` is its uri."""

    storage: Storage
    root: str

    def impatient(self) -> Place:
        """Return the same place, whose storage waits a second for a reply."""
        return Place(replace(self.storage, timeout_s=1), self.root)

    def uri(self, *parts: str) -> str:
        return join(self.root, *parts)

    def create(self, data: bytes | Path, *parts: str) -> bool:
        return self.storage.create(data, self.uri(*parts), output=self.root)

    def put(self, data: bytes, *parts: str) -> str:
        self.storage.replace(data, self.uri(*parts), output=self.root)
        return self.uri(*parts)

    def names(self, *parts: str) -> list[str]:
        """Return the uris below a folder, without the root."""
        return [info.uri.removeprefix(self.root + "/") for info in self.storage.list(self.uri(*parts))]


SERVERS = [pytest.param(name, marks=pytest.mark.s3) for name in ("moto", "rgw")]


@pytest.fixture(params=["local", *SERVERS])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "local":
        return Place(Storage(), str(tmp_path / "out"))
    options = request.getfixturevalue(f"{request.param}_s3")
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return Place(Storage(options), make_bucket(options))


@pytest.fixture
def local(tmp_path: Path) -> Place:
    return Place(Storage(), str(tmp_path / "out"))


@pytest.fixture
def faulty(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FaultyServer, Place]]:
    """A bucket behind a server that fails when told to; the server behind that is moto, or the fixture's parameter."""
    behind = request.getfixturevalue(f"{getattr(request, 'param', 'moto')}_s3")
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with FaultyServer(behind.endpoint_url).running() as server:
        options = StorageOptions(endpoint_url=server.url, region="us-east-1")
        yield server, Place(Storage(options, attempts=3, timeout_s=20), make_bucket(behind))
