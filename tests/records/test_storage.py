"""One contract, two stores: what holds for a local folder holds for S3."""

from __future__ import annotations

import io
import os
import pickle
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotator.errors import (
    AccessError,
    CredentialsError,
    NotFoundError,
    OutputError,
    StorageError,
    TransientStorageError,
)
from annotator.job import StorageOptions
from annotator.storage import Storage, is_local, join, normalize
from tests.records.conftest import Place

ODD_NAMES = [
    "a b",
    "per%20cent%",
    "k=v",
    "#hash",
    "what?x=1",
    "\u00e9t\u00e9-\u4e2d\u6587-\U0001f600",
    "plus+and&",
    "semi;,'\"",
    "dot.",
]


# -- create ----------------------------------------------------------------------------------------


def test_create_writes_once_and_says_so(place: Place) -> None:
    assert place.create(b"first", "labels", "a.parquet") is True
    assert place.create(b"second", "labels", "a.parquet") is False
    assert place.storage.read(place.uri("labels/a.parquet")) == b"first"


def test_create_takes_a_file(place: Place, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.write_bytes(os.urandom(3_000_001))
    assert place.create(spool, "big") is True
    assert place.storage.read(place.uri("big")) == spool.read_bytes()


def test_of_16_racing_writers_one_wins_and_its_bytes_stay(place: Place) -> None:
    bodies = [bytes([n]) * 50_000 for n in range(16)]
    start = threading.Barrier(16)

    def write(body: bytes) -> bool:
        start.wait()
        return place.create(body, "labels", "seg", "raced.parquet")

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(write, bodies))
    assert sum(won) == 1
    assert place.storage.read(place.uri("labels/seg/raced.parquet")) == bodies[won.index(True)]
    assert place.names("labels") == ["labels/seg/raced.parquet"]


def test_create_leaves_nothing_else_in_sight(place: Place) -> None:
    place.create(b"x", "labels", "a")
    place.create(b"x", "labels", "a")
    place.put(b"x", "run.json")
    assert place.names() == ["labels/a", "run.json"]


def test_replace_is_never_seen_half_done(place: Place) -> None:
    """A reader that polls sees only whole bodies, old or new, and never nothing."""
    bodies = [bytes([n]) * 40_000 for n in range(12)]
    uri = place.put(bodies[0], "run.json")
    stop = threading.Event()
    seen: list[bytes] = []

    def read() -> None:
        while not stop.is_set():
            seen.append(place.storage.read(uri))

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        for body in bodies:
            place.put(body, "run.json")
        stop.set()
        reader.result()
    assert set(seen) <= set(bodies)
    assert place.storage.read(uri) == bodies[-1]


# -- read, info, open ------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "length"), [(0, None), (0, 0), (0, 4), (3, None), (3, 4), (8, 99), (10, 1), (99, 5)])
def test_read_gives_any_part(place: Place, start: int, length: int | None) -> None:
    """Fewer bytes at the end, and none beyond it."""
    data = b"0123456789"
    expected = data[start:] if length is None else data[start : start + length]
    assert place.storage.read(place.put(data, "x"), start=start, length=length) == expected


@pytest.mark.parametrize("length", [None, 0, 1, 100])
def test_an_empty_object_reads_as_nothing(place: Place, length: int | None) -> None:
    """S3 answers 416 to any range of an empty object."""
    uri = place.put(b"", "empty")
    assert place.storage.read(uri, length=length) == b""
    assert place.storage.info(uri).size == 0
    with place.storage.open(uri) as file:
        assert file.read() == b""


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_names_like_others(place: Place, name: str) -> None:
    assert place.create(b"x", "f", name) is True
    assert place.create(b"y", "f", name) is False
    assert place.names() == [f"f/{name}"]
    [info] = place.storage.list(place.uri("f"))
    assert (place.storage.read(info.uri), place.storage.exists(info.uri)) == (b"x", True)
    with place.storage.open(info.uri) as file:
        assert file.read() == b"x"


def test_what_is_missing_is_missing_everywhere(place: Place) -> None:
    place.put(b"x", "folder", "file")
    for name in ("none", "folder", "folder/none", "folder/file/below"):
        uri = place.uri(name)
        assert place.storage.exists(uri) is False
        for ask in (place.storage.info, place.storage.read, place.storage.open):
            with pytest.raises(NotFoundError):
                ask(uri)
        with pytest.raises(NotFoundError):
            place.storage.read(uri, length=0)


def test_exists_is_never_stale(place: Place) -> None:
    """Nobody may be told of an old listing: a worker looks whether a shard is done."""
    other = Storage(place.storage.options)
    for n in range(3):
        uri = place.uri("labels", str(n))
        assert (other.exists(uri), place.names("labels")) == (False, [f"labels/{k}" for k in range(n)])
        place.create(b"x", "labels", str(n))
        assert other.exists(uri)
        assert [i.uri for i in other.list(place.uri("labels"))] == [place.uri("labels", str(k)) for k in range(n + 1)]


def test_open_reads_like_a_file(place: Place) -> None:
    data = bytes(range(256)) * 20
    with place.storage.open(place.put(data, "x")) as file:
        reference = io.BytesIO(data)
        for offset, whence, size in [(0, 0, 10), (5, 1, 7), (-20, 2, 100), (5000, 0, -1), (9000, 0, 5), (0, 0, 0)]:
            assert file.seek(offset, whence) == reference.seek(offset, whence)
            assert file.read(size) == reference.read(size)
            assert file.tell() == reference.tell()


def test_parquet_can_be_read_from_an_open_file_and_through_arrow(place: Place) -> None:
    table = pa.table({"x": list(range(1000))})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    uri = place.put(sink.getvalue(), "folder", "what? 1.parquet")
    with place.storage.open(uri) as file:
        assert pq.read_table(file) == table
    filesystem, path = place.storage.arrow(uri)
    assert pq.read_table(path, filesystem=filesystem) == table


def test_a_storage_travels_to_other_processes(place: Place) -> None:
    uri = place.put(b"x", "x")
    assert pickle.loads(pickle.dumps(place.storage)).read(uri) == b"x"


# -- list ------------------------------------------------------------------------------------------


def test_list_is_complete_and_sorted_by_uri(place: Place) -> None:
    """ "-" < "/" < "0": a folder sorts as its name with a slash, as S3 has it."""
    names = ["a/1", "a-b/1", "a0/1", "a/b/c/2", "z", "a.txt", "B/x"]
    for name in names:
        place.put(name.encode(), name)
    assert place.names() == sorted(names)
    assert place.names("a") == ["a/1", "a/b/c/2"]
    assert [info.size for info in place.storage.list(place.uri("a"))] == [3, 7]


def test_list_of_a_missing_folder_or_a_file_is_empty(place: Place) -> None:
    place.put(b"x", "abc")
    assert place.names("none") == place.names("ab") == place.names("abc") == []


def test_list_gives_the_version_that_info_gives_and_each_write_another(place: Place) -> None:
    place.put(b"old", "a", "x")
    (old,) = place.storage.list(place.uri("a"))
    assert old.version == place.storage.info(old.uri).version
    place.put(b"new", "a", "x")
    (new,) = place.storage.list(place.uri("a"))
    assert new.version == place.storage.info(old.uri).version != old.version


def test_delete_removes_an_object_and_minds_none_that_is_missing(place: Place) -> None:
    place.put(b"x", "a", "x")
    place.put(b"y", "a", "y")
    for _ in range(2):
        place.storage.delete(place.uri("a", "x"))
        assert place.names("a") == ["a/y"]


# -- local only ------------------------------------------------------------------------------------


def test_links_in_a_folder_are_followed_but_not_in_circles(local: Place, tmp_path: Path) -> None:
    local.put(b"x", "a", "file")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/more").write_bytes(b"y")
    Path(local.uri("a", "circle")).symlink_to(local.root)
    Path(local.uri("a", "there")).symlink_to(tmp_path / "elsewhere")
    Path(local.uri("a", "nowhere")).symlink_to(tmp_path / "gone")
    assert local.names("a") == ["a/circle/a/file", "a/circle/a/there/more", "a/file", "a/there/more"]


def test_pipes_and_folders_are_not_read(local: Place, tmp_path: Path) -> None:
    """A pipe named by a hostile manifest would block a worker for ever."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(NotFoundError, match="not a file"):
            local.storage.read(str(path), length=5)


def test_a_name_no_filesystem_takes_is_an_error_of_storage(local: Place) -> None:
    for name in ("nul\0byte", "x" * 5000):
        with pytest.raises(StorageError):
            local.storage.read(local.uri(name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_is_an_access_error(local: Place) -> None:
    uri = local.put(b"x", "x")
    os.chmod(uri, 0)
    with pytest.raises(AccessError):
        local.storage.read(uri)


def test_a_filesystem_that_cannot_link_is_refused_with_the_reason(local: Place) -> None:
    """`labels` is a link to a folder on another filesystem: no hard link goes there."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == Path(local.root).parent.stat().st_dev:
        pytest.skip("needs a second filesystem")
    with tempfile.TemporaryDirectory(dir=shm) as other:
        Path(local.root).mkdir()
        Path(local.root, "labels").symlink_to(other)
        with pytest.raises(OutputError, match=r"another filesystem .* hard link"):
            local.create(b"x", "labels", "a")
        assert os.listdir(other) == [] and os.listdir(local.uri("_annotator/tmp")) == []


def test_a_full_disk_says_so() -> None:
    """/dev/full fails each write with ENOSPC."""
    from annotator.faults import translate

    with pytest.raises(OSError) as caught, open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")
    error = translate(caught.value, "/data/labels/x")
    assert isinstance(error, StorageError) and "/data/labels/x: the disk is full" in str(error)


# -- uris ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "parts", "expected"),
    [
        ("s3://b", ("k",), "s3://b/k"),
        ("s3://b/", ("/k/", "l"), "s3://b/k/l"),
        ("/", ("a",), "/a"),
        ("/x/", (), "/x"),
        ("rel", ("a", "", "b"), "rel/a/b"),
    ],
)
def test_join_puts_single_slashes(base: str, parts: tuple[str, ...], expected: str) -> None:
    assert join(base, *parts) == expected


@pytest.mark.parametrize(
    ("uri", "base", "expected"),
    [
        ("s3://b/k/", None, "s3://b/k"),
        ("s3a://b/k", None, "s3://b/k"),
        ("s3://b/%20?x#y", None, "s3://b/%20?x#y"),
        ("file:///a%20b/c", None, "/a b/c"),
        ("/a%20b", None, "/a%20b"),
        ("/a//b/../c/", None, "/a/c"),
        ("x.jpg", "/m", "/m/x.jpg"),
        ("../x.jpg", "/m/n", "/m/x.jpg"),
        ("x y.jpg", "s3://b/m", "s3://b/m/x y.jpg"),
        ("./d/../x.jpg", "s3://b/m/", "s3://b/m/x.jpg"),
        ("../../../x.jpg", "s3://b/m", "s3://b/x.jpg"),
        ("/abs.jpg", "s3://b/m", "/abs.jpg"),
        ("s3://c/x", "/m", "s3://c/x"),
    ],
)
def test_normalize_gives_one_spelling(uri: str, base: str | None, expected: str) -> None:
    assert normalize(uri, base) == expected
    assert is_local(expected) is expected.startswith("/")


def test_a_relative_path_is_under_the_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert normalize("a/b") == str(tmp_path / "a/b")


@pytest.mark.parametrize("uri", ["gs://b/k", "ftp://x/y", "file://host/x"])
def test_an_unknown_scheme_names_the_known_ones(uri: str) -> None:
    with pytest.raises(StorageError, match="file://"):
        normalize(uri)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(lambda t: t.strip("/.")))
def test_normalize_is_idempotent(text: str) -> None:
    try:
        once = normalize(text, "/base")
    except StorageError:
        return
    assert normalize(once) == once


# -- S3 only: access -------------------------------------------------------------------------------


@pytest.mark.s3
def test_a_missing_bucket_is_an_error_even_for_list(moto_s3: StorageOptions) -> None:
    storage = Storage(moto_s3)
    with pytest.raises(NotFoundError, match="no such bucket"):
        list(storage.list("s3://no-such-bucket/labels"))
    with pytest.raises(NotFoundError, match="no such bucket"):
        storage.create(b"x", "s3://no-such-bucket/x", output="s3://no-such-bucket")


@pytest.mark.s3
@pytest.mark.parametrize("uri", ["s3://", "s3://bucket", "s3://Bad_/x", "s3://b@d/x", "s3://bucket/" + "k" * 2000])
def test_a_uri_that_names_no_object_is_an_error_of_storage(moto_s3: StorageOptions, uri: str) -> None:
    with pytest.raises(StorageError) as caught:
        Storage(moto_s3).read(uri)
    assert not isinstance(caught.value, TransientStorageError)


@pytest.mark.s3
def test_a_server_that_is_not_there_fails_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(StorageOptions(endpoint_url="http://127.0.0.1:9", region="us-east-1"), attempts=2)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    start = time.monotonic()
    with pytest.raises(TransientStorageError, match="after 2 attempts"):
        storage.read("s3://bucket/x")
    assert time.monotonic() - start < 10


@pytest.mark.s3
def test_without_credentials_the_message_says_what_to_set() -> None:
    storage = Storage(StorageOptions(endpoint_url="http://127.0.0.1:10", region="us-east-1"))
    with pytest.raises(CredentialsError, match="AWS_ACCESS_KEY_ID"):
        storage.read("s3://bucket/x")


@pytest.mark.s3
def test_a_profile_that_does_not_exist_is_named() -> None:
    with pytest.raises(CredentialsError, match="nobody"):
        Storage(StorageOptions(profile="nobody")).exists("s3://bucket/x")


def test_messages_hold_no_secret(local: Place) -> None:
    with pytest.raises(StorageError) as caught:
        local.storage.read("https://user:secret@host/x.jpg?X-Amz-Signature=secret")
    assert "secret" not in str(caught.value) and "host/x.jpg" in str(caught.value)


@pytest.mark.parametrize("bucket", ["key:hidden@bucket", "hidden@bucket", "key:hidden/slash@bucket"])
def test_a_user_in_an_s3_uri_is_refused_and_not_repeated(bucket: str) -> None:
    """botocore would quote it as the name of a bucket."""
    for call in (Storage().read, Storage().exists, lambda uri: list(Storage().list(uri))):
        with pytest.raises(StorageError, match="holds a user or a password") as caught:
            call(f"s3://{bucket}/x.jpg")
        assert "hidden" not in str(caught.value)
