"""A connection to Ray: to a cluster, or to one that starts here, quietly, and is gone afterwards."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from annotator.errors import JobError
from annotator.stages.encode import Spool

MAX_INIT_DEATHS = 20
"""Workers that may die in a row while they start: spot nodes do."""

OBJECT_STORE_BYTES = 100 * 2**20
"""Enough for descriptors and summaries; Ray's floor is 75 MB."""

KEEP_FREED = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""Environment in which processes that run networks on the CPU start: glibc's malloc keeps what is freed (mallopt(3)).

By default large tensors go back to the system and come anew, cleared page by page: as much time as a forward pass takes
(docs/benchmarks.md). One arena, because only the first can keep blocks of any size.
"""

_CONNECT_S = 10.0


@contextmanager
def ray_session(address: str | None, *, on_cpu: bool = False) -> Iterator[None]:
    """Connect to a cluster, or start one here that is gone afterwards; `on_cpu`: its processes run networks on the CPU.

    Ray's threads print of dead workers until they end; what is printed meanwhile goes to standard error, for standard
    output is for results.
    """
    with redirect_stdout(sys.stderr), _session(address, on_cpu=on_cpu):
        yield


@contextmanager
def _session(address: str | None, *, on_cpu: bool) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ side complains of what Ray Data does
    if address is None:
        # Ray 2.60 turns token auth on by itself and then disagrees with itself (reference/ray.md section 0)
        os.environ["RAY_AUTH_MODE"] = "disabled"
        for name, value in KEEP_FREED.items() if on_cpu else ():
            os.environ.setdefault(name, value)
    else:
        _check_reach(address)
    import ray
    import ray.data

    for name in ("ray", "ray.data"):  # after the import, which sets levels of its own
        logging.getLogger(name).setLevel(logging.ERROR)
    folder = Spool(prefix="ann-") if address is None else None  # short: socket paths have 107 bytes
    kwargs: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if folder is not None:
        kwargs |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": str(folder.path),
            "_node_ip_address": "127.0.0.1",
        }
    started = not ray.is_initialized()
    try:
        if started:
            with warnings.catch_warnings(), _hushed():
                warnings.simplefilter("ignore", FutureWarning)  # of Ray's own coming defaults
                try:
                    with _own_sigterm():
                        ray.init(**kwargs)
                except (ConnectionError, RuntimeError) as err:
                    text = " ".join(str(err).split())[:300]
                    raise JobError(f"Ray at {address or 'this machine'}: {text}") from err
        _configure()
        yield
    finally:
        if started:
            ray.shutdown()
        if folder is not None:
            folder.close()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM that somebody set: Ray's own ends the process before a run can say how it ended."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _check_reach(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return  # "auto", or a name that Ray resolves
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as err:
        raise JobError(
            f"--address {address}: no Ray cluster answers ({err}); start one, or leave --address out"
        ) from None


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep what Ray's C++ side writes to standard error while it starts from the user's terminal."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _configure() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.target_max_block_size = 1  # summaries stream back one by one
    context.max_errored_blocks = -1  # a dead block is planned again; it must not end the run
    context.max_consecutive_actor_init_deaths = MAX_INIT_DEATHS
    context.execution_no_progress_timeout_s = -1  # a shard may take long; the worker watches itself
    context.enable_progress_bars = False
    context.print_on_execution_start = False
