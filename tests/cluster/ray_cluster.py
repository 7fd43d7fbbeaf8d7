"""A Ray cluster of several nodes on this machine, started as people start one: `ray start`."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

RAY = str(Path(sys.executable).parent / "ray")
START_S = 90.0


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Where a cluster is: of its job server, of Ray itself, of each node's metrics; and its folder."""

    url: str
    address: str
    metrics: tuple[str, ...]
    folder: Path

    def logs(self) -> str:
        """Return all that Ray's own processes have logged."""
        return "".join(p.read_text(errors="replace") for p in self.folder.rglob("*.log") if p.is_file())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def ray_cluster(*, workers: int, auth: str, env: Mapping[str, str]) -> Iterator[RayCluster]:
    """Start a head with dashboard and job server, and worker nodes of one CPU each; without any the head computes.

    `env` is the environment of the nodes: what they know of S3, they know from there.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_", "ANNOTATOR_"))}
    # short: socket paths have 107 bytes
    folder = Path(tempfile.mkdtemp(prefix="rc-"))
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": auth, "PIP_NO_INDEX": "1", "HOME": str(folder)}
    environment = {**kept, **quiet, **env, "PATH": path}
    gcs, dashboard, metrics = free_port(), free_port(), [free_port() for _ in range(workers + 1)]
    common = ["--node-ip-address=127.0.0.1", "--object-store-memory=80000000", "--disable-usage-stats", "--block"]
    head = ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
    head.append(f"--num-cpus={0 if workers else 1}")
    cluster = RayCluster(
        url=f"http://127.0.0.1:{dashboard}",
        address=f"127.0.0.1:{gcs}",
        metrics=tuple(f"http://127.0.0.1:{port}/metrics" for port in metrics),
        folder=folder,
    )
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for index, port in enumerate(metrics):
            place = head if index == 0 else [f"--address={cluster.address}", "--num-cpus=1"]
            # a port of its own: two Rays on one machine would meet at the default
            own = [f"--metrics-export-port={port}", f"--dashboard-agent-listen-port={free_port()}"]
            stack.enter_context(_node([*place, *common, *own], environment, folder, index))
        yield cluster


@contextmanager
def _node(options: list[str], env: Mapping[str, str], folder: Path, index: int) -> Iterator[None]:
    out = folder / f"node-{index}.out"
    with out.open("wb") as file:
        node = subprocess.Popen([RAY, "start", *options], env=dict(env), stdout=file, stderr=subprocess.STDOUT)
    try:
        _wait_until_started(node, out)  # one after the other: Ray's nodes on one machine race for ports
        yield
    finally:  # killed, not asked: nothing of it is looked at afterwards, and Ray takes its time
        children = psutil.Process(node.pid).children(recursive=True) if node.poll() is None else []
        for process in (node, *children):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()


def _wait_until_started(node: subprocess.Popen[bytes], out: Path) -> None:
    deadline = time.monotonic() + START_S
    while "Ray runtime started" not in (said := out.read_text(errors="replace")):
        if node.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"a Ray node did not start (exit status {node.poll()}): {said[-800:]}")
        time.sleep(0.1)


class Scraper:
    """Reads the nodes' metrics every second, as Prometheus does every few; a context manager."""

    def __init__(self, urls: tuple[str, ...]) -> None:
        self._urls, self._seen = urls, dict[tuple[str, frozenset[tuple[str, str]]], float]()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Scraper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self._seen}

    def most(self, name: str, **labels: str) -> float:
        """Return the greatest value that a series of this name had, with these labels among its own."""
        return max(v for (n, found), v in self._seen.items() if n == name and labels.items() <= dict(found).items())

    def _run(self) -> None:
        while not self._over.wait(1.0):
            for url in self._urls:
                with suppress(OSError), urllib.request.urlopen(url, timeout=20) as reply:
                    self._read(reply.read().decode())

    def _read(self, text: str) -> None:
        for name, labels, value in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text, re.M):
            key = (name, frozenset(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels)))
            self._seen[key] = max(float(value), self._seen.get(key, 0.0))
