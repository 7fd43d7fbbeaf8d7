"""An S3 server that fails on request: a proxy before the real test server, with a script of faults."""

from __future__ import annotations

import http.client
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast
from urllib.parse import urlsplit

ERRORS = {  # fault -> status, S3 error code
    "slow_down": (503, "SlowDown"),
    "internal": (500, "InternalError"),
    "conflict": (409, "ConditionalRequestConflict"),
    "forbidden": (403, "AccessDenied"),
    "missing": (404, "NoSuchKey"),
    "wrong_key": (403, "InvalidAccessKeyId"),
    "expired": (400, "ExpiredToken"),
    "not_implemented": (501, "NotImplemented"),
}


class FaultyServer:
    """`choose(method, path)` names the fault of a request; by default `faults` are used up one a request.

    A fault is a key of ERRORS or

    lost    the request is done, the reply never sent         reset   the connection ends amid the request
    short   half the reply's body is sent                     hang    no reply for `hang_s`
    cut     half the request's body is passed on as if it were all; "empty": nothing of it
    kill_half, kill_before, kill_after    `kill()` is called when half the request has come, when all of it has, when
                                          it is done; no reply is sent
    """

    def __init__(self, behind: str) -> None:
        self.faults: list[str] = []
        self.choose: Callable[[str, str], str | None] = lambda method, path: self._next_fault()
        self.kill: Callable[[], None] = lambda: None
        self.hang_s = 5.0
        self.requests: list[tuple[str, str, int]] = []  # method, path, bytes of body received
        self._behind = urlsplit(behind)
        self._lock = threading.Lock()
        self._is_away = False
        self._listen(0)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[FaultyServer]:
        self._start()
        try:
            yield self
        finally:
            self._stop()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Refuse connections, and cut those that are open, as a server does that is restarted."""
        self._is_away = True
        self._stop()
        try:
            yield
        finally:
            self._is_away = False
            self._listen(self._server.server_address[1])
            self._start()

    def _listen(self, port: int) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def _stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _next_fault(self) -> str | None:
        with self._lock:
            return self.faults.pop(0) if self.faults else None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # headers and body are two packets

            def log_message(self, format: str, *args: object) -> None:
                pass

            def handle(self) -> None:
                with suppress(ConnectionError):  # clients that are killed hang up
                    super().handle()

            def _serve(self) -> None:
                size = int(self.headers.get("Content-Length", 0))
                if size and not cast(io.BufferedReader, self.rfile).peek(1):  # the client went, and may ask anew
                    self.close_connection = True
                    return
                fault = outer.choose(self.command, self.path)
                if fault in ("reset", "kill_half") or outer._is_away:
                    self.rfile.read(size // 2)
                    self.close_connection = True
                    if fault == "kill_half":
                        outer.kill()
                    return
                body = self.rfile.read(size)
                if len(body) < size:  # the client went amid it
                    self.close_connection = True
                    return
                outer.requests.append((self.command, self.path, len(body)))
                if fault == "hang":
                    time.sleep(outer.hang_s)
                    self.close_connection = True
                    return
                if fault == "kill_before":
                    outer.kill()
                    self.close_connection = True
                    return
                if fault in ERRORS:
                    status, code = ERRORS[fault]
                    text = f"<Error><Code>{code}</Code><Message>asked for by the test</Message></Error>"
                    self._reply(status, {"Content-Type": "application/xml"}, text.encode())
                    return
                if fault in ("cut", "empty"):
                    body = body[: len(body) // 2] if fault == "cut" else b""
                status, headers, data = outer._forward(self.command, self.path, dict(self.headers), body)
                if fault in ("lost", "kill_after"):
                    self.close_connection = True
                    if fault == "kill_after":
                        outer.kill()
                elif fault == "short":
                    self._reply(status, headers, data, send=len(data) // 2)
                    self.close_connection = True
                else:
                    self._reply(status, headers, data)

            def _reply(self, status: int, headers: dict[str, str], data: bytes, send: int | None = None) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                        self.send_header(name, value)
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":  # else the next reply would begin with it
                    self.wfile.write(data if send is None else data[:send])

            do_GET = do_PUT = do_HEAD = _serve

        return Handler

    def _forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        headers = {k: v for k, v in headers.items() if k.lower() not in ("expect", "connection", "content-length")}
        connection = http.client.HTTPConnection(self._behind.hostname or "", self._behind.port, timeout=30)
        try:
            connection.request(method, path, body=body, headers=headers)
            reply = connection.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            connection.close()
