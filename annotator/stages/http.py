"""Pictures by http and https, from public addresses only.

The address is judged where a socket is made for it, after the name was resolved and for every redirect anew: between
that and the connection there is no second look-up that could answer differently. Why aiohttp (2026-11): it hands
over that very moment (`socket_factory`), and one deadline holds for look-up, connection, headers and body, so that a
server which trickles bytes costs no more time than one that is silent. It comes with s3fs.

Nothing of the environment is used: no proxy, no .netrc, no cookies. A user and a password in a uri are refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable, Collection
from typing import Any, cast

import aiohttp
from yarl import URL

from annotator.errors import AccessError, ImageError, NotFoundError, StorageError, TransientStorageError, redact
from annotator.faults import retry
from annotator.job import Limits

MAX_REDIRECTS = 5

_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (408, 425, 429)  # and all of 500 to 599
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are the IPv4 address that is meant
_NOBODYS = tuple(
    map(
        ipaddress.ip_network,
        # IANA's registries of special-purpose addresses, where some versions of Python know less; the last one is
        # public by its number alone: the host of a machine on Azure
        ("192.0.0.0/24", "64:ff9b:1::/48", "2001:db8::/32", "3fff::/20", "5f00::/16", "fec0::/10", "168.63.129.16/32"),
    )
)
_CHUNK = 2**18


def is_public(address: str) -> bool:
    """Return whether an IP address is one that anybody on the internet reaches at the same place."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo or (None, None))[1]
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    special = ip.is_private or ip.is_multicast or ip.is_reserved or any(ip in network for network in _NOBODYS)
    return ip.is_global and not special


class Http:
    """Reads uris on an event loop of its own; safe for threads. Close it.

    `may_reach` says of an IP address whether a socket to it may be made.
    """

    def __init__(
        self, limits: Limits, schemes: Collection[str], *, may_reach: Callable[[str], bool] = is_public
    ) -> None:
        self._limits, self._schemes, self._may_reach = limits, frozenset(schemes), may_reach
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="http", daemon=True)
        self._thread.start()
        self._session = self._run(self._open())

    def close(self) -> None:
        self._run(self._session.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def read(self, uri: str, *, length: int) -> bytes:
        """Return what the uri gives, its first `length` bytes at most; passing faults are tried again.

        Raises StorageError of the kind that the fault is; ImageError `rejected` with address_not_allowed or
        redirect_not_allowed.
        """
        shown = redact(uri)
        return cast(bytes, retry(lambda: self._run(self._attempt(uri, shown, length)), shown, self._limits.attempts))

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> aiohttp.ClientSession:
        # Addresses one after the other: a refusal must end the attempt, not lose a race.
        connector = aiohttp.TCPConnector(
            limit=0,  # the worker's threads are the limit
            resolver=aiohttp.ThreadedResolver(),
            happy_eyeballs_delay=None,
            socket_factory=self._socket,
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            auto_decompress=False,  # a picture is compressed already; what is packed again could be a bomb
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "annotator", "Accept-Encoding": "identity"},
            trust_env=False,
        )

    def _socket(self, info: Any) -> socket.socket:
        """Make the socket for one resolved address, or refuse to."""
        family, kind, protocol, _, address = info
        if not self._may_reach(address[0]):
            raise ImageError(
                "rejected", "address_not_allowed", f"{address[0]} is no public address; put its images on S3 or a disk"
            )
        return socket.socket(family, kind, protocol)

    async def _attempt(self, uri: str, shown: str, length: int) -> bytes:
        """Try once. `shown` is the uri as messages may hold it."""
        try:
            return await asyncio.wait_for(self._get(uri, shown, length), self._limits.fetch_timeout_s)
        except asyncio.TimeoutError:
            seconds = f"{self._limits.fetch_timeout_s:g} s"
            raise TransientStorageError(f"{shown}: not read within limits.fetch_timeout_s = {seconds}") from None
        except ImageError as err:
            raise ImageError(err.status, err.error_class, f"{shown}: {err}") from None
        except aiohttp.ClientError as err:
            raise _translate(err, shown) from None

    async def _get(self, uri: str, shown: str, length: int) -> bytes:
        url = parse(uri)
        for _ in range(1 + MAX_REDIRECTS):
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status == 200:
                    return await _read(response, length)
                if response.status not in _REDIRECTS or "Location" not in response.headers:
                    raise _of_status(response.status, shown)
                url = redirected(url, response.headers["Location"], self._schemes)
        raise StorageError(f"{shown}: more than {MAX_REDIRECTS} redirects")


async def _read(response: aiohttp.ClientResponse, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        chunk = await response.content.read(min(_CHUNK, length - len(data)))
        if not chunk:
            break
        data += chunk
    return bytes(data)


def parse(uri: str) -> URL:
    """Return the uri, sent as it is written if it is fit to be. Raises StorageError for one that is of no use."""
    shown = redact(uri)
    try:
        url = _url(uri)
        host = url.host
        url.port  # noqa: B018 - is only checked when it is asked for
    except ValueError:  # its text may hold a password that was taken for a port
        raise StorageError(f"{shown}: no uri that can be read; expected https://host/path") from None
    if not host:
        raise StorageError(f"{shown}: names no host")
    if url.user is not None or url.password is not None:
        raise StorageError(f"{shown}: holds a user or a password, which are not sent; use a presigned uri, or S3")
    return url


def _url(text: str) -> URL:
    return URL(text, encoded=text.isascii() and text.isprintable() and " " not in text)


def redirected(url: URL, location: str, schemes: Collection[str]) -> URL:
    """Return where a redirect leads. Raises ImageError for another kind of uri, or one from https to http."""
    try:
        target = url.join(_url(location))
        text = str(target)
    except ValueError:
        raise StorageError("redirected to something that is no uri") from None
    if target.scheme not in ("http", "https") or target.scheme not in schemes:
        raise ImageError(
            "rejected", "redirect_not_allowed", f"redirected to {target.scheme}, which is not in sources.schemes"
        )
    if url.scheme == "https" and target.scheme == "http":
        raise ImageError(
            "rejected", "redirect_not_allowed", "redirected from https to http, where anybody could answer"
        )
    return parse(text)


def _of_status(status: int, shown: str) -> StorageError:
    what = f"{shown}: the server answered {status}"
    if status in _PASSING or 500 <= status < 600:
        return TransientStorageError(what)
    if status in (404, 410):
        return NotFoundError(what)
    if status in (401, 403):
        return AccessError(what)
    return StorageError(what)


def _translate(error: aiohttp.ClientError, shown: str) -> StorageError:
    """Return annotator's error: passing, unless the same request is bound to fail again."""
    what = f"{shown}: {' '.join(str(error).split())[:300] or type(error).__name__}"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        unknown = getattr(error.os_error, "errno", None) in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None))
        return NotFoundError(f"{shown}: no such host") if unknown else TransientStorageError(what)
    final = (aiohttp.InvalidURL, aiohttp.ClientSSLError, aiohttp.ClientResponseError)
    return StorageError(what) if isinstance(error, final) else TransientStorageError(what)
