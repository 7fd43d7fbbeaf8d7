"""The device thread: batches, bisection, and nobody left waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from annotator.errors import CheckpointError, ImageError, WorkerStalledError
from annotator.geometry import Geometry
from annotator.stages.device import Device, Network, Networks
from annotator.tasks import Arrays

POISON = 255
GEOMETRY = Geometry((4, 4), (4, 4))


def image(value: int) -> np.ndarray:
    return np.full((4, 4, 3), value, np.uint8)


def mean_of(output_BCHW: Tensor, geometries: Sequence[Geometry]) -> list[dict[str, Tensor]]:
    return [{"mean": output_CHW.mean()} for output_CHW, _ in zip(output_BCHW, geometries, strict=False)]


class Recorder:
    """A network that records its batches and fails on poisoned images."""

    def __init__(self, error: Callable[[], Exception] = lambda: RuntimeError("kernel failed")) -> None:
        self.batches: list[list[int]] = []
        self.error = error

    def __call__(self, batch_BHWC: Tensor) -> Tensor:
        values = [int(v) for v in batch_BHWC[:, 0, 0, 0]]
        self.batches.append(values)
        if POISON in values:
            raise self.error()
        return batch_BHWC.permute(0, 3, 1, 2).float()


@contextmanager
def running(*, batch_size: int = 4, **networks: Callable[[Tensor], Tensor]) -> Iterator[Device]:
    built = {name: Network(forward=forward, decode=mean_of) for name, forward in networks.items()}
    device = Device(lambda: Networks(built, batch_size), device=torch.device("cpu"))
    try:
        yield device
    finally:
        device.close()


def outcome(future: Future[Arrays]) -> float | str:
    try:
        return float(future.result(timeout=10)["mean"])
    except ImageError as err:
        return err.error_class


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.integers(0, POISON), min_size=1, max_size=12), batch_size=st.integers(1, 5))
def test_only_poisoned_images_fail_whatever_they_share_a_batch_with(values: list[int], batch_size: int) -> None:
    with running(batch_size=batch_size, net=Recorder()) as device:
        futures = [device.submit("net", image(v), GEOMETRY) for v in values]
        expected = ["model_failed" if v == POISON else float(v) for v in values]
        assert [outcome(f) for f in futures] == expected


def test_images_that_wait_together_share_a_batch() -> None:
    first_runs, go = threading.Event(), threading.Event()
    recorder = Recorder()

    def forward(batch_BHWC: Tensor) -> Tensor:
        first_runs.set()
        assert go.wait(10)
        return recorder(batch_BHWC)

    with running(batch_size=4, net=forward) as device:
        futures = [device.submit("net", image(0), GEOMETRY)]
        assert first_runs.wait(10)
        futures += [device.submit("net", image(v), GEOMETRY) for v in range(1, 9)]
        go.set()
        assert [outcome(f) for f in futures] == [float(v) for v in range(9)]
    assert recorder.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]


def test_a_lone_image_is_not_kept_waiting_for_a_full_batch() -> None:
    with running(batch_size=64, net=Recorder()) as device:
        start = time.monotonic()
        assert outcome(device.submit("net", image(7), GEOMETRY)) == 7.0
        assert time.monotonic() - start < 5


def test_each_network_gets_its_own_batches() -> None:
    left, right = Recorder(), Recorder()
    with running(batch_size=2, left=left, right=right) as device:
        futures = [device.submit(n, image(v), GEOMETRY) for v, n in enumerate(["left", "right", "left", "right"])]
        assert [outcome(f) for f in futures] == [0.0, 1.0, 2.0, 3.0]
    assert sorted(v for b in left.batches for v in b) == [0, 2]
    assert sorted(v for b in right.batches for v in b) == [1, 3]


def test_a_decode_that_refuses_one_image_spares_the_others() -> None:
    def decode(output_BCHW: Tensor, geometries: Sequence[Geometry]) -> list[dict[str, Tensor]]:
        if 2.0 in output_BCHW.mean(dim=(1, 2, 3)).tolist():
            raise ImageError("failed", "not_finite", "NaN")
        return mean_of(output_BCHW, geometries)

    networks = {"net": Network(forward=Recorder(), decode=decode)}
    device = Device(lambda: Networks(networks, 3), device=torch.device("cpu"))
    futures = [device.submit("net", image(v), GEOMETRY) for v in (1, 2, 3)]
    assert [outcome(f) for f in futures] == [1.0, "not_finite", 3.0]
    device.close()


def test_out_of_memory_halves_the_batch_and_loses_no_image() -> None:
    sizes: list[int] = []

    def forward(batch_BHWC: Tensor) -> Tensor:
        sizes.append(len(batch_BHWC))
        if len(batch_BHWC) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch_BHWC.permute(0, 3, 1, 2).float()

    with running(batch_size=8, net=forward) as device:
        futures = [device.submit("net", image(v), GEOMETRY) for v in range(8)]
        assert [outcome(f) for f in futures] == [float(v) for v in range(8)]
        assert device.batch_size <= 4
        more = [device.submit("net", image(v), GEOMETRY) for v in range(8)]
        assert [outcome(f) for f in more] == [float(v) for v in range(8)]
    assert max(sizes[-2:]) <= 2


def test_a_device_that_stops_computing_fails_every_waiting_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sticky CUDA error: every later kernel fails, so no image may be blamed."""

    def gone(*_: object, **__: object) -> Tensor:
        raise RuntimeError("illegal memory access")

    with running(batch_size=2, net=Recorder()) as device:
        monkeypatch.setattr(torch, "ones", gone)
        futures = [device.submit("net", image(v), GEOMETRY) for v in (POISON, 1)]
        for future in futures:
            with pytest.raises(WorkerStalledError):
                future.result(timeout=10)
        with pytest.raises(WorkerStalledError):
            device.submit("net", image(3), GEOMETRY)


def test_an_error_while_building_reaches_the_caller() -> None:
    def build() -> Networks:
        raise CheckpointError("weights.pth: no such file")

    with pytest.raises(CheckpointError, match="no such file"):
        Device(build, device=torch.device("cpu"))


def test_a_caller_waits_while_two_batches_are_enqueued() -> None:
    """Two batches of 2 may wait while one runs; the sixth and later inputs wait outside."""
    go, inside = threading.Event(), []

    def forward(batch_BHWC: Tensor) -> Tensor:
        assert go.wait(10)
        return batch_BHWC.permute(0, 3, 1, 2).float()

    with running(batch_size=2, net=forward) as device:

        def submit_ten() -> None:
            for v in range(10):
                inside.append(device.submit("net", image(v), GEOMETRY))

        caller = threading.Thread(target=submit_ten)
        caller.start()
        time.sleep(0.3)
        assert len(inside) <= 6
        go.set()
        caller.join(10)
        assert [outcome(f) for f in inside] == [float(v) for v in range(10)]


def test_closing_finishes_what_was_enqueued() -> None:
    with running(batch_size=64, net=Recorder()) as device:
        futures = [device.submit("net", image(v), GEOMETRY) for v in range(5)]
    assert [outcome(f) for f in futures] == [float(v) for v in range(5)]


def test_closing_does_not_wait_for_a_device_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for its images is told, and can end."""
    monkeypatch.setattr("annotator.stages.device.CLOSE_S", 0.2)
    hang = threading.Event()

    def forward(batch_BHWC: Tensor) -> Tensor:
        assert hang.wait(60)
        return batch_BHWC.permute(0, 3, 1, 2).float()

    with running(net=forward) as device:
        futures = [device.submit("net", image(value), GEOMETRY) for value in range(6)]
    try:
        for future in futures:
            with pytest.raises(WorkerStalledError):
                future.result(timeout=10)
    finally:
        hang.set()
