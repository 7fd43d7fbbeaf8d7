"""Of all who read one version of an object, one replaces it; who loses is told so."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from annotator import local as local_files
from annotator.errors import AccessError, TransientStorageError
from tests.records.conftest import SERVERS, Place
from tests.records.faulty import FaultyServer

Faulty = tuple[FaultyServer, Place]
on_both = pytest.mark.parametrize("faulty", SERVERS, indirect=True)

NAME = "labels/seg/a.parquet"


def version_of(place: Place, name: str = NAME) -> str:
    version = place.storage.info(place.uri(name)).version
    assert version is not None
    return version


def replace_if(place: Place, data: bytes | Path, version: str, name: str = NAME) -> bool:
    return place.storage.replace_if(data, version, place.uri(name), output=place.root)


def test_the_version_that_was_read_is_replaced_and_an_older_one_is_not(place: Place, tmp_path: Path) -> None:
    place.create(b"first", NAME)
    version = version_of(place)
    assert version == version_of(place)  # looking does not change it
    spool = tmp_path / "spool"
    spool.write_bytes(os.urandom(300_001))
    assert replace_if(place, spool, version) is True
    assert version_of(place) != version
    assert replace_if(place, b"third", version) is False
    assert place.storage.read(place.uri(NAME)) == spool.read_bytes()
    assert replace_if(place, b"third", version_of(place)) is True
    assert place.storage.read(place.uri(NAME)) == b"third"
    assert place.names("labels") == [NAME]


def test_what_is_gone_is_not_brought_back(place: Place) -> None:
    place.put(b"x", "there")
    assert replace_if(place, b"new", version_of(place, "there"), "gone") is False
    assert place.storage.exists(place.uri("gone")) is False


def test_an_object_that_create_found_is_not_touched(place: Place) -> None:
    """A run beside it only creates what is missing."""
    place.create(b"first", NAME)
    version = version_of(place)
    assert place.create(b"second", NAME) is False
    assert replace_if(place, b"third", version) is True
    assert place.create(b"second", NAME) is False
    assert place.storage.read(place.uri(NAME)) == b"third"


def test_of_16_racing_writers_who_read_one_version_one_wins(place: Place) -> None:
    place.create(b"first", NAME)
    version = version_of(place)
    bodies = [bytes([n]) * 50_000 for n in range(16)]
    start = threading.Barrier(16)

    def write(body: bytes) -> bool:
        start.wait()
        return replace_if(place, body, version)

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(write, bodies))
    assert sum(won) == 1
    assert place.storage.read(place.uri(NAME)) == bodies[won.index(True)]
    assert place.names("labels") == [NAME]


def test_every_one_of_many_who_read_again_has_a_turn(place: Place) -> None:
    """Eight writers add their letter to a text, reading it again after each defeat: no letter is lost."""
    place.create(b"", NAME)

    def add(letter: str) -> None:
        for _ in range(200):
            version = version_of(place)
            text = place.storage.read(place.uri(NAME))
            if replace_if(place, text + letter.encode(), version):
                return
        raise AssertionError("never had a turn")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, "abcdefgh"))
    assert sorted(place.storage.read(place.uri(NAME)).decode()) == list("abcdefgh")


# -- S3 only ---------------------------------------------------------------------------------------


@pytest.mark.s3
def test_an_object_that_came_in_parts_is_replaced_like_any_other(place: Place) -> None:
    """Its etag is no digest of its bytes ("...-2"): nothing here may take it for one."""
    if not place.root.startswith("s3://"):
        pytest.skip("files have no parts")
    client = boto3.client("s3", endpoint_url=place.storage.options.endpoint_url, region_name="us-east-1")
    names = {"Bucket": place.root[5:], "Key": NAME}
    upload = {**names, "UploadId": client.create_multipart_upload(**names)["UploadId"]}
    parts = [
        {"PartNumber": n, "ETag": client.upload_part(**upload, PartNumber=n, Body=b"x" * 5 * 2**20)["ETag"]}
        for n in (1, 2)
    ]
    client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    client.close()
    version = version_of(place)
    assert version.endswith("-2")
    assert replace_if(place, b"new", version) is True
    assert replace_if(place, b"newer", version) is False
    assert place.storage.read(place.uri(NAME)) == b"new"


@pytest.mark.s3
@on_both
@pytest.mark.parametrize("fault", ["slow_down", "internal", "lost", "reset", "conflict"])
def test_two_passing_faults_make_no_difference(faulty: Faulty, fault: str, tmp_path: Path) -> None:
    """After a lost reply the second try meets its own object; it must not pass for somebody else's."""
    server, place = faulty
    place.create(b"first", NAME)
    version = version_of(place)
    spool = tmp_path / "spool"
    spool.write_bytes(os.urandom(700_000))
    server.faults = [fault, fault]
    assert replace_if(place, spool, version) is True
    assert place.storage.read(place.uri(NAME)) == spool.read_bytes()


@pytest.mark.s3
@on_both
def test_somebody_elses_object_after_a_lost_request_is_theirs(faulty: Faulty) -> None:
    """Equal bytes do not make it ours: exactly one of two is told that it replaced the object."""
    server, place = faulty
    place.create(b"first", NAME)
    version = version_of(place)
    assert replace_if(place, b"same", version) is True
    server.faults = ["reset"]
    assert replace_if(place, b"same", version) is False


@pytest.mark.s3
def test_what_will_not_pass_is_said_at_once(faulty: Faulty) -> None:
    server, place = faulty
    place.create(b"first", NAME)
    version = version_of(place)
    for fault, error in (("forbidden", AccessError), ("slow_down", TransientStorageError)):
        server.faults = [fault] * 3
        with pytest.raises(error):
            replace_if(place, b"second", version)
    assert place.storage.read(place.uri(NAME)) == b"first"


# -- local only ------------------------------------------------------------------------------------


def test_nothing_temporary_is_left(local: Place) -> None:
    local.create(b"first", NAME)
    version = version_of(local)
    assert [replace_if(local, b"second", version), replace_if(local, b"third", version)] == [True, False]
    assert os.listdir(local.uri("_annotator/tmp")) == []


def test_a_link_to_a_file_does_not_make_it_another(local: Place) -> None:
    """A backup by hard links, or `create` itself, which unlinks its temporary name a moment later."""
    local.create(b"first", NAME)
    version = version_of(local)
    os.link(local.uri(NAME), local.uri("backup"))
    assert replace_if(local, b"second", version) is True
    assert local.storage.read(local.uri("backup")) == b"first"


def test_a_holder_that_never_lets_go_is_waited_for_in_bounded_time(
    local: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped amid its turn: nobody may replace anything before it goes on or dies."""
    monkeypatch.setattr(local_files, "_LOCK_S", 0.05)
    local.create(b"first", NAME)
    with (
        local_files._locked(local.uri("_annotator/replace.lock")),
        pytest.raises(TransientStorageError, match=r"replace\.lock"),
    ):
        replace_if(local, b"second", version_of(local))
    assert local.storage.read(local.uri(NAME)) == b"first"
    assert replace_if(local, b"second", version_of(local)) is True
