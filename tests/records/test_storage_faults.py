"""S3 when it fails: what is tried again, what is given up at once, and what a lost reply does to a commit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from annotator.errors import AccessError, CredentialsError, StorageError, TransientStorageError
from tests.records.conftest import SERVERS, Place
from tests.records.faulty import FaultyServer

pytestmark = pytest.mark.s3
Faulty = tuple[FaultyServer, Place]

on_both = pytest.mark.parametrize("faulty", SERVERS, indirect=True)

PASSING = ["slow_down", "internal", "lost", "reset", "conflict"]


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    path = tmp_path / "spool"
    path.write_bytes(os.urandom(700_000))
    return path


@on_both
@pytest.mark.parametrize("fault", PASSING)
def test_a_commit_survives_two_passing_faults_whole(faulty: Faulty, spool: Path, fault: str) -> None:
    """The body is a file: each try must send all of it."""
    server, place = faulty
    server.faults = [fault, fault]
    created = place.create(spool, "labels", "a.parquet")
    assert created is (fault != "lost")  # after a lost reply our own object counts as existed
    assert place.storage.read(place.uri("labels/a.parquet")) == spool.read_bytes()
    assert {size for method, _, size in server.requests if method == "PUT"} == {700_000}


def test_a_server_that_falls_silent_costs_time(faulty: Faulty, spool: Path) -> None:
    server, place = faulty[0], faulty[1].impatient()
    server.hang_s = 1.5
    server.faults = ["hang", "hang"]
    assert place.create(spool, "labels", "a.parquet") is True
    server.faults = ["hang"]
    assert place.storage.read(place.uri("labels/a.parquet")) == spool.read_bytes()


@on_both
def test_faults_on_a_reused_connection_send_no_short_body(faulty: Faulty, spool: Path) -> None:
    """aiohttp repeats a PUT by itself when a kept connection turns out dead."""
    server, place = faulty
    place.create(b"warm", "warm")
    server.faults = ["reset", "lost"]
    place.create(spool, "a")
    assert place.storage.read(place.uri("a")) == spool.read_bytes()
    assert {size for method, _, size in server.requests[1:] if method == "PUT"} == {700_000}


@pytest.mark.parametrize("faulty", ["rgw"], indirect=True)  # moto compares no digest
@pytest.mark.parametrize("fault", ["cut", "empty"])
def test_a_middleman_that_loses_a_part_can_not_make_a_commit_short(faulty: Faulty, spool: Path, fault: str) -> None:
    """A worker that dies amid a PUT may leave half of it with a proxy, which passes on what it has."""
    server, place = faulty
    server.faults = [fault, fault]
    assert place.create(spool, "labels", "a.parquet") is True
    assert place.storage.read(place.uri("labels/a.parquet")) == spool.read_bytes()


@on_both
def test_a_commit_is_one_put(faulty: Faulty, spool: Path) -> None:
    server, place = faulty
    assert place.create(spool, "a") is True
    assert place.create(spool, "a") is False
    assert [method for method, _, _ in server.requests] == ["PUT", "PUT"]


@on_both
@pytest.mark.parametrize("fault", [*PASSING, "short"])
def test_a_read_survives_passing_faults(faulty: Faulty, fault: str) -> None:
    server, place = faulty
    uri = place.put(b"0123456789" * 1000, "x")
    server.faults = [fault]
    assert place.storage.read(uri, length=9_999) == (b"0123456789" * 1000)[:9_999]
    server.faults = [fault]
    assert place.storage.read(uri) == b"0123456789" * 1000


def test_a_read_is_one_request(faulty: Faulty) -> None:
    server, place = faulty
    uri = place.put(b"x" * 5000, "x")
    server.requests.clear()
    assert len(place.storage.read(uri, length=100)) == 100
    assert [method for method, _, _ in server.requests] == ["GET"]


@pytest.mark.parametrize("fault", [*PASSING, "short"])
def test_listing_survives_passing_faults(faulty: Faulty, fault: str) -> None:
    server, place = faulty
    place.put(b"x", "f", "x")
    server.faults = [fault]
    assert place.names("f") == ["f/x"]


def test_faults_that_stay_are_given_up_in_bounded_time(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("annotator.fast_get.is_installed", lambda: False)  # it would ask once more
    server, place = faulty
    server.faults = ["slow_down"] * 50
    with pytest.raises(TransientStorageError, match=r"SlowDown.*after 3 attempts"):
        place.storage.read(place.uri("x"))
    assert len(server.requests) == 3  # nobody below us tries on its own
    server.faults, server.hang_s = ["hang"] * 50, 1.5
    server.requests.clear()
    with pytest.raises(TransientStorageError):
        place.impatient().storage.exists(place.uri("x"))
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("forbidden", AccessError),
        ("wrong_key", CredentialsError),
        ("expired", CredentialsError),
        ("not_implemented", StorageError),
    ],
)
def test_what_will_not_pass_is_said_at_once(
    faulty: Faulty, fault: str, error: type[StorageError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one request; where obstore is installed a read that fails is asked once more, by s3fs."""
    monkeypatch.setattr("annotator.fast_get.is_installed", lambda: False)
    server, place = faulty
    server.faults = [fault] * 50
    for call in (lambda: place.storage.read(place.uri("x")), lambda: place.create(b"x", "x")):
        server.requests.clear()
        with pytest.raises(error) as caught:
            call()
        assert type(caught.value) is error and "s3://" in str(caught.value)
        assert len(server.requests) == 1


@on_both
def test_an_object_that_changes_while_it_is_read_is_not_mixed(faulty: Faulty) -> None:
    _, place = faulty
    uri = place.put(b"a" * 100, "x")
    with place.storage.open(uri) as file:
        assert file.read(10) == b"a" * 10
        place.put(b"b" * 100, "x")
        with pytest.raises(StorageError, match="was replaced"):
            file.read(10)
