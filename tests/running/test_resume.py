"""Guarantees 1 to 4: stop anywhere, run again, and the labels are those of an undisturbed run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import annotator
from annotator.errors import FingerprintMismatchError, IncompleteRunError
from annotator.planning import Plan
from annotator.report import Report
from annotator.watch import Silent
from tests.running.make import file_bytes, is_whole, make_job, table, write_images, write_manifest


class StopAfter(Silent):
    """A watcher that ends the run after so many summaries."""

    def __init__(self, shards: int) -> None:
        self.left = shards

    def progressed(self, report: Report) -> None:
        self.left -= 1
        if self.left <= 0:
            raise KeyboardInterrupt


class Planned(Silent):
    """A watcher that remembers what was planned."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def planned(self, plan: Plan, report: Report) -> None:
        self.rows.append(plan.rows_left)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoints: dict[str, Path]) -> annotator.Job:
    """A job that ran to its end and that nobody stopped."""
    job = make_job(tmp_path_factory.mktemp("undisturbed"), tiny_checkpoints)
    annotator.run(job, ray=False)
    assert is_whole(job)
    return job


@pytest.mark.parametrize("stop_after", range(1, 5))
def test_a_run_stopped_after_every_kth_shard_gives_the_bytes_of_an_undisturbed_run(
    stop_after: int, tmp_path: Path, undisturbed: annotator.Job
) -> None:
    """24 images in 5 shards: stopped after every k of them, at most 5 / k + 1 runs."""
    job = undisturbed.model_copy(update={"output": str(tmp_path / "stopped"), "batch_size": 1 + stop_after})
    stops = 0
    while stops < 10:
        try:
            annotator.run(job, ray=False, watcher=StopAfter(stop_after))
            break
        except KeyboardInterrupt:
            stops += 1
    assert 1 <= stops <= 5
    assert file_bytes(job.output) == file_bytes(undisturbed.output)
    assert is_whole(job)


def test_values_are_equal_without_deterministic_too(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> None:
    """Masks may differ where two classes tie within rounding; not here, in float32, on one machine."""
    job = make_job(tmp_path, tiny_checkpoints, count=12)
    loose = job.model_copy(update={"output": str(tmp_path / "loose"), "deterministic": False})
    annotator.run(job, ray=False)
    annotator.run(loose, ray=False)
    assert table(job.output, "seg").num_rows == table(loose.output, "seg").num_rows == 12
    a, b = (table(o.output, "seg")["class_pixels"].combine_chunks().flatten().to_numpy() for o in (job, loose))
    assert abs(a - b).sum() <= 0.001 * a.sum()


def test_a_third_run_has_nothing_to_do_and_loads_neither_torch_nor_ray(
    tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=6)
    annotator.run(job, ray=False)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    code = (
        "import sys, annotator, pathlib\n"
        f"job = annotator.Job.model_validate_json(pathlib.Path({str(tmp_path / 'job.json')!r}).read_text())\n"
        "report = annotator.run(job)\n"
        "assert report.state == 'done' and report.rounds == 0, report\n"
        "print([m for m in ('torch', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
    assert len(list((Path(job.output) / "_annotator" / "runs").iterdir())) == 1


def test_adding_a_task_runs_that_task_alone(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=12, tasks=("seg",))
    annotator.run(job, ray=False)
    before = file_bytes(job.output, ("seg",))
    both = job.model_copy(update={"tasks": {**job.tasks, "depth": {"checkpoint": str(tiny_checkpoints["depth"])}}})
    report = annotator.run(both, ray=False)
    assert set(report.statuses) == {"depth"}
    assert file_bytes(job.output, ("seg",)) == before
    assert is_whole(both)


def test_adding_manifest_files_runs_their_rows_alone(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=12)
    annotator.run(job, ray=False)
    names = write_images(tmp_path / "more", 7, seed=1)
    write_manifest(tmp_path / "manifest", [f"../more/{name}" for name in names], name="part-1.parquet")
    planned = Planned()
    report = annotator.run(job, ray=False, watcher=planned)
    assert planned.rows == [7]
    assert report.images == 7
    assert table(job.output, "seg").num_rows == 19
    assert is_whole(job)


def test_limit_takes_the_first_images_and_a_full_run_the_rest(
    tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=24, tasks=("depth",))
    assert annotator.run(job, ray=False, limit=8).images == 10  # whole shards of 5
    assert annotator.run(job, ray=False, limit=8).rounds == 0
    assert annotator.run(job, ray=False).images == 14
    assert is_whole(job)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"shard_rows": 7}, "shard_rows"),
        ({"where": "row_number > 3"}, "where"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"decode": "fast"}, "decode"),
    ],
)
def test_a_changed_job_is_refused_by_name(
    change: dict[str, object], names: str, tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=6, tasks=("seg",))
    annotator.run(job, ray=False)
    before = file_bytes(job.output, ("seg",))
    with pytest.raises(FingerprintMismatchError, match=names):
        annotator.run(job.model_copy(update=change), ray=False)
    assert file_bytes(job.output, ("seg",)) == before


def test_other_weights_into_the_same_output_are_refused(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> None:
    from annotator.models import random_checkpoint

    job = make_job(tmp_path, tiny_checkpoints, count=6, tasks=("seg",))
    annotator.run(job, ray=False)
    other = tmp_path / "other.safetensors"
    random_checkpoint(other, task="seg", embed_dim=32, num_layers=2, num_heads=4, input_hw=(64, 48), seed=99)
    changed = job.model_copy(update={"tasks": {"seg": {"checkpoint": str(other)}}})
    with pytest.raises(FingerprintMismatchError, match=r"weights\.sha256"):
        annotator.run(changed, ray=False)


def test_shards_left_over_end_with_an_error_that_names_them(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from annotator.errors import TransientStorageError
    from annotator.storage import Storage

    job = make_job(tmp_path, tiny_checkpoints, count=12, tasks=("seg",))
    real = Storage.create

    def flaky(self: Storage, source: object, uri: str, *, output: str) -> bool:
        if uri.endswith("000000000005-000000000010.parquet"):
            raise TransientStorageError(f"{uri}: 503 SlowDown")
        return real(self, source, uri, output=output)  # type: ignore[arg-type]

    monkeypatch.setattr(Storage, "create", flaky)
    monkeypatch.setattr("annotator.rounds.PATIENCE_S", 0.0)
    with pytest.raises(IncompleteRunError, match=r"000000000005-000000000010.*SlowDown"):
        annotator.run(job, ray=False)
    assert table(job.output, "seg").num_rows == 7
    monkeypatch.undo()
    annotator.run(job, ray=False)
    assert is_whole(job)
