"""What a worker says of one shard: small, JSON, the only thing that travels back to the driver."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field

from annotator.shards import Shard


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one worker has done since its start; it has several shards in hand, so this is of no shard alone.

    worker         which one: host and process
    seconds        since it was ready, by its own clock
    cpu_s          of the whole process, threads of libraries included
    stages         seconds by stage of the device, as `Summary.stages`
    bare_s         seconds that forward passes alone would have taken for the same inputs
    bytes_to_host  of labels that came from the device
    peak_host_bytes, peak_device_bytes   the most memory that was held at once
    waiting        inputs that wait for the device right now
    batches        that the device ran; `batch_slots`, the places in them; `batch_inputs`, those that an input took
    device         what it computes on
    """

    worker: str
    seconds: float
    cpu_s: float
    stages: dict[str, tuple[float, float]]
    bare_s: float
    bytes_to_host: int
    peak_host_bytes: int
    peak_device_bytes: int
    waiting: int = 0
    batches: int = 0
    batch_slots: int = 0
    batch_inputs: int = 0
    device: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The outcome of one call of a worker.

    created    tasks whose label file this call created, or replaced with rows made anew
    existed    tasks whose label file was there already, whoever wrote it
    deferred   why nothing was committed and the shard comes up again; None when it is done
    retried    only rows that were bad were labelled again; `statuses` and `errors` tell of all of them
    passing    it was put off for a fault of storage that passes: a little later another try may do
    lone       of its images only few met that fault: storage as a whole is well
    fatal      the fault concerns the whole run (credentials, a full disk), not this shard
    refused    no worker can be started for the job as it is
    rows       manifest rows labelled by this call
    statuses   rows by status, by task created
    errors     rows by error class, over all tasks created
    stages     seconds by stage: wall time and CPU time, summed over threads
    work       what the worker as a whole has done so far
    node       the machine; `seconds`: how long the call took there
    """

    shard: Shard
    created: tuple[str, ...] = ()
    existed: tuple[str, ...] = ()
    deferred: str | None = None
    retried: bool = False
    passing: bool = False
    lone: bool = False
    fatal: bool = False
    refused: bool = False
    rows: int = 0
    statuses: dict[str, dict[str, int]] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_out: int = 0
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)
    work: Work | None = None
    node: str = ""
    seconds: float = 0.0

    @property
    def done(self) -> bool:
        """Whether every task of the job has a label file for this shard now."""
        return self.deferred is None

    @property
    def images(self) -> int:
        """Manifest rows that are off the list with this shard."""
        return self.rows if self.retried else self.shard.end - self.shard.first

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Summary:
        data = json.loads(text)
        data["shard"] = Shard(**data["shard"])
        data["created"], data["existed"] = tuple(data["created"]), tuple(data["existed"])
        data["stages"] = _pairs(data["stages"])
        if data["work"] is not None:
            data["work"] = Work(**{**data["work"], "stages": _pairs(data["work"]["stages"])})
        return Summary(**data)


def _pairs(stages: dict[str, list[float]]) -> dict[str, tuple[float, float]]:
    return {name: (wall, cpu) for name, (wall, cpu) in stages.items()}


def add_counts(total: dict[str, dict[str, int]], more: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Return the sum of two counts by task and status."""
    return {
        task: dict(sorted((Counter(total.get(task, {})) + Counter(more.get(task, {}))).items()))
        for task in sorted({*total, *more})
    }
