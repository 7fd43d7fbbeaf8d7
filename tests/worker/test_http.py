"""Pictures by http: what a server's answers mean, what is sent, and whom no manifest can make us talk to."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

import annotator
from annotator import faults
from annotator.errors import AccessError, ImageError, NotFoundError, StorageError, TransientStorageError
from annotator.job import Limits, Sources
from annotator.stages import http
from annotator.stages.http import Http, is_public, redirected
from tests.running.make import make_job, write_manifest
from tests.worker.support import label_rows
from tests.worker.web import Server, give

pytestmark = pytest.mark.slow

BOTH = ("http", "https")
LIMITS = Limits(attempts=2, fetch_timeout_s=2.0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(faults, "_FIRST_PAUSE_S", 0.001)
    found = Server()
    yield found
    found.close()


@pytest.fixture
def client() -> Iterator[Http]:
    """A client that may reach the test server; all else about it is real."""
    found = Http(LIMITS, BOTH, may_reach=lambda address: address == "127.0.0.1")
    yield found
    found.close()


@pytest.fixture
def strict() -> Iterator[Http]:
    """The client as a worker has it."""
    found = Http(LIMITS, BOTH)
    yield found
    found.close()


# -- reading --------------------------------------------------------------------------------------


def test_a_picture_is_read_once_and_no_further_than_asked(server: Server, client: Http) -> None:
    server.replies["/a"] = give(200, b"x" * 100_000)
    assert client.read(server.uri("/a"), length=1 << 20) == b"x" * 100_000
    assert client.read(server.uri("/a"), length=1001) == b"x" * 1001
    assert len(server.requests) == 2


def test_a_uri_is_sent_as_it_is_written_and_nothing_of_ours_with_it(
    server: Server, client: Http, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A signature covers the query to the letter; .netrc and proxies of the environment stay unused."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login user password hidden\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    path = "/a%2Fb%7E/c?X-Amz-Credential=AK%2F2026&X-Amz-Signature=ab%2Bc+d&e=%C3%A9"
    server.replies["/a%2Fb%7E/c"] = give(200, b"ok", Set_Cookie="session=1")
    for _ in range(2):
        assert client.read(server.uri(path), length=10) == b"ok"
    (first, headers), (again, later) = server.requests
    assert (first, again) == (path, path)
    assert not {"authorization", "cookie", "proxy-authorization"} & {name.lower() for name in [*headers, *later]}


@pytest.mark.parametrize(
    ("status", "error", "requests"),
    [
        (404, NotFoundError, 1),
        (410, NotFoundError, 1),
        (401, AccessError, 1),
        (403, AccessError, 1),
        (204, StorageError, 1),
        (206, StorageError, 1),
        (304, StorageError, 1),
        (400, StorageError, 1),
        (451, StorageError, 1),
        (408, TransientStorageError, 2),
        (429, TransientStorageError, 2),
        (500, TransientStorageError, 2),
        (503, TransientStorageError, 2),
        (529, TransientStorageError, 2),
    ],
)
def test_what_an_answer_means(status: int, error: type[Exception], requests: int, server: Server, client: Http) -> None:
    server.replies["/a"] = give(status)
    with pytest.raises(StorageError) as caught:
        client.read(server.uri("/a?sig=hidden"), length=10)
    assert type(caught.value) is error
    assert f"/a: the server answered {status}" in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert len(server.requests) == requests


def test_a_fault_that_passes_costs_nothing(server: Server, client: Http) -> None:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        give(*((503, b"") if len(server.requests) == 1 else (200, b"ok")))(handler)

    server.replies["/a"] = reply
    assert client.read(server.uri("/a"), length=10) == b"ok"


def test_half_a_reply_a_reset_and_silence_pass(server: Server, client: Http) -> None:
    def hang_up(handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)

    server.replies["/short"] = give(200, b"half", Content_Length="8")
    server.replies["/reset"] = hang_up
    for path in ("/short", "/reset"):
        short = server.replies[path]

        def reply(handler: BaseHTTPRequestHandler, short: Any = short) -> None:
            short(handler)
            handler.close_connection = True

        server.replies[path] = reply
        with pytest.raises(TransientStorageError, match="after 2 attempts"):
            client.read(server.uri(path), length=100)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(TransientStorageError, match="after 2 attempts"):
            client.read(f"http://127.0.0.1:{port}/", length=10)


@pytest.mark.parametrize("trickles", ["headers", "body", "redirects"])
def test_a_server_that_trickles_costs_no_more_than_the_limit(trickles: str, server: Server) -> None:
    """A byte every 50 ms: each read succeeds, and the whole never ends."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        if trickles == "redirects":
            time.sleep(0.2)
            return give(302, Location="/a")(handler)
        if trickles == "body":
            handler.send_response(200)
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
        else:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        try:
            for _ in range(100):
                handler.wfile.write(b"x")
                time.sleep(0.05)
        except OSError:  # the client has hung up, as it should
            handler.close_connection = True

    server.replies["/a"] = reply
    client = Http(Limits(attempts=1, fetch_timeout_s=0.5), BOTH, may_reach=lambda address: True)
    start = time.monotonic()
    try:
        with pytest.raises(TransientStorageError, match=r"limits\.fetch_timeout_s = 0\.5 s"):
            client.read(server.uri("/a"), length=1000)
    finally:
        client.close()
    assert time.monotonic() - start < 2.5


def test_many_threads_share_a_client(server: Server, client: Http) -> None:
    for i in range(60):
        server.replies[f"/{i}"] = give(200, str(i).encode())
    with ThreadPoolExecutor(30) as pool:
        found = list(pool.map(lambda i: client.read(server.uri(f"/{i}"), length=10), range(60)))
    assert found == [str(i).encode() for i in range(60)]


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://", "no host"),
        ("http:///path", "no host"),
        ("http://user:hidden@127.0.0.1/a", "a user or a password"),
        ("http://hidden@127.0.0.1/a", "a user or a password"),
        ("http://127.0.0.1:99999/a", "no uri that can be read"),
        ("http://[::1/a", "no uri that can be read"),
        ("http://user:hidden/word@127.0.0.1/a", "no uri that can be read"),
    ],
)
def test_a_uri_of_no_use_is_said_so(uri: str, said: str, client: Http) -> None:
    with pytest.raises(StorageError, match=said) as caught:
        client.read(uri, length=10)
    assert not isinstance(caught.value, TransientStorageError)
    assert "hidden" not in str(caught.value)


def test_a_host_without_address_is_not_found(client: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(NotFoundError, match="no such host"):
        client.read("http://no-such-host.example/a", length=10)

    def later(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", later)
    with pytest.raises(TransientStorageError):
        client.read("http://another-host.example/a", length=10)


# -- redirects ------------------------------------------------------------------------------------


def test_five_redirects_are_followed_and_no_sixth(server: Server, client: Http) -> None:
    for i in range(6):
        server.replies[f"/{i}"] = give(302, Location=f"/{i + 1}" if i % 2 else server.uri(f"/{i + 1}"))
    server.replies["/6"] = give(200, b"ok")
    assert client.read(server.uri("/1"), length=10) == b"ok"
    with pytest.raises(StorageError, match="more than 5 redirects"):
        client.read(server.uri("/0"), length=10)


@pytest.mark.parametrize(
    ("url", "location", "schemes", "outcome"),
    [
        ("https://a.example/x", "/y", BOTH, "https://a.example/y"),
        ("http://a.example/x", "https://b.example/y?sig=%2F", BOTH, "https://b.example/y?sig=%2F"),
        ("https://a.example/x", "//b.example/y", BOTH, "https://b.example/y"),
        ("https://a.example/x", "http://a.example/y", BOTH, "from https to http"),
        ("http://a.example/x", "https://a.example/y", ("http",), "not in sources.schemes"),
        ("http://a.example/x", "file:///etc/passwd", BOTH, "not in sources.schemes"),
        ("http://a.example/x", "s3://bucket/key", BOTH, "not in sources.schemes"),
        ("http://a.example/x", "ftp://a.example/y", BOTH, "not in sources.schemes"),
        ("http://a.example/x", "http://user:hidden@a.example/y", BOTH, "a user or a password"),
        ("http://a.example/x", "http://user:hidden/y@a.example/y", BOTH, "no uri"),
    ],
)
def test_where_a_redirect_may_lead(url: str, location: str, schemes: tuple[str, ...], outcome: str) -> None:
    try:
        assert str(redirected(URL(url), location, schemes)) == outcome
    except (ImageError, StorageError) as err:
        assert outcome in str(err)
        assert "hidden" not in str(err)


@pytest.mark.parametrize(
    "target", ["http://10.0.0.1/", "http://169.254.169.254/latest/meta-data", "http://[::1]:{port}/b"]
)
def test_a_redirect_into_the_house_is_refused(target: str, server: Server, client: Http) -> None:
    """The first server may be reached, 127.0.0.1 being allowed to this client; where it points to may not."""
    server.replies["/a"] = give(302, Location=target.format(port=server.port))
    with pytest.raises(ImageError) as caught:
        client.read(server.uri("/a"), length=10)
    assert caught.value.error_class == "address_not_allowed"
    assert [path for path, _ in server.requests] == ["/a"]


# -- addresses ------------------------------------------------------------------------------------

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.255.255.255",
    "240.0.0.1", "255.255.255.255", "168.63.129.16",
    "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "2002:7f00:1::", "2002:a00:1::1",
    "64:ff9b::a00:1", "64:ff9b::7f00:1", "2001:0:4136:e378:8000:63bf:f5ff:fffe",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_everybodys_is_not_public(address: str) -> None:
    """The last one is Teredo for 10.0.0.1; before it NAT64, 6to4 and mapped forms of private addresses."""
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "LOCALHOST.", "[::1]", "0.0.0.0", "10.1.2.3", "169.254.169.254", "[::ffff:127.0.0.1]",
        "[::ffff:a9fe:a9fe]", "2130706433", "017700000001", "0x7f000001", "127.1", "0x7f.1", "0177.0.0.1",
        "%31%32%37.0.0.1", "127.0.0.1%2523", "\uff11\uff12\uff17.0.0.1",
    ],
)  # fmt: skip
def test_no_way_of_writing_it_leads_to_this_machine(host: str, server: Server, strict: Http) -> None:
    """Decimal, octal, hexadecimal and short forms, escapes and full-width digits; the server sees no request."""
    server.replies["/a"] = give(200, b"secret")
    with pytest.raises((ImageError, StorageError)) as caught:
        strict.read(f"http://{host}:{server.port}/a", length=10)
    assert not isinstance(caught.value, TransientStorageError)
    assert not server.requests


def test_a_name_that_changes_its_address_is_judged_by_the_one_that_is_used(
    server: Server, strict: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name had a public address when anybody looked; at the connection it is ours."""
    asked: list[str] = []

    def rebind(host: str, port: int, *_: Any, **__: Any) -> Any:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    with pytest.raises(ImageError) as caught:
        strict.read(f"http://images.example:{server.port}/a", length=10)
    assert (caught.value.status, caught.value.error_class) == ("rejected", "address_not_allowed")
    assert "images.example" in str(caught.value)
    assert asked == ["images.example"]
    assert not server.requests


def test_one_private_address_among_public_ones_is_not_reached(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is public but nobody answers there; that must not make the second one good."""
    first = ("127.0.0.9", 1)

    def both(host: str, port: int, *_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", to) for to in (first, ("127.0.0.1", port))]

    client = Http(LIMITS, BOTH, may_reach=lambda address: address == first[0])
    monkeypatch.setattr(socket, "getaddrinfo", both)
    with pytest.raises(ImageError) as caught:
        client.read(f"http://images.example:{server.port}/a", length=10)
    assert caught.value.error_class == "address_not_allowed"
    assert not server.requests
    client.close()


# -- in a job -------------------------------------------------------------------------------------


def test_a_job_labels_pictures_that_it_reads_by_http(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=1, tasks=("seg",))
    server.replies["/a.jpg"] = give(200, (tmp_path / "images" / "image-0000.jpg").read_bytes())
    uris = [server.uri("/a.jpg?sig=hidden"), server.uri("/b.jpg?sig=hidden"), "../images/image-0000.jpg"]
    write_manifest(tmp_path / "manifest", uris)
    job = job.model_copy(update={"sources": job.sources.model_copy(update={"schemes": ("http", "file")})})
    monkeypatch.setattr(http, "Http", partial(Http, may_reach=lambda address: True))
    by_http, missing, local = label_rows(job)
    assert (by_http["status"], missing["error_class"]) == ("ok", "not_found")
    assert by_http["mask"] == local["mask"]
    assert "hidden" not in str([by_http, missing])


def test_a_job_reaches_no_private_address_and_says_so_in_the_row(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], server: Server
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=1, tasks=("seg",), sources=Sources(schemes=("http", "https")))
    write_manifest(tmp_path / "manifest", [server.uri("/a.jpg?sig=hidden")])
    (row,) = label_rows(job)
    assert (row["status"], row["error_class"]) == ("rejected", "address_not_allowed")
    assert (
        row["error"]
        == f"http://127.0.0.1:{server.port}/a.jpg: 127.0.0.1 is no public address; put its images on S3 or a disk"
    )
    assert annotator.verify(job.output).ok
    assert not server.requests
