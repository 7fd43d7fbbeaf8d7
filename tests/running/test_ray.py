"""The same guarantees on Ray, with real kills."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import duckdb
import numpy as np
import polars
import psutil
import pyarrow.dataset as ds
import pytest
import yaml

import annotator
from tests.running.make import TASKS, file_bytes, is_whole, make_job, table

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240, method="thread")]

WORKER = "MapWorker"


def workers_of(pid: int) -> list[psutil.Process]:
    """Return the worker processes of the Ray session that a process started."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if WORKER in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def num_files(job: annotator.Job) -> int:
    return sum(1 for _ in (Path(job.output) / "labels").rglob("*.parquet"))


def write_job(job: annotator.Job, folder: Path) -> Path:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json")))
    return path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoints: dict[str, Path]) -> annotator.Job:
    """A job that ran to its end in one process; 40 shards."""
    job = make_job(tmp_path_factory.mktemp("undisturbed"), tiny_checkpoints, count=160, shard_rows=4, workers=2)
    annotator.run(job, ray=False)
    return job


def test_ray_gives_the_bytes_of_one_process_and_is_gone_afterwards(tmp_path: Path, undisturbed: annotator.Job) -> None:
    import ray

    job = undisturbed.model_copy(update={"output": str(tmp_path / "out")})
    report = annotator.run(job)
    assert (report.state, report.images, report.rounds) == ("done", 160, 1)
    assert file_bytes(job.output) == file_bytes(undisturbed.output)
    assert not ray.is_initialized()
    assert not workers_of(psutil.Process().pid)


def test_killed_workers_cost_nothing(tmp_path: Path, undisturbed: annotator.Job) -> None:
    job = undisturbed.model_copy(update={"output": str(tmp_path / "out")})
    killed: list[int] = []

    def kill_two() -> None:
        for count in (2, 12):
            wait_until(lambda count=count: num_files(job) >= count)  # type: ignore[misc]
            for process in random.Random(count).sample(workers_of(psutil.Process().pid), 1):
                process.kill()
                killed.append(process.pid)

    killer = threading.Thread(target=kill_two)
    killer.start()
    annotator.run(job)
    killer.join()
    assert len(killed) == 2
    assert file_bytes(job.output) == file_bytes(undisturbed.output)
    assert is_whole(job)


def test_a_killed_driver_goes_on_and_readers_never_see_half_a_file(tmp_path: Path, undisturbed: annotator.Job) -> None:
    job = undisturbed.model_copy(update={"output": str(tmp_path / "out")})
    path = write_job(job, tmp_path)
    command = [sys.executable, "-m", "annotator.cli", "run", str(path), "--quiet"]
    reader = Reader(job)
    for wanted in (3, 30):
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda wanted=wanted: num_files(job) >= wanted)  # type: ignore[misc]
        workers = workers_of(driver.pid)
        driver.kill()
        driver.wait()
        wait_until(lambda workers=workers: not any(w.is_running() and w.status() != "zombie" for w in workers))  # type: ignore[misc]
    assert 30 <= num_files(job) < 120
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    reader.stop()
    assert reader.problems == []
    assert reader.reads >= 3
    assert file_bytes(job.output) == file_bytes(undisturbed.output)
    assert is_whole(job)


class Reader:
    """Globs the label folder all the while, with three engines, and notes whatever is not whole rows, once."""

    def __init__(self, job: annotator.Job) -> None:
        self.problems: list[str] = []
        self.reads = 0
        self._folder = Path(job.output) / "labels" / "seg"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read_on)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _read_on(self) -> None:
        glob = f"{self._folder}/**/*.parquet"
        engines: list[Callable[[], list[tuple[str, int]]]] = [
            lambda: self._keys(
                ds.dataset(self._folder, format="parquet").to_table(columns=["shard", "row"]).to_pylist()
            ),
            lambda: duckdb.execute(f"select shard::varchar, row from read_parquet('{glob}')").fetchall(),
            lambda: polars.read_parquet(glob, columns=["shard", "row"]).cast({"shard": polars.String}).rows(),
        ]
        while not self._stop.is_set():
            if not any(self._folder.rglob("*.parquet")):
                time.sleep(0.05)
                continue
            for engine in engines:
                try:
                    keys = engine()
                except Exception as err:
                    self.problems.append(repr(err))
                    continue
                if len(keys) != len(set(keys)) or len(keys) % 4:
                    self.problems.append(f"{len(keys)} rows, {len(set(keys))} of them distinct")
            self.reads += 1
            time.sleep(0.2)

    @staticmethod
    def _keys(rows: list[dict[str, object]]) -> list[tuple[str, int]]:
        return [(str(r["shard"]), int(str(r["row"]))) for r in rows]


@pytest.mark.timeout(600, method="thread")  # six workers die, and others start in their place
def test_a_picture_that_kills_its_decoder_costs_its_own_row_only(
    tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    """Every Python process of the run decodes with a cv2 that dies of a marked picture, as one with a bug would.

    The shard kills its worker in round after round, until each image is decoded in a process of its own.
    """
    job = make_job(tmp_path, tiny_checkpoints, count=12, shard_rows=4, workers=1, tasks=("seg",))
    poisoned = tmp_path / "images" / "image-0005.png"
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[3].reshape(-1)[:16] = np.frombuffer(b"KILL-THE-DECODER", np.uint8)
    ok, bmp = cv2.imencode(".bmp", pixels)  # which holds its pixels as they are
    assert ok
    poisoned.write_bytes(bmp.tobytes())
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import ctypes, cv2\n"
        "real = cv2.imdecode\n"
        "def imdecode(data, *args):\n"
        "    if b'KILL-THE-DECODER' in bytes(data):\n"
        "        ctypes.string_at(0)\n"  # a real fault: a signal sent may come after the row is committed
        "    return real(data, *args)\n"
        "cv2.imdecode = imdecode\n"
    )
    path = write_job(job, tmp_path)
    command = [sys.executable, "-m", "annotator.cli", "run", str(path), "--quiet", "--json"]
    environment = os.environ | {"PYTHONPATH": str(hook)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment)
    assert done.returncode == 0, done.stderr
    rows = table(job.output, "seg").to_pylist()
    assert {r["uri"].rsplit("/", 1)[1]: r["error_class"] for r in rows if r["status"] != "ok"} == {
        "image-0005.png": "decoder_crashed"
    }
    assert len(rows) == 12
    # two good shards may die along with it in turn, then a round in vain, then the last one
    assert json.loads(done.stdout)["rounds"] <= 4
    assert is_whole(job)


def test_ctrl_c_leaves_what_is_finished_committed(tmp_path: Path, undisturbed: annotator.Job) -> None:
    job = undisturbed.model_copy(update={"output": str(tmp_path / "out")})
    path = write_job(job, tmp_path)
    driver = subprocess.Popen(
        [sys.executable, "-m", "annotator.cli", "run", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: num_files(job) >= 3)
    driver.send_signal(signal.SIGINT)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "run again to go on" in err
    assert "Traceback" not in err
    state = annotator.status(job.output).runs[-1].state
    assert state == "interrupted"
    assert 0 < table(job.output, TASKS[0]).num_rows < 160
