"""The device thread: images in, label arrays out, in batches that fill across shards.

One thread owns the networks, the device's streams and compilation. Callers enqueue and wait, so a batch
takes images of whatever shards are in flight and the device never idles at a shard's edge. On CUDA the
next batch is launched before the last one's results are read, so copies hide behind the forward pass.

A batch that fails is cut in halves until the poisonous image stands alone; that image fails, its
neighbours do not. Out of memory halves the batch for good.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from annotator.envelope import Status
from annotator.errors import ImageError, WorkerStalledError
from annotator.stages.times import StageTimes
from annotator.tasks import Arrays

LINGER_S = 0.05
"""How long a part-filled batch waits for more images: short beside a forward pass, long beside a decode."""

_STEPS = ("copy", "forward", "post-process", "copy")
"""What lies between the marks of a batch."""

CLOSE_S = 60.0
"""How long `close` waits for the batches that are enqueued: there are two a network at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """A model ready to run.

    forward  RGB uint8 (B, H, W, 3) on the device -> what `decode` understands
    decode   that, and the geometry of each input -> label tensors an input
    bare_s   seconds an input takes in a loop of forward passes alone; 0 where nobody measured
    """

    forward: Callable[[Tensor], Any]
    decode: Callable[[Any, Sequence[Any]], list[dict[str, Tensor]]]
    bare_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Networks:
    """What a device runs: networks by name, and how many images it takes at once at most."""

    by_name: Mapping[str, Network]
    batch_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceWork:
    """What the device has done so far.

    stages         (wall, CPU) seconds of copy, forward and post-process; wall on the device itself, so that the
                   three add up to the time in which it was busy; CPU of the device thread
    bare_s         seconds that a loop of forward passes alone would have taken for the same inputs
    bytes_to_host  of labels, copied from the device or left where they are if that is the host
    peak_device_bytes   the most memory of the device that was held at once, since the start; 0 on a CPU
    waiting        inputs enqueued right now
    batches        run so far; `batch_slots`, the places in them; `batch_inputs`, those that an input took
    device         its name; for a CPU with the threads that a network computes in
    """

    stages: dict[str, tuple[float, float]]
    bare_s: float
    bytes_to_host: int
    peak_device_bytes: int
    waiting: int
    batches: int
    batch_slots: int
    batch_inputs: int
    device: str


@dataclass(frozen=True, slots=True)
class _Request:
    input_HWC: np.ndarray
    geometry: Any
    result: Future[Arrays]
    since: float


@dataclass(frozen=True, slots=True)
class _Launched:
    """A batch under way: label tensors copied, or being copied, to the host. Marks: CUDA events between steps."""

    network: str
    requests: Sequence[_Request]
    labels: list[dict[str, Tensor]]
    marks: Sequence[torch.cuda.Event]


class Device:
    """Runs networks on one device in a thread of its own; see the module's docstring.

    `build` runs in that thread, loads the networks and may raise; the constructor waits for it and raises
    the same. `batch_size` is a ceiling; it only ever shrinks.
    """

    batch_size: int

    def __init__(self, build: Callable[[], Networks], *, device: torch.device) -> None:
        self._device = device
        self._times = StageTimes()
        self._bare_s, self._bytes_to_host = 0.0, 0
        self._batches = self._batch_slots = self._batch_inputs = 0
        self._queues: dict[str, deque[_Request]] = {}
        self._running: list[_Request] = []
        self._changed = threading.Condition()
        self._closed = False
        self._dead: BaseException | None = None
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(build, ready), name="device", daemon=True)
        self._thread.start()
        ready.result()

    def submit(self, network: str, input_HWC: np.ndarray, geometry: Any) -> Future[Arrays]:
        """Enqueue one input (RGB uint8) for one network; the future holds its label arrays.

        Waits while the network has two batches waiting: what is enqueued takes memory.

        The future raises ImageError when the network fails on this image alone, WorkerStalledError when
        the device itself is gone and the worker must be replaced.
        """
        request = _Request(input_HWC, geometry, Future(), time.monotonic())
        with self._changed:
            queue = self._queues[network]
            self._changed.wait_for(lambda: self._dead or self._closed or len(queue) < 2 * self.batch_size)
            if self._dead or self._closed:
                raise WorkerStalledError(f"the device thread has ended: {self._dead or 'closed'}")
            queue.append(request)
            self._changed.notify_all()
        return request.result

    def work(self) -> DeviceWork:
        """Return what the device has done so far."""
        peak = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0
        return DeviceWork(
            stages=self._times.seconds(),
            bare_s=self._bare_s,
            bytes_to_host=self._bytes_to_host,
            peak_device_bytes=peak,
            waiting=sum(len(queue) for queue in self._queues.values()),
            batches=self._batches,
            batch_slots=self._batch_slots,
            batch_inputs=self._batch_inputs,
            device=self._name,
        )

    def close(self) -> None:
        """Finish what is enqueued and end the thread; give both up after CLOSE_S, for a device can hang."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._give_up(TimeoutError(f"it did not end in {CLOSE_S:.0f} s"))

    def _run(self, build: Callable[[], Networks], ready: Future[None]) -> None:
        try:
            built = build()
            self._networks, self.batch_size = built.by_name, built.batch_size
            self._name = _name(self._device)
            self._queues = {name: deque() for name in self._networks}
        except BaseException as err:
            ready.set_exception(err)
            return
        ready.set_result(None)
        try:
            with torch.inference_mode():
                self._loop()
        except BaseException as err:  # the device is gone: nobody may wait for ever
            self._give_up(err)

    def _loop(self) -> None:
        launched: _Launched | None = None
        while True:
            taken = self._take(wait=launched is None)
            if taken is None and launched is None:
                return
            self._running = [r for r in self._running if not r.result.done()] + (taken[1] if taken else [])
            following = self._attempt(*taken) if taken else None
            if launched:
                self._finish(launched)
            launched = following
            if self._device.type == "cpu" and launched:  # nothing runs behind our back
                self._finish(launched)
                launched = None

    def _take(self, *, wait: bool) -> tuple[str, list[_Request]] | None:
        """Return the next batch; None when there is none and waiting is over or not asked for."""
        with self._changed:
            while True:
                waiting = [(name, queue) for name, queue in self._queues.items() if queue]
                if waiting:
                    name, queue = max(waiting, key=lambda item: (len(item[1]) >= self.batch_size, -item[1][0].since))
                    due_s = queue[0].since + LINGER_S - time.monotonic()
                    if len(queue) >= self.batch_size or due_s <= 0 or self._closed:
                        batch = [queue.popleft() for _ in range(min(self.batch_size, len(queue)))]
                        self._changed.notify_all()
                        return name, batch
                    if not wait:
                        return None
                    self._changed.wait(due_s)
                elif self._closed or not wait:
                    return None
                else:
                    self._changed.wait()

    def _attempt(self, network: str, requests: Sequence[_Request]) -> _Launched | None:
        """Launch a batch; if that fails, run its halves to the end instead and return None."""
        try:
            return self._launch(network, requests)
        except Exception as err:  # whatever a network raises
            self._bisect(network, requests, err)
            return None

    def _launch(self, network: str, requests: Sequence[_Request]) -> _Launched:
        found, marks = self._networks[network], self._mark([])
        with self._timed("copy"):
            batch_BHW3 = self._upload(requests)
        self._mark(marks)
        with self._timed("forward"):
            output = found.forward(batch_BHW3)
        self._mark(marks)
        with self._timed("post-process"):
            labels = found.decode(output, [r.geometry for r in requests])
        self._mark(marks)
        with self._timed("copy"):
            labels = [{name: self._download(value) for name, value in label.items()} for label in labels]
        return _Launched(network, requests, labels, self._mark(marks))

    def _timed(self, stage: str) -> AbstractContextManager[None]:
        """Count the body's CPU; its wall time as well, unless it only launches what a GPU does later."""
        return self._times.stage(stage, count_wall=self._device.type != "cuda")

    def _mark(self, marks: list[torch.cuda.Event]) -> list[torch.cuda.Event]:
        """Return the marks and, on a GPU, one more at what is launched next."""
        if self._device.type == "cuda":
            marks.append(torch.cuda.Event(enable_timing=True))
            marks[-1].record()
        return marks

    def _upload(self, requests: Sequence[_Request]) -> Tensor:
        batch_BHWC = torch.from_numpy(np.stack([r.input_HWC for r in requests]))
        if self._device.type != "cuda":
            return batch_BHWC
        # One static shape: a compiled network and the attention kernels' plans are made for it once.
        padding = self.batch_size - len(requests)
        if padding > 0:
            batch_BHWC = torch.cat([batch_BHWC, batch_BHWC[-1:].expand(padding, -1, -1, -1)])
        return batch_BHWC.pin_memory().to(self._device, non_blocking=True)

    def _download(self, label: Tensor) -> Tensor:
        if label.device.type != "cuda":
            return label
        host = torch.empty(label.shape, dtype=label.dtype, pin_memory=True)
        return host.copy_(label, non_blocking=True)

    def _finish(self, launched: _Launched) -> None:
        try:
            if launched.marks:
                launched.marks[-1].synchronize()
        except Exception as err:  # kernels fail when they are waited for
            self._bisect(launched.network, launched.requests, err)
            return
        for stage, begin, end in zip(_STEPS, launched.marks, launched.marks[1:], strict=False):
            self._times.add(stage, wall=begin.elapsed_time(end) / 1000)
        self._bare_s += self._networks[launched.network].bare_s * len(launched.requests)
        self._batches += 1
        self._batch_slots += max(self.batch_size, len(launched.requests))
        self._batch_inputs += len(launched.requests)
        self._bytes_to_host += sum(value.nbytes for label in launched.labels for value in label.values())
        for request, label in zip(launched.requests, launched.labels, strict=True):
            request.result.set_result({name: value.numpy() for name, value in label.items()})

    def _bisect(self, network: str, requests: Sequence[_Request], err: Exception) -> None:
        """Run the halves of a batch that failed; an image that fails alone gets the error."""
        self._check_alive(err)
        if isinstance(err, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            self.batch_size = max(1, min(self.batch_size, len(requests)) // 2)
        if len(requests) == 1:
            requests[0].result.set_exception(_alone(network, err))
            return
        middle = len(requests) // 2
        for half in (requests[:middle], requests[middle:]):
            launched = self._attempt(network, half)
            if launched:
                self._finish(launched)

    def _check_alive(self, err: Exception) -> None:
        """Raise `err` if the device no longer computes: then it is not the image's fault."""
        try:
            alive = int(torch.ones(2, device=self._device).sum().item()) == 2
        except RuntimeError:
            alive = False
        if not alive:
            raise err

    def _give_up(self, err: BaseException) -> None:
        with self._changed:
            self._dead = err
            self._changed.notify_all()
            left = [*self._running, *(request for queue in self._queues.values() for request in queue)]
            for queue in self._queues.values():
                queue.clear()
        for request in left:
            if not request.result.done():
                request.result.set_exception(WorkerStalledError(f"the device stopped working: {err}"))


def _name(device: torch.device) -> str:
    """Return what a device is called; to be asked in the thread that computes, for threads differ in theirs."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type.upper()}, {torch.get_num_threads()} threads"


def _alone(network: str, err: Exception) -> ImageError:
    """Return the error of an image that failed in a batch of its own."""
    if isinstance(err, ImageError):
        return err
    if isinstance(err, torch.OutOfMemoryError):  # what fits now and then is not the image's fault
        message = f"{network}: out of device memory with a batch of one; use a smaller max_label_pixels or more memory"
        return ImageError(Status.FAILED.value, "out_of_memory", message, transient=True)
    message = f"{network}: the model failed on this image alone: {type(err).__name__}: {err}"
    return ImageError(Status.FAILED.value, "model_failed", message)
