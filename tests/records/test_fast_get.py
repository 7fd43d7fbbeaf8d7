"""Objects read by obstore, where it is installed, are those that s3fs reads, and so are the errors."""

from __future__ import annotations

import importlib.util

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotator import fast_get
from annotator.errors import NotFoundError
from tests.records.conftest import Place
from tests.records.faulty import FaultyServer

needs_obstore = pytest.mark.skipif(importlib.util.find_spec("obstore") is None, reason="obstore is not installed")
SIZES = [0, 1, 1000, 3_000_001]


@pytest.fixture(params=["s3fs", pytest.param("obstore", marks=needs_obstore)])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two reads; with s3fs the other counts as not installed."""
    if request.param == "s3fs":
        monkeypatch.setattr(fast_get, "is_installed", lambda: False)
    return str(request.param)


@pytest.mark.s3
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("length", [None, 1, 1000, 10_000_000])
def test_reads_give_the_object_or_its_beginning(client: str, place: Place, size: int, length: int | None) -> None:
    data = bytes(i % 251 for i in range(size))
    uri = place.put(data, "images", "a.jpg")
    assert place.storage.read(uri, length=length) == data[:length]


@pytest.mark.s3
def test_a_missing_object_is_said_to_be_missing(client: str, place: Place) -> None:
    place.put(b"x", "there")
    with pytest.raises(NotFoundError):
        place.storage.read(place.uri("gone.jpg"), length=10)


@pytest.mark.s3
@pytest.mark.parametrize("key", ["a b", "per%20cent", "what?x=1", "\u00e9t\u00e9", "plus+and&", "dot.", "k=v@2"])
def test_keys_of_any_spelling_are_read(client: str, place: Place, key: str) -> None:
    assert place.storage.read(place.put(key.encode(), key), length=100) == key.encode()


@pytest.mark.s3
def test_an_image_costs_one_request(client: str, faulty: tuple[FaultyServer, Place]) -> None:
    server, place = faulty
    uri = place.put(b"12345", "image.jpg")
    place.storage.read(uri, length=3)  # what is asked once, if anything
    before = len(server.requests)
    assert place.storage.read(uri, length=3) == b"123"
    assert [method for method, _, _ in server.requests[before:]] == ["GET"]


@needs_obstore
@pytest.mark.s3
def test_what_obstore_can_not_read_is_left_to_s3fs_for_good(
    faulty: tuple[FaultyServer, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, place = faulty
    uri = place.put(b"12345", "image.jpg")
    broken = fast_get._Bucket(object())
    monkeypatch.setattr(fast_get, "_bucket", lambda *_: broken)
    for _ in range(30):
        assert place.storage.read(uri, length=3) == b"123"
    assert broken._balance == 0


@pytest.mark.parametrize("key", ["a//b", "/a", "a/", "a b", "../x", "a/./b", "a/../b", "..", "a%20", "", "\u00e9"])
def test_keys_that_obstore_would_spell_in_another_way_are_none_of_its(key: str) -> None:
    assert not fast_get._PLAIN_KEY.fullmatch(key)


@given(st.lists(st.from_regex(r"[A-Za-z0-9_=@-][A-Za-z0-9._=@-]{0,9}", fullmatch=True), min_size=1, max_size=5))
def test_plain_keys_are(parts: list[str]) -> None:
    assert fast_get._PLAIN_KEY.fullmatch("/".join(parts))
