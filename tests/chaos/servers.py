"""The S3 server of the chaos runs: Ceph's gateway, which can be killed and keeps what it holds."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from tests.servers import rgw


class Server:
    """A gateway whose front end can be killed and started again; what is stored stays, in the store behind it."""

    def __init__(self, gateway: rgw.Gateway) -> None:
        self.url = gateway.url
        self._process = gateway.processes[-1]
        self._environment = dict(os.environ)

    def restart(self, *, pause_s: float) -> None:
        """Kill the server; start it again after a while, and wait until it answers."""
        self.stop()
        time.sleep(pause_s)
        self._process = subprocess.Popen(
            self._process.args,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        end = time.monotonic() + 60
        while not self._answers():
            if time.monotonic() > end:
                raise TimeoutError("the restarted gateway gives no answer")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=5):
                return True
        except urllib.error.HTTPError as err:
            err.close()
            return True
        except OSError:
            return False

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def running() -> Iterator[Server]:
    """Start a gateway of our own. Raises rgw.NotInstallableError, saying why, where it can't be had."""
    rgw.install()
    with rgw.running() as gateway:
        server = Server(gateway)
        try:
            yield server
        finally:
            server.stop()
