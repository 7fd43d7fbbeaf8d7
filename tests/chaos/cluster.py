"""A Ray cluster of several nodes on this machine, whose nodes and workers can be lost one by one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

WORKER = "MapWorker"
OBJECT_STORE_BYTES = 80 * 2**20
HEALTH = {"health_check_period_ms": 1000, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}
"""A node that is silent for some 3 s is dead; Ray's own default takes five times as long."""


class Nodes:
    """The nodes of a cluster, and the processes of workers on them."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    @property
    def others(self) -> list[Any]:
        """The nodes that may be lost: all but the head."""
        nodes: list[Any] = sorted(self._cluster.worker_nodes, key=raylet)
        return nodes

    def workers(self, nodes: list[Any] | None = None) -> list[psutil.Process]:
        """Return the worker processes of these nodes, of all by default."""
        where = nodes if nodes is not None else [self._cluster.head_node, *self.others]
        return [child for node in where for child in _children(node) if _is_worker(child)]

    def lose(self, node: Any) -> None:
        """Kill all processes of a node."""
        for child in _children(node):
            child.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def add(self, *, num_gpus: int = 0) -> Any:
        """Start another node, of one CPU, or of four for each GPU; Ray takes our word for GPUs."""
        return self._cluster.add_node(
            num_cpus=4 * num_gpus or 1, num_gpus=num_gpus, object_store_memory=OBJECT_STORE_BYTES
        )


def _children(node: Any) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    with suppress(psutil.Error):  # it has just ended
        found = psutil.Process(raylet(node)).children(recursive=True)
    return found


def raylet(node: Any) -> int:
    """Return the process that is a node."""
    [info] = node.all_processes["raylet"]
    return int(info.process.pid)


def _is_worker(process: psutil.Process) -> bool:
    try:
        return WORKER in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def owns(process: psutil.Process, port: int) -> bool:
    """Return whether a connection from this port is the process's."""
    try:
        return any(found.laddr and found.laddr.port == port for found in process.net_connections("tcp"))
    except psutil.Error:
        return False


@contextmanager
def three_nodes(folder: str) -> Iterator[Nodes]:
    """Start a cluster of three nodes of one CPU, with its files in the folder; kill all of it afterwards."""
    with a_head(folder, num_cpus=1) as nodes:
        nodes.add()
        nodes.add()
        yield nodes


@contextmanager
def a_head(folder: str, *, num_cpus: int) -> Iterator[Nodes]:
    """Start the head of a cluster, with its files in the folder; kill it and all nodes that were added afterwards."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else Ray 2.60 turns it on here and not in drivers
    from ray._common.utils import get_default_ray_temp_dir
    from ray.cluster_utils import Cluster

    Path(get_default_ray_temp_dir()).mkdir(exist_ok=True)  # where Ray notes the address, and makes no folder for it

    head = {
        "num_cpus": num_cpus,
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
        "temp_dir": folder,
        "_system_config": HEALTH,
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield Nodes(cluster)
    finally:
        for node in list(cluster.worker_nodes):
            cluster.remove_node(node, allow_graceful=False)
        cluster.remove_node(cluster.head_node, allow_graceful=False)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {timeout_s:.0f} s in vain: {what}")
        time.sleep(0.05)


def stop(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def go_on(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
