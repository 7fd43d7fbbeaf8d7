"""What stands between a run and its S3 server: it counts, delays and fails requests, and tells who commits."""

from __future__ import annotations

import http.client
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from tests.records.faulty import FaultyServer

_LABEL = re.compile(r"/labels/([a-z]+/[^?]+\.parquet)")
_IMAGE = re.compile(r"/images/image-(\d+)\.")


class Proxy(FaultyServer):
    """An S3 server that a chaos run disturbs.

    commits    label files created, by path below labels/, in order
    begun      how often the first image of a shard was handed out, by its number: executions of that shard
    put_s      seconds that each commit takes longer, so that there is time to disturb it; not of `hurried`, a shard
    on_commit  is asked before a commit, with path and the client's port; True cuts the connection
    on_late    is told of a commit that found its label file there, before the client is
    """

    def __init__(self, behind: str, *, seed: int, shard_rows: int) -> None:
        super().__init__(behind)
        self.commits: list[str] = []
        self.begun: Counter[int] = Counter()
        self.hits: Counter[str] = Counter()
        self.put_s = 0.0
        self.hurried = ""
        self.on_commit: Callable[[str, int], bool] = lambda path, port: False
        self.on_late: Callable[[str, int], None] = lambda path, port: None
        self.choose = self._choose
        self._random, self._shard_rows = random.Random(seed), shard_rows
        self._share: dict[str, tuple[float, float]] = {}  # fault: share of requests, until when
        self._here = threading.local()

    def disturb(self, fault: str, *, share: float, seconds: float) -> None:
        """Let this share of requests fail in this way for a while; `slow` takes a second, and succeeds."""
        self._share[fault] = (share, time.monotonic() + seconds)

    def _choose(self, method: str, path: str) -> str | None:
        self._here.fault = None
        label = _LABEL.search(path)
        if method == "PUT" and label is not None:
            time.sleep(0 if self.hurried and self.hurried in path else self.put_s)
            if self.on_commit(label[1], self._here.port):
                return "reset"
        for fault, (share, end) in list(self._share.items()):
            if time.monotonic() < end and self._random.random() < share:
                self.hits[fault] += 1
                if fault == "slow":
                    time.sleep(1)
                    continue
                self._here.fault = fault
                return fault
        return None

    def _forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        try:
            status, found, data = super()._forward(method, path, headers, body)
        except (OSError, http.client.HTTPException) as err:
            raise ConnectionError("no server behind the proxy") from err
        label, image = _LABEL.search(path), _IMAGE.search(path)
        with self._lock:
            if method == "PUT" and label is not None and status == 200:
                self.commits.append(label[1])
            if method == "GET" and image is not None and status in (200, 206) and self._here.fault is None:
                self.begun[int(image[1])] += int(image[1]) % self._shard_rows == 0
        if method == "PUT" and label is not None and status == 412:
            self.on_late(label[1], self._here.port)
        return status, found, data

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer, base = self, super()._handler()

        class Handler(base):  # type: ignore[misc, valid-type]
            def handle(self) -> None:
                outer._here.port = self.client_address[1]  # a connection has a thread of its own
                super().handle()

        return Handler
