"""What a worker tries before its first image: batch size by memory, speed of forward passes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from annotator.errors import CheckpointError
from annotator.geometry import Geometry
from annotator.stages import trial
from annotator.stages.device import Network
from annotator.stages.trial import batch_that_fits, largest_batch, try_out
from annotator.tasks import Input

GB = 10**9
CPU = torch.device("cpu")
SEEN = Input(np.zeros((8, 6, 3), np.uint8), Geometry((8, 6), (8, 6)))


@pytest.mark.parametrize(
    ("one", "two", "free", "expected"),
    [
        (3 * GB, 5 * GB, 80 * GB, 16),  # 1 GB whatever the batch and 2 an image: 33 GB of 64
        (3 * GB, 5 * GB, 24 * GB, 8),  # 17 GB of 19.2; 16 images would take 33
        (3 * GB, 5 * GB, 8 * GB, 2),
        (3 * GB, 5 * GB, 2 * GB, 1),  # one is tried whatever the memory
        (1 * GB, 1 * GB, 8 * GB, 16),  # takes nothing an image
    ],
)
def test_the_batch_is_the_largest_power_of_two_that_fits(one: int, two: int, free: int, expected: int) -> None:
    assert batch_that_fits(one, two, free, 16) == expected


@given(one=st.integers(1, 10**12), two=st.integers(1, 10**12), free=st.integers(0, 10**12), most=st.integers(1, 64))
def test_more_memory_never_means_a_smaller_batch(one: int, two: int, free: int, most: int) -> None:
    found = batch_that_fits(one, two, free, most)
    assert 1 <= found <= most
    assert found & (found - 1) == 0
    assert batch_that_fits(one, two, 2 * free, most) >= found


class Memory:
    """Stands for a GPU's allocator: 1 GB for anything, 2 GB an image, out of memory beyond `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit, self.peak, self.counts = limit, 0, list[int]()

    def forward(self, batch_BHW3: Tensor) -> Tensor:
        self.counts.append(len(batch_BHW3))
        self.peak = GB + 2 * GB * len(batch_BHW3)
        if self.peak > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch_BHW3

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {
            "empty_cache": lambda: None,
            "reset_peak_memory_stats": lambda _: None,
            "memory_allocated": lambda _: 0,
            "max_memory_allocated": lambda _: self.peak,
            "mem_get_info": lambda _: (self.limit, self.limit),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


def decode(output: Any, geometries: Sequence[Any]) -> list[dict[str, Tensor]]:
    return [{} for _ in geometries]


@pytest.mark.parametrize(("limit", "expected"), [(80 * GB, 16), (24 * GB, 8), (4 * GB, 1), (2 * GB, 1)])
def test_the_batch_is_chosen_by_probing_with_one_and_two_images(
    limit: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(limit)
    memory.install(monkeypatch)
    assert largest_batch(Network(forward=memory.forward, decode=decode), SEEN, CPU, 16) == expected
    assert memory.counts in ([1, 2], [1])


@pytest.mark.parametrize(("share", "expected"), [(1.0, 16), (0.5, 8), (0.25, 4), (0.05, 1)])
def test_a_worker_with_a_share_of_a_gpu_leaves_the_others_theirs(
    share: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(80 * GB)
    memory.install(monkeypatch)
    assert largest_batch(Network(forward=memory.forward, decode=decode), SEEN, CPU, 16, share) == expected


def test_a_batch_that_does_not_fit_is_halved_before_the_first_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probes may have been too hopeful, and a job may name a batch that is too large."""
    memory = Memory(6 * GB)
    memory.install(monkeypatch)
    network = Network(forward=memory.forward, decode=decode)
    assert try_out("seg", network, SEEN, CPU, 16)[1] == 2
    memory.limit = 2 * GB
    monkeypatch.setattr(trial, "BARE_S", -1.0)
    with pytest.raises(torch.OutOfMemoryError):
        try_out("seg", Network(forward=memory.forward, decode=decode), SEEN, CPU, 16)


def test_the_speed_of_forward_passes_alone_is_measured_on_a_full_batch() -> None:
    shapes = []

    def forward(batch_BHW3: Tensor) -> Tensor:
        shapes.append(tuple(batch_BHW3.shape))
        return batch_BHW3

    network, batch_size = try_out("seg", Network(forward=forward, decode=decode), SEEN, CPU, 4)
    assert network.bare_s > 0 and batch_size == 4
    assert shapes == [(1, 8, 6, 3), *[(4, 8, 6, 3)] * trial.BARE_BATCHES]


def test_a_slow_network_on_a_cpu_runs_once_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "BARE_S", 0.0)
    calls = []
    network = Network(forward=lambda batch_BHW3: calls.append(1), decode=decode)
    assert try_out("seg", network, SEEN, CPU, 4)[0].bare_s > 0
    assert calls == [1]


def test_a_network_that_always_fails_ends_the_run() -> None:
    def forward(batch_BHW3: Tensor) -> Tensor:
        raise RuntimeError("shapes differ")

    with pytest.raises(CheckpointError, match=r"tasks\.seg: its network fails on a blank image.*shapes differ"):
        try_out("seg", Network(forward=forward, decode=decode), SEEN, CPU, 2)
