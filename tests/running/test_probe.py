"""Cost before the run: a probe labels a few rows and leaves its forecast alone; the run says how far off it was."""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import annotator
from annotator.cluster import Cluster
from annotator.errors import JobError, ManifestError, OutputError, StorageError
from annotator.forecast import Forecast
from annotator.job import Job
from annotator.labels.status import status
from annotator.manifest import read_pins
from annotator.pipeline import plan_left
from annotator.preflight import preflight
from annotator.probing import draw
from annotator.storage import Storage
from annotator.worker import Worker
from tests.running.command import Cli, is_one_line
from tests.running.make import file_bytes, is_whole, make_job, write_manifest


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> Job:
    """A job of 40 small pictures in 8 shards, the spool in a folder of its own."""
    return make_job(
        tmp_path, tiny_checkpoints, count=40, tasks=("seg",), spool_dir=str(tmp_path / "spool"), gpus_per_worker=0
    )


def forecast(job: Job, probe: int = 12, **options: object) -> Forecast:
    found = annotator.plan(job, probe=probe, ray=False, **options).forecast  # type: ignore[arg-type]
    assert found is not None
    return found


def files_below(folder: str | Path | None) -> set[str]:
    assert folder is not None
    return {str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file()}


def test_a_probe_leaves_its_forecast_and_nothing_else_and_the_run_says_how_far_off_it_was(job: Job) -> None:
    found = forecast(job, price_per_gpu_hour=3.5)
    assert files_below(job.output) == {"_annotator/forecast.json"}
    assert files_below(job.spool_dir) == set()
    assert (found.rows, found.shards, found.probed, found.setting.workers) == (40, 8, 12, 1)
    assert found.statuses == {"seg": {"ok": 12}}
    report = annotator.run(job, ray=False)
    assert report.forecast is not None and report.forecast.differs == ()
    assert set(report.forecast.hits) == {"images_per_s", "gpu_hours", "price", "bytes"}
    assert report.forecast.hits["bytes"].actual == report.bytes_out
    assert report.forecast.hits["bytes"].off == pytest.approx(0, abs=0.1)
    assert report.forecast.hits["price"].actual == pytest.approx(3.5 * report.gpu_hours)
    record = status(job.output).runs[-1].record
    assert record["forecast"]["hits"]["bytes"]["actual"] == report.bytes_out
    assert is_whole(job)


def test_a_probe_of_what_is_left_touches_no_label(job: Job) -> None:
    annotator.run(job, ray=False, limit=15)
    before = file_bytes(job.output, ("seg",))
    found = forecast(job, probe=1000)
    assert (found.rows, found.shards, found.probed) == (25, 5, 25)
    assert file_bytes(job.output, ("seg",)) == before


def test_a_run_with_other_options_says_that_it_is_not_compared(job: Job, cli: Cli, tmp_path: Path) -> None:
    forecast(job, probe=2)
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json")))
    done = cli("run", path, "--no-ray", "--quiet", "--set", "tasks.seg.label_size=input")
    assert "was for something else: other weights or options of seg" in done.out


def test_the_command_line_tells_intervals_and_what_they_do_not_cover(job: Job, cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json")))
    told = cli("plan", path, "--probe", 6, "--price-per-gpu-hour", 3.5, "--no-ray").out
    for word in ("images/s", "GPU hours", "price", "bytes of labels", "95% interval", "6 of 40 images", "throttles"):
        assert word in told
    found = cli("plan", path, "--probe", 1, "--no-ray", "--json").json["forecast"]
    assert found["predicted"]["bytes"]["low"] is None
    assert found["confidence"] == 0.95
    assert len(found["notes"]) == 2


def test_a_price_without_a_probe_and_a_probe_of_no_use_are_refused(job: Job, cli: Cli) -> None:
    with pytest.raises(JobError, match="add --probe"):
        annotator.plan(job, price_per_gpu_hour=1.0)
    for probe in (0, -1, 10**6):
        with pytest.raises(JobError, match="expected 1 to 4096"):
            annotator.plan(job, probe=probe)
    refused = cli(
        "plan", "--manifest", job.manifest, "--output", job.output, "--task", "seg=x", "--price-per-gpu-hour", 1
    )
    assert refused.code == 2 and is_one_line(refused.err)


# -- which rows ------------------------------------------------------------------------------------


def test_rows_are_drawn_from_what_passes_where_and_is_left_each_as_likely_as_any_other(
    tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    """Two files; 3 of 4 rows pass. Drawn over and over, no row is favoured."""
    job = make_job(tmp_path, tiny_checkpoints, count=1, tasks=("seg",), where="n < 75")
    uris = ["../images/image-0000.jpg"] * 100
    write_manifest(tmp_path / "manifest", uris, n=list(range(100)))
    write_manifest(tmp_path / "manifest", uris, name="part-1.parquet", n=list(range(100)))
    ready = preflight(job, write=False)
    left = plan_left(ready, None)
    times: dict[tuple[str, int], int] = {}
    for count in range(1, 151):
        drawn, total = draw(Storage(), ready, left, count)
        rows = [(file.key, row) for file, of in zip(drawn.manifest.files, drawn.rows, strict=True) for row in of]
        assert total == 150
        assert len(rows) == len(set(rows)) == count
        for row in rows:
            times[row] = times.get(row, 0) + 1
    assert len(times) == 150 and all(row < 75 for _, row in times)
    assert min(times.values()) > 40  # of 75.5 on average, with a standard deviation of 5
    with pytest.raises(ManifestError, match="no row that is left passes"):
        annotator.plan(job.model_copy(update={"where": "n > 1000"}), probe=3, ray=False)


def test_embedded_pictures_kept_columns_and_bad_rows_are_probed_as_they_are(
    tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=6, tasks=("seg",), keep_columns=("license",), shard_rows=8)
    pictures = [p.read_bytes() for p in sorted((tmp_path / "images").iterdir())] + [b"no picture", None]
    table = pa.table({"image": pictures, "license": ["CC0"] * 8})
    pq.write_table(table, tmp_path / "manifest" / "part-0.parquet")
    found = forecast(job, probe=8)
    assert found.statuses == {"seg": {"ok": 6, "unreadable": 2}}
    assert found.errors == {"no_source": 1, "unsupported_format": 1}
    report = annotator.run(job, ray=False)
    assert report.forecast is not None
    assert report.forecast.hits["bytes"].off == pytest.approx(0, abs=0.2)  # two row groups of four, not one of eight


def test_a_probe_of_nothing_but_rows_that_are_rejected_tells_so(job: Job) -> None:
    """The one row that is left lies where none may."""
    annotator.run(job, ray=False)
    write_manifest(Path(job.manifest), ["/etc/hostname"], name="part-1.parquet")
    found = forecast(job)
    assert (found.rows, found.probed, found.statuses) == (1, 1, {"seg": {"rejected": 1}})


# -- nothing is left behind ------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StorageError("gone"), KeyboardInterrupt()])
def test_a_probe_that_fails_leaves_nothing(job: Job, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    real = Worker.label_rows

    def label_rows(self: Worker, *args: object) -> object:
        rows = real(self, *args)  # type: ignore[arg-type]
        yield next(rows)
        raise error

    monkeypatch.setattr(Worker, "label_rows", label_rows)
    with pytest.raises(type(error)):
        annotator.plan(job, probe=12, ray=False)
    assert not Path(job.output).exists()
    assert files_below(job.spool_dir) == set()


@pytest.mark.slow
def test_what_a_killed_probe_leaves_goes_with_the_next_worker(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json")))
    command = [sys.executable, "-m", "annotator.cli", "plan", str(path), "--probe", "40", "--no-ray"]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not any(name.endswith("manifest.parquet") for name in files_below(job.spool_dir)):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not Path(job.output).exists()
    forecast(job, probe=2)
    assert files_below(job.spool_dir) == set()
    assert files_below(job.output) == {"_annotator/forecast.json"}


# -- on Ray ----------------------------------------------------------------------------------------


@pytest.mark.ray
def test_on_ray_the_probe_runs_as_one_of_the_workers_and_our_errors_come_back(job: Job, tmp_path: Path) -> None:
    import ray

    wanted = job.model_copy(update={"workers": 2})
    with Cluster(wanted) as cluster:
        with pytest.raises(OutputError, match="no run of annotator"):
            cluster.once(partial(read_pins, str(tmp_path), Storage()), shards=8)
        found = annotator.plan(wanted, probe=6).forecast
    assert found is not None
    assert found.setting.workers == 2
    assert found.predicted["images_per_s"].value == pytest.approx(2 / found.image_s.value)
    assert files_below(job.output) == {"_annotator/forecast.json"}
    assert not ray.is_initialized()
    assert json.loads((Path(job.output) / "_annotator" / "forecast.json").read_text())["probed"] == 6


@pytest.mark.ray
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_on_ray_a_process_that_computes_on_the_cpu_keeps_the_memory_of_large_tensors(job: Job) -> None:
    """Page by page from the system, each time anew, it would take as long as the forward pass."""
    with Cluster(job) as cluster:
        faults, _ = cluster.once(faults_of_large_tensors, shards=1)
    assert faults < 60_000  # anew, eight of 100 MB are 195,000 pages


def faults_of_large_tensors() -> int:
    """Return how many pages a process asks for when a thread of it makes eight tensors in turn, some made before."""

    def make(count: int) -> None:
        for _ in range(count):
            torch.ones(25_000_000)

    def measure() -> int:
        make(16)  # until there is room for all
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        make(8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(measure).result()
