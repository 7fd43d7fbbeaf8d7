"""The same small run on S3 (moto), by way of a server that fails at chosen requests.

Passing faults hit every request. The others hit one request of each kind: a run takes a second here, and what is
common to all calls is in test_matrix.py.
"""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

import annotator
from annotator.job import StorageOptions
from annotator.storage import Storage
from tests.conftest import S3_ENVIRONMENT, make_bucket
from tests.faults.zygote import Outcome, Zygote, Zygotes
from tests.records.faulty import FaultyServer

pytestmark = [pytest.mark.s3, pytest.mark.slow]

# What a request is answered, try after try; four tries are made, and the HTTP library may repeat one by itself.
FAULTS = {
    "kill_half": ["kill_half"],
    "kill_before": ["kill_before"],
    "kill_after": ["kill_after"],
    "staying": ["slow_down", "internal", "reset", "hang"] * 2,
    "lost_staying": ["lost", "hang", "reset", "slow_down", "internal", "reset"],
    "forbidden": ["forbidden"],
    "missing": ["missing"],
    "expired": ["expired"] * 1000,  # and so is every later request, whatever it is about
}
ENDS = {
    "kill_half": {"killed"},
    "kill_before": {"killed"},
    "kill_after": {"killed"},
    "staying": {"done", "TransientStorageError"},
    "lost_staying": {"done", "TransientStorageError"},
    "forbidden": {"done", "StorageError", "AccessError"},
    "missing": {"done", "StorageError", "NotFoundError"},
    "expired": {"StorageError", "CredentialsError"},
}
ROW_CLASS = {"forbidden": "forbidden", "missing": "not_found"}

TERMS, PIN, RECORD, RUN = (
    f"OUT/_annotator/{name}.json" for name in ("job", "manifests/part-0-7f7df209", "tasks/seg", "runs/ID")
)
LABELS = "OUT/labels/seg/part-0-7f7df209"
LABEL = f"{LABELS}/000000000000-000000000003.parquet"
IMAGE = "GET IN/images/image-0001.png"
READS = (f"GET {RECORD}", f"LIST {LABELS}/", f"HEAD {LABEL}", IMAGE, f"PUT {LABEL}")
CASES = [
    *(("kill_half", f"PUT {name}") for name in (TERMS, RUN, LABEL)),
    *(("kill_after", f"PUT {name}") for name in (TERMS, PIN, RECORD, RUN, LABEL)),
    ("kill_before", IMAGE),
    *(("lost_staying", f"PUT {name}") for name in (RECORD, LABEL)),
    *(("staying", name) for name in (IMAGE, f"LIST {LABELS}/", f"PUT {LABEL}")),
    *(("forbidden", name) for name in READS),
    *(("missing", name) for name in (f"HEAD {TERMS}", *READS)),
    *(("expired", name) for name in (f"HEAD {TERMS}", IMAGE, f"PUT {LABEL}")),
]


@dataclass
class Place:
    """A bucket with pictures, manifest and weights, and the servers, one a worker, that lead to it."""

    job: annotator.Job
    bucket: str
    storage: Storage
    cache: Path
    workers: Zygotes
    servers: dict[int, FaultyServer]
    files: dict[str, bytes] = field(default_factory=dict)

    def run(self, worker: Zygote, job: annotator.Job) -> Outcome:
        """Run in a new process, without a cached checkpoint."""
        server = self.servers[id(worker)]
        environment = {**S3_ENVIRONMENT, "XDG_CACHE_HOME": str(self.cache / job.output.rsplit("/", 1)[1])}

        def started(pid: int) -> None:
            server.kill = lambda: os.kill(pid, signal.SIGKILL)

        return worker.run(job, verify=True, environment=environment, started=started)

    def to(self, output: str, url: str | None = None) -> annotator.Job:
        """Return the job with another output, by way of this server."""
        options = StorageOptions(endpoint_url=url, region="us-east-1") if url else self.storage.options
        return self.job.model_copy(update={"output": f"{self.bucket}/{output}", "storage": options})

    def labels(self, output: str) -> dict[str, bytes]:
        folder = f"{self.bucket}/{output}"
        return {info.uri[len(folder) :]: self.storage.read(info.uri) for info in self.storage.list(f"{folder}/labels")}


@pytest.fixture(scope="module")
def place(
    small_job: annotator.Job, workers: Zygotes, moto_s3: StorageOptions, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    here = Path(small_job.output).parent
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name, value in S3_ENVIRONMENT.items():
            patch.setenv(name, value)
        bucket, storage = make_bucket(moto_s3), Storage(options=moto_s3)
        for path in (here / "seg.safetensors", *(here / "images").iterdir(), *(here / "manifest").iterdir()):
            storage.create(path, f"{bucket}/{path.relative_to(here)}", output=bucket)
        there = {"manifest": f"{bucket}/manifest", "tasks": {"seg": {"checkpoint": f"{bucket}/seg.safetensors"}}}
        servers = {}
        for worker in workers.all:
            server = servers[id(worker)] = stack.enter_context(FaultyServer(str(moto_s3.endpoint_url)).running())
            server.hang_s = 1.5  # longer than a try may take
        job = small_job.model_copy(update={**there, "storage": moto_s3})
        place = Place(job, bucket, storage, tmp_path_factory.mktemp("cache"), workers, servers)
        with workers.one() as worker:
            outcome = place.run(worker, place.to("plain"))
        assert (outcome.ended, outcome.is_whole) == ("done", True), outcome.message
        place.files = place.labels("plain")
        assert len(place.files) == 2
        yield place


def _name(method: str, path: str, output: str) -> str:
    """Return what a request is about, without the names of bucket, output and run."""
    parts = urlsplit(path)
    query = parse_qs(parts.query)
    _bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
    if "list-type" in query:
        method, key = "LIST", query.get("prefix", [""])[0]
    inside = key.removeprefix(output.split("/", 3)[3] + "/")
    return f"{method} " + re.sub(r"/runs/.+", "/runs/ID.json", f"OUT/{inside}" if inside != key else f"IN/{key}")


def test_passing_faults_of_every_request_cost_nothing(place: Place) -> None:
    """Each request fails at first, in each way once; half of a reply is a fault of those that have one."""

    def disturbed(worker: Zygote, kind: str) -> tuple[str, Outcome, int]:
        server, output = place.servers[id(worker)], f"every-{kind}"
        job = place.to(output, server.url)
        seen: Counter[str] = Counter()

        def choose(method: str, path: str) -> str | None:
            name = _name(method, path, job.output)
            seen[name] += 1
            return kind if seen[name] % 2 and (kind != "short" or not name.startswith(("HEAD", "PUT"))) else None

        server.choose = choose
        outcome = place.run(worker, job)
        return output, outcome, sum(n // 2 for n in seen.values())

    for output, outcome, hits in place.workers.map(disturbed, ["internal", "slow_down", "reset", "lost", "short"]):
        assert (outcome.ended, outcome.is_whole) == ("done", True), f"{output}: {outcome.message}"
        assert place.labels(output) == place.files, output
        assert hits >= (40 if output != "every-short" else 20), output


def test_whatever_request_a_fault_hits_the_next_run_gives_the_labels_of_an_undisturbed_one(place: Place) -> None:
    numbered = [(f"case-{number}", *case) for number, case in enumerate(CASES)]
    answers = place.workers.map(lambda worker, item: _try(worker, place, *item), numbered)
    problems = [f"{case}: {problem}" for case, (_, problem) in zip(CASES, answers, strict=True) if problem]
    ended = Counter((kind, outcome.ended) for (kind, _), (outcome, _) in zip(CASES, answers, strict=True))
    for (kind, end), count in sorted(ended.items()):
        print(kind, count, end)
    assert problems == []


def _try(worker: Zygote, place: Place, output: str, kind: str, name: str) -> tuple[Outcome, str]:
    """Return how the disturbed run ended, and what is wrong with it or with what the next run left, or nothing."""
    is_row = name == IMAGE and kind in ROW_CLASS
    # twice for a picture: what obstore is refused, s3fs is asked for
    server, faults = place.servers[id(worker)], FAULTS[kind] * (1 + is_row)
    planned = len(faults)
    job = place.to(output, server.url)

    def choose(method: str, path: str) -> str | None:
        is_it = _name(method, path, job.output) == name or (kind == "expired" and len(faults) < planned)
        return faults.pop(0) if faults and is_it else None

    server.choose = choose
    outcome = place.run(worker, job)
    if len(faults) == planned:
        return outcome, f"no such request; {outcome.ended} {outcome.message}"
    if outcome.ended not in ENDS[kind]:
        return outcome, f"ended with {outcome.ended}: {outcome.message}"
    if outcome.ended.endswith(("StorageError", "AccessError")) and (outcome.exit_code != 4 or "\n" in outcome.message):
        return outcome, f"exit code {outcome.exit_code}: {outcome.message}"
    if kind == "expired":
        print(name, "->", outcome.message)
    if kind == "expired" and "credentials" not in outcome.message:
        return outcome, f"says no word of credentials: {outcome.message}"
    if any(place.files.get(path) != data for path, data in place.labels(output).items()) and not is_row:
        return outcome, "label files differ"
    last = outcome if outcome.ended == "done" else place.run(worker, place.to(output))
    if (last.ended, last.is_whole) != ("done", True):
        return outcome, f"the next run ended with {last.ended}, whole: {last.is_whole}: {last.message}"
    if is_row:
        return outcome, _problem_of_row(place, output, ROW_CLASS[kind])
    return outcome, "" if place.labels(output) == place.files else "label files differ after the next run"


def _problem_of_row(place: Place, output: str, error_class: str) -> str:
    """The picture that could not be had is a row that says so, and no other row is changed."""
    tables = [
        annotator.open_labels(f"{place.bucket}/{name}", "seg", storage=place.storage).to_table().sort_by("row")
        for name in ("plain", output)
    ]
    [row] = tables[1].filter([n == 1 for n in tables[1]["row"].to_pylist()]).to_pylist()
    if (row["status"], row["error_class"]) != ("unreadable", error_class):
        return f"the row says {row['status']}, {row['error_class']}"
    others = [t.filter([n != 1 for n in t["row"].to_pylist()]) for t in tables]
    return "" if others[0].equals(others[1]) else "other rows changed"
