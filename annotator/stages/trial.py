"""What is tried before a worker's first image: that networks run, how many images fit, how fast they are alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from annotator.errors import CheckpointError
from annotator.stages.device import Network
from annotator.stages.memory import free_bytes
from annotator.tasks import Input

BARE_BATCHES, BARE_S = 3, 1.0
"""A loop of forward passes is timed over so many batches, fewer where they take longer than this altogether."""

MOST_AT_ONCE = 16
"""The largest batch that is chosen without being told: more gains next to nothing (roofline sheet)."""

_SPARE = 0.8  # of the memory that is free: the rest is for maps larger than those that were tried, and fragments


def try_out(name: str, network: Network, seen: Input, device: torch.device, batch_size: int) -> tuple[Network, int]:
    """Return the network with its speed measured, and the batch, halved until the memory holds it.

    On a GPU this is also where the network's one static shape is compiled. Raises CheckpointError for a network or
    task that always fails, so that it ends the run and marks no image; OutOfMemoryError where not even one image fits.
    """
    while True:
        try:
            return replace(network, bare_s=_measure(network, seen, device, batch_size)), batch_size
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
        except Exception as err:  # whatever a network raises
            raise CheckpointError(
                f"tasks.{name}: its network fails on a blank image, so on all: {type(err).__name__}: {err}; "
                "try the checkpoint with `annotator models inspect`"
            ) from err
        torch.cuda.empty_cache()
        batch_size //= 2


def _measure(network: Network, seen: Input, device: torch.device, batch_size: int) -> float:
    """Run a network to the end of its task, then alone; return seconds an input of the latter."""
    count = batch_size if device.type == "cuda" else 1
    start = time.perf_counter()
    with torch.inference_mode():
        network.decode(network.forward(_blank(seen, device, count)), [seen.geometry])
        if device.type == "cpu" and time.perf_counter() - start > BARE_S:
            return time.perf_counter() - start
        return bare_seconds(network, seen, device, batch_size)


def bare_seconds(
    network: Network, seen: Input, device: torch.device, batch_size: int, *, batches: int = BARE_BATCHES
) -> float:
    """Return seconds an input of a loop of forward passes over one batch in device memory, and nothing else."""
    batch_BHW3 = noise(seen, device, batch_size)
    done = 0
    start = time.perf_counter()
    while done < batches and (not done or time.perf_counter() - start < BARE_S):
        network.forward(batch_BHW3)
        _wait_for(device)
        done += 1
    return (time.perf_counter() - start) / (done * batch_size)


def largest_batch(network: Network, seen: Input, device: torch.device, most: int, share: float = 1.0) -> int:
    """Return how many images at once a worker's share of the device's memory holds, a power of two.

    Probes with one and with two. To be asked before the network is compiled: each new shape would be compiled, and
    eager code takes more.
    """
    peaks = []
    try:
        for count in (1, 2):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            with torch.inference_mode():
                network.decode(network.forward(_blank(seen, device, count)), [seen.geometry] * count)
            _wait_for(device)
            peaks.append(torch.cuda.max_memory_allocated(device) - before)
    except torch.OutOfMemoryError:
        return max(1, len(peaks))
    torch.cuda.empty_cache()  # what the probes left reserved is free as well
    return batch_that_fits(peaks[0], peaks[1], free_bytes(device, share), most)


def batch_that_fits(one: int, two: int, free: int, most: int) -> int:
    """Return the largest power of two, 1 to `most`, whose memory fits, given the bytes that one and two images took."""
    each = max(two - one, 0)
    room = free * _SPARE - (one - each)
    return max((n for n in _powers(most) if n * each <= room), default=1)


def noise(seen: Input, device: torch.device, count: int) -> Tensor:
    """Return a batch of random pixels on the device; zeros would run faster than pictures do."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, *seen.pixels_HWC.shape)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(device)


def _blank(seen: Input, device: torch.device, count: int) -> Tensor:
    return torch.from_numpy(seen.pixels_HWC).to(device)[None].repeat(count, 1, 1, 1)


def _powers(most: int) -> Iterator[int]:
    power = 1
    while power <= most:
        yield power
        power *= 2


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
