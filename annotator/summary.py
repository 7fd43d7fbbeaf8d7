"""What a worker says of one shard: small, JSON, the only thing that travels back to the driver."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field

from annotator.shards import Shard


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The outcome of one call of a worker.

    created    tasks whose label file this call created
    existed    tasks whose label file was there already, whoever wrote it
    deferred   why nothing was committed and the shard comes up again; None when it is done
    fatal      the fault concerns the whole run (credentials, a full disk), not this shard
    rows       manifest rows labelled by this call
    statuses   rows by status, by task created
    errors     rows by error class, over all tasks created
    stages     seconds by stage: wall time and CPU time, summed over threads
    """

    shard: Shard
    created: tuple[str, ...] = ()
    existed: tuple[str, ...] = ()
    deferred: str | None = None
    fatal: bool = False
    rows: int = 0
    statuses: dict[str, dict[str, int]] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_out: int = 0
    stages: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether every task of the job has a label file for this shard now."""
        return self.deferred is None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Summary:
        data = json.loads(text)
        data["shard"] = Shard(**data["shard"])
        data["created"], data["existed"] = tuple(data["created"]), tuple(data["existed"])
        data["stages"] = {name: (wall, cpu) for name, (wall, cpu) in data["stages"].items()}
        return Summary(**data)


def add_counts(total: dict[str, dict[str, int]], more: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Return the sum of two counts by task and status."""
    return {
        task: dict(sorted((Counter(total.get(task, {})) + Counter(more.get(task, {}))).items()))
        for task in sorted({*total, *more})
    }
