"""What a run will cost, foretold from a few rows, and how far off that was; the record that the next run looks for.

The unit is an image: seconds that one worker takes for it, bytes that its labels take. All else (images/s, GPU hours,
price, bytes) is that times a number that is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from annotator.errors import NotFoundError
from annotator.estimate import CONFIDENCE, Estimate, mean_of, seconds_an_image
from annotator.job import Job
from annotator.storage import Storage, join

NOT_COVERED = (
    "workers and other programs that get in each other's way",
    "storage that throttles",
    "the commit of label files",
    "rounds after trouble",
)
"""What a probe on one worker can't see, so that no interval covers it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What one worker did with the rows of a probe.

    done_s      when each image was done, in seconds from when the worker began, it being ready
    row_bytes   what the labels of each image take in the label files of all tasks
    file_bytes  what the label files of a shard take, all tasks together, before any row is in them
    statuses    label rows by status, by task; `errors`, by error class
    start_s     seconds that loading and compiling took
    batch       images that the device takes at once
    """

    done_s: tuple[float, ...]
    row_bytes: tuple[float, ...]
    file_bytes: int
    statuses: dict[str, dict[str, int]]
    errors: dict[str, int]
    start_s: float
    device: str
    batch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a forecast holds for, and no other: tasks with the digests of their fingerprints, machine, speed options."""

    tasks: dict[str, str]
    device: str
    workers: int
    options: dict[str, Any] = field(default_factory=dict)

    def differences(self, other: Setting) -> tuple[str, ...]:
        """Return in words what is otherwise there."""
        found = []
        if self.tasks.keys() != other.tasks.keys():
            found.append(f"tasks: {', '.join(other.tasks)} instead of {', '.join(self.tasks)}")
        else:
            changed = [name for name in self.tasks if self.tasks[name] != other.tasks[name]]
            found += [f"other weights or options of {', '.join(changed)}"] if changed else []
        for name in ("device", "workers"):
            mine, theirs = getattr(self, name), getattr(other, name)
            found += [f"{name}: {theirs} instead of {mine}"] if mine != theirs else []
        for name, mine in self.options.items():
            theirs = other.options.get(name)
            found += [f"{name}: {theirs} instead of {mine}"] if mine != theirs else []
        return tuple(found)


def make_setting(job: Job, digests: Mapping[str, str], *, device: str, workers: int) -> Setting:
    """Return the setting of a job, its defaults filled in, and of fingerprints by task."""
    options = {name: getattr(job, name) for name in ("gpus_per_worker", "batch_size", "compile")}
    return Setting(tasks=dict(digests), device=device, workers=workers, options=options)


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What labelling the rows that are left will take.

    made        when, UTC
    setting     what it holds for
    rows, shards   left when it was made; rows that pass `where`
    probed      rows that were labelled for it; `statuses`, `errors`: how they came out
    start_s     until a worker is ready; in no other figure
    image_s     seconds that one worker takes for an image
    row_bytes   of an image's labels, all tasks together; `file_bytes`: of a shard's label files without rows
    notes       why intervals are lacking, and the like
    """

    made: str
    setting: Setting
    rows: int
    shards: int
    probed: int
    statuses: dict[str, dict[str, int]]
    errors: dict[str, int]
    start_s: float
    image_s: Estimate
    row_bytes: Estimate
    file_bytes: int
    price_per_gpu_hour: float | None
    notes: tuple[str, ...] = ()

    def of(self, rows: int, shards: int, price_per_gpu_hour: float | None) -> dict[str, Estimate]:
        """Return images_per_s of all workers, gpu_hours, price (where known) and bytes of so much of the corpus.

        A worker without a GPU is counted as one.
        """
        gpus = self.setting.options.get("gpus_per_worker") or 1
        gpu_hours = self.image_s.scaled(rows / 3600 * gpus)
        return {
            "images_per_s": self.image_s.inverse().scaled(self.setting.workers),
            "gpu_hours": gpu_hours,
            **({} if price_per_gpu_hour is None else {"price": gpu_hours.scaled(price_per_gpu_hour)}),
            "bytes": self.row_bytes.scaled(rows).plus(shards * self.file_bytes),
        }

    @property
    def predicted(self) -> dict[str, Estimate]:
        """What all that is left takes, see `of`."""
        return self.of(self.rows, self.shards, self.price_per_gpu_hour)

    @property
    def seconds(self) -> Estimate:
        """Wall time of all that is left, once workers are ready."""
        return self.image_s.scaled(self.rows / self.setting.workers)

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast as JSON values."""
        predicted = {name: asdict(estimate) for name, estimate in self.predicted.items()}
        more = {"predicted": predicted, "seconds": asdict(self.seconds), "confidence": CONFIDENCE}
        return {**asdict(self), **more, "not_covered": list(NOT_COVERED)}


def make_forecast(
    measured: Measured, setting: Setting, *, made: str, rows: int, shards: int, price_per_gpu_hour: float | None
) -> Forecast:
    """Return what a probe says of the rows and shards that are left."""
    image_s, row_bytes = seconds_an_image(measured.done_s, measured.batch), mean_of(measured.row_bytes)
    notes = []
    if image_s.low is None:
        notes.append(
            f"{len(measured.done_s)} images are fewer than three batches of {measured.batch}: no interval of the "
            "speed, which counts the filling of the pipeline and so is too low"
        )
    if row_bytes.low is None:
        notes.append("one image says nothing of how images differ: no interval of bytes")
    return Forecast(
        made=made,
        setting=setting,
        rows=rows,
        shards=shards,
        probed=len(measured.done_s),
        statuses=measured.statuses,
        errors=measured.errors,
        start_s=measured.start_s,
        image_s=image_s,
        row_bytes=row_bytes,
        file_bytes=measured.file_bytes,
        price_per_gpu_hour=price_per_gpu_hour,
        notes=tuple(notes),
    )


# -- afterwards ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Actual:
    """What a run took, in the terms of a forecast; `worker_s`: of all workers, from ready to the last shard."""

    setting: Setting
    rows: int
    shards: int
    worker_s: float
    bytes_out: int
    price_per_gpu_hour: float | None

    def quantities(self, price_per_gpu_hour: float | None) -> dict[str, float]:
        """Return what `Forecast.of` foretells."""
        gpu_hours = self.worker_s / 3600 * (self.setting.options.get("gpus_per_worker") or 1)
        return {
            "images_per_s": self.rows / self.worker_s * self.setting.workers if self.worker_s else 0.0,
            "gpu_hours": gpu_hours,
            "price": gpu_hours * (price_per_gpu_hour or 0.0),
            "bytes": float(self.bytes_out),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One quantity: what was predicted for as many rows as the run labelled, and what it was.

    `off` is by how much, as a share of what was predicted; `within` says whether the interval holds it, None where
    there is no interval.
    """

    predicted: Estimate
    actual: float
    off: float | None
    within: bool | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """How far off a forecast was. `differs` says why the two can't be compared; then there are no `hits`."""

    made: str
    differs: tuple[str, ...] = ()
    hits: dict[str, Hit] = field(default_factory=dict)


def compare(forecast: Forecast, actual: Actual) -> Comparison:
    """Return how far off a forecast was for the part of the corpus that a run labelled."""
    differs = forecast.setting.differences(actual.setting)
    if differs:
        return Comparison(made=forecast.made, differs=differs)
    price = forecast.price_per_gpu_hour if actual.price_per_gpu_hour is None else actual.price_per_gpu_hour
    found = actual.quantities(price)
    hits = {
        name: Hit(
            predicted=estimate,
            actual=found[name],
            off=found[name] / estimate.value - 1 if estimate.value else None,
            within=estimate.holds(found[name]),
        )
        for name, estimate in forecast.of(actual.rows, actual.shards, price).items()
    }
    return Comparison(made=forecast.made, hits=hits)


# -- the record ------------------------------------------------------------------------------------


def save_forecast(storage: Storage, output: str, forecast: Forecast) -> None:
    """Leave the forecast where the next run of this output looks for it; an older one goes."""
    storage.replace((json.dumps(forecast.to_dict(), indent=1) + "\n").encode(), _uri(output), output=output)


def read_forecast(storage: Storage, output: str) -> Forecast | None:
    """Return the latest forecast of an output; None if there is none, or none that can be read: it only informs."""
    try:
        return _parse(json.loads(storage.read(_uri(output))))
    except (NotFoundError, ValueError, KeyError, TypeError):
        return None


def _parse(data: Mapping[str, Any]) -> Forecast:
    plain = {name: data[name] for name in Forecast.__dataclass_fields__}
    estimates = {name: Estimate(**data[name]) for name in ("image_s", "row_bytes")}
    return Forecast(**{**plain, **estimates, "setting": Setting(**data["setting"]), "notes": tuple(data["notes"])})


def _uri(output: str) -> str:
    return join(output, "_annotator", "forecast.json")
