"""What is wrong with a job is one clear line and an exit code, before any work, and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import annotator
from annotator.errors import (
    AnnotatorError,
    FingerprintMismatchError,
    InvalidInputError,
    ManifestError,
    TransientStorageError,
)
from annotator.report import Report
from annotator.storage import Storage
from annotator.watch import Silent
from tests.running.make import file_bytes, is_whole, make_job, table, write_images, write_manifest

Change = Callable[[Path, annotator.Job], annotator.Job]


def with_task(job: annotator.Job, task: str, **options: Any) -> annotator.Job:
    """Return the job with a task's options changed, or a task added."""
    tasks = {**job.tasks, task: {**job.tasks.get(task, {}), **options}}
    return job.model_copy(update={"tasks": tasks})


def write_part(folder: Path, table: pa.Table) -> None:
    pq.write_table(table, folder / "manifest" / "part-0.parquet")


def no_usable_column(folder: Path, job: annotator.Job) -> annotator.Job:
    write_part(folder, pa.table({"path": ["a.jpg"], "width": [3]}))
    return job


def uri_of_a_wrong_type(folder: Path, job: annotator.Job) -> annotator.Job:
    write_part(folder, pa.table({"uri": [1, 2, 3]}))
    return job


def unreadable_manifest(folder: Path, job: annotator.Job) -> annotator.Job:
    (folder / "manifest" / "part-0.parquet").write_bytes(b"uri\na.jpg\nb.jpg\n" * 9)
    return job


def manifest_cut_short(folder: Path, job: annotator.Job) -> annotator.Job:
    path = folder / "manifest" / "part-0.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    return job


def damaged_footer(folder: Path, job: annotator.Job) -> annotator.Job:
    path = folder / "manifest" / "part-0.parquet"
    data = bytearray(path.read_bytes())
    data[-60:-10] = bytes(50)
    path.write_bytes(bytes(data))
    return job


def one_bad_file_among_good_ones(folder: Path, job: annotator.Job) -> annotator.Job:
    (folder / "manifest" / "part-1.parquet").write_bytes(b"PAR1")
    return job


def empty_manifest_folder(folder: Path, job: annotator.Job) -> annotator.Job:
    (folder / "manifest" / "part-0.parquet").unlink()
    return job


def missing_manifest(folder: Path, job: annotator.Job) -> annotator.Job:
    return job.model_copy(update={"manifest": str(folder / "nowhere")})


def manifest_of_an_unknown_scheme(folder: Path, job: annotator.Job) -> annotator.Job:
    return job.model_copy(update={"manifest": "gopher://host/manifest"})


def output_in_the_manifest(folder: Path, job: annotator.Job) -> annotator.Job:
    return job.model_copy(update={"output": str(folder / "manifest" / "out")})


def missing_checkpoint(folder: Path, job: annotator.Job) -> annotator.Job:
    return with_task(job, "seg", checkpoint=str(folder / "absent.safetensors"))


def checkpoint_that_is_a_folder(folder: Path, job: annotator.Job) -> annotator.Job:
    return with_task(job, "seg", checkpoint=str(folder))


def checkpoint_of_another_task(folder: Path, job: annotator.Job) -> annotator.Job:
    return with_task(job, "seg", checkpoint=str(folder / "depth.safetensors"))


def checkpoint_that_is_no_checkpoint(folder: Path, job: annotator.Job) -> annotator.Job:
    (folder / "text.pth").write_text("<html>404 Not Found</html>")
    return with_task(job, "seg", checkpoint=str(folder / "text.pth"))


def checkpoint_cut_short(folder: Path, job: annotator.Job) -> annotator.Job:
    data = (folder / "depth.safetensors").read_bytes()
    (folder / "short.safetensors").write_bytes(data[: len(data) // 2])
    return with_task(job, "depth", checkpoint=str(folder / "short.safetensors"))


def unknown_task(folder: Path, job: annotator.Job) -> annotator.Job:
    return with_task(job, "segg", checkpoint="x.pth")


def unknown_key_of_a_task(folder: Path, job: annotator.Job) -> annotator.Job:
    return with_task(job, "seg", lable_size="head")


def bad_value_of_a_task(folder: Path, job: annotator.Job) -> annotator.Job:
    return with_task(job, "seg", label_size="huge")


def background_without_seg(folder: Path, job: annotator.Job) -> annotator.Job:
    depth = {"checkpoint": job.tasks["seg"]["checkpoint"], "background": "zero"}
    return job.model_copy(update={"tasks": {"depth": depth}})


def background_of_another_size(folder: Path, job: annotator.Job) -> annotator.Job:
    depth = {"checkpoint": str(folder / "depth.safetensors"), "background": "zero", "label_size": "head"}
    return job.model_copy(update={"tasks": {**job.tasks, "depth": depth}})


def setting(**changes: Any) -> Change:
    def change(folder: Path, job: annotator.Job) -> annotator.Job:
        return job.model_copy(update=changes)

    change.__name__ = ", ".join(f"{k}={v}" for k, v in changes.items())
    return change


def strangers_labels(folder: Path, job: annotator.Job) -> annotator.Job:
    stranger = folder / "stranger" / "labels" / "seg"
    stranger.mkdir(parents=True)
    pq.write_table(pa.table({"a": [1]}), stranger / "a.parquet")
    return job.model_copy(update={"output": str(folder / "stranger")})


REFUSED = [  # what is wrong, and what the message must name: what was found, where, what to do
    (no_usable_column, ["part-0.parquet", "path, width", "`uri`"]),
    (uri_of_a_wrong_type, ["part-0.parquet", "'uri' is int64", "string"]),
    (unreadable_manifest, ["part-0.parquet", "not a Parquet file", "manifest build"]),
    (manifest_cut_short, ["part-0.parquet", "not a Parquet file"]),
    (damaged_footer, ["part-0.parquet", "damaged"]),
    (one_bad_file_among_good_ones, ["part-1.parquet", "not a Parquet file"]),
    (empty_manifest_folder, ["no Parquet file", "manifest build"]),
    (missing_manifest, ["nowhere", "no Parquet file"]),
    (output_in_the_manifest, ["lies in the manifest folder"]),
    (missing_checkpoint, ["absent.safetensors", "no such"]),
    (checkpoint_that_is_a_folder, ["is a folder"]),
    (checkpoint_of_another_task, ["depth.safetensors", "seg"]),
    (checkpoint_that_is_no_checkpoint, ["text.pth"]),
    (checkpoint_cut_short, ["short.safetensors"]),
    (unknown_task, ["'segg'", "did you mean 'seg'"]),
    (unknown_key_of_a_task, ["tasks.seg", "lable_size", "did you mean 'label_size'"]),
    (bad_value_of_a_task, ["tasks.seg", "label_size", "'image'"]),
    (background_without_seg, ["tasks.depth", "needs task 'seg'"]),
    (background_of_another_size, ["label_size", "must be equal"]),
    (setting(where="width >="), ["where", "width >="]),
    (setting(where="height > 3"), ["where names 'height'", "uri"]),
    (setting(where="uri > 3"), ["where", "uri is string"]),
    (setting(where="__import__('os').system('true')"), ["where"]),
    (setting(keep_columns=("licence",)), ["keep_columns names 'licence'", "uri"]),
    (setting(keep_columns=("uri",)), ["keep_columns", "uri"]),
    (strangers_labels, ["stranger", "not an output of ours", "empty or new folder"]),
]


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> annotator.Job:
    """A good job, whose pictures are never looked at, and the other task's weights beside it."""
    (tmp_path / "depth.safetensors").write_bytes(tiny_checkpoints["depth"].read_bytes())
    return make_job(tmp_path, tiny_checkpoints, count=3, tasks=("seg",))


def trace(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(("change", "says"), REFUSED, ids=[change.__name__ for change, _ in REFUSED])
def test_a_job_that_cannot_run_is_one_line_exit_2_and_leaves_no_trace(
    change: Change, says: list[str], tmp_path: Path, job: annotator.Job
) -> None:
    changed = change(tmp_path, job)
    before = trace(tmp_path)
    for call in (lambda: annotator.plan(changed), lambda: annotator.run(changed, ray=False)):
        with pytest.raises(InvalidInputError) as caught:
            call()
        message = str(caught.value)
        assert caught.value.exit_code == 2
        assert "\n" not in message
        assert [part for part in says if part not in message] == [], message
    assert trace(tmp_path) == before


def test_an_unknown_scheme_is_refused_naming_the_known_ones(tmp_path: Path, job: annotator.Job) -> None:
    for key in ("manifest", "output"):
        with pytest.raises(AnnotatorError, match=r"unknown scheme 'gopher'.*s3://"):
            annotator.run(job.model_copy(update={key: "gopher://host/x"}), ray=False)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"taks": {}}, ["'taks'", "did you mean 'tasks'"]),
        ({"limits": {"max_byte": 3}}, ["limits.max_byte", "did you mean 'max_bytes'"]),
        ({"limits": {"max_bytes": "many"}}, ["limits.max_bytes"]),
        ({"shard_rows": 0}, ["shard_rows", "1"]),
        ({"workers": "many"}, ["workers"]),
        ({"workers": {"min": 3, "max": 2}}, ["min is 3 and max is 2"]),
        ({"tasks": {}}, ["tasks"]),
        ({"tasks": ["seg"]}, ["tasks"]),
        ({"storage": {"secret_access_key": "S3CRET"}}, ["secret_access_key", "environment"]),
        ({"storage": {"aws_session_token": "S3CRET"}}, ["aws_session_token", "environment"]),
        ({"storage": {"endpoint_url": "https://me:S3CRET@host"}}, ["endpoint_url", "environment"]),
        ({"output": "s3://me:S3CRET@bucket/out"}, ["output", "environment"]),
        ({"manifest": "s3://bucket/m?X-Amz-Signature=S3CRET"}, ["manifest", "environment"]),
    ],
)
def test_a_job_that_makes_no_sense_is_refused_where_it_is_built(data: dict[str, Any], says: list[str]) -> None:
    good = {"manifest": "m", "output": "o", "tasks": {"seg": {"checkpoint": "x.pth"}}}
    with pytest.raises(InvalidInputError) as caught:
        annotator.load_job(None, good | data)
    message = str(caught.value)
    assert [part for part in says if part not in message] == [], message
    assert "\n" not in message
    assert "S3CRET" not in message


def test_a_manifest_that_changed_is_refused_and_what_is_committed_stays(tmp_path: Path, job: annotator.Job) -> None:
    annotator.run(job, ray=False)
    before = file_bytes(job.output, ("seg",))
    write_manifest(tmp_path / "manifest", ["other.jpg"])
    for call in (lambda: annotator.plan(job), lambda: annotator.run(job, ray=False)):
        with pytest.raises(ManifestError, match=r"part-0\.parquet: changed since"):
            call()
    (tmp_path / "manifest" / "part-0.parquet").unlink()
    write_manifest(tmp_path / "manifest", ["other.jpg"], name="part-1.parquet")
    with pytest.raises(ManifestError, match=r"part-0\.parquet: is pinned by .* no longer there"):
        annotator.run(job, ray=False)
    assert file_bytes(job.output, ("seg",)) == before


def test_the_output_of_another_job_is_refused_with_exit_3(
    tmp_path: Path, job: annotator.Job, tiny_checkpoints: dict[str, Path]
) -> None:
    annotator.run(job, ray=False)
    before = trace(Path(job.output))
    other = make_job(tmp_path / "other", tiny_checkpoints, count=2, tasks=("depth",))
    with pytest.raises(FingerprintMismatchError, match="manifest is") as caught:
        annotator.run(other.model_copy(update={"output": job.output}), ray=False)
    assert caught.value.exit_code == 3
    assert trace(Path(job.output)) == before


def test_one_wrong_task_of_three_keeps_the_others_from_starting(
    tmp_path: Path, job: annotator.Job, tiny_checkpoints: dict[str, Path]
) -> None:
    changed = with_task(job, "normal", checkpoint=str(tiny_checkpoints["depth"]))
    with pytest.raises(InvalidInputError, match=r"depth\.safetensors"):
        annotator.run(changed, ray=False)
    assert not Path(job.output).exists()


def test_a_dry_run_writes_nothing(tmp_path: Path, job: annotator.Job) -> None:
    before = trace(tmp_path)
    plan = annotator.plan(job)
    assert (len(plan), plan.rows_left, plan.rows_total, plan.is_done) == (1, 3, 3, False)
    assert trace(tmp_path) == before


def test_the_released_task_names_are_not_confused_by_a_default_dtype(tmp_path: Path, job: annotator.Job) -> None:
    """A job that leaves dtype out takes the output's own, wherever it runs now."""
    annotator.run(job.model_copy(update={"dtype": "bfloat16"}), ray=False)
    assert annotator.run(job, ray=False).rounds == 0


@pytest.mark.parametrize("name", ["mask", "confidence", "map_width"])
def test_a_kept_column_that_a_task_has_itself_is_refused(name: str, tmp_path: Path, job: annotator.Job) -> None:
    write_part(tmp_path, pa.table({"uri": ["../images/image-0000.jpg"], name: ["x"]}))
    with pytest.raises(InvalidInputError, match=name):
        annotator.run(job.model_copy(update={"keep_columns": (name,)}), ray=False)


def test_a_kept_column_named_twice_is_refused_or_kept_once(tmp_path: Path, job: annotator.Job) -> None:
    write_part(tmp_path, pa.table({"uri": ["../images/image-0000.jpg"], "licence": ["x"]}))
    try:
        annotator.run(job.model_copy(update={"keep_columns": ("licence", "licence")}), ray=False)
    except InvalidInputError:
        return
    assert table(job.output, "seg").column_names.count("licence") == 1


def test_a_second_output_at_the_same_place_in_one_process_has_its_own_rows(tmp_path: Path, job: annotator.Job) -> None:
    """As in a notebook: run, throw the output away, make the manifest anew, run again."""
    import shutil

    annotator.run(job, ray=False)
    shutil.rmtree(job.output)
    names = write_images(tmp_path / "images", 6)
    write_manifest(tmp_path / "manifest", [f"../images/{name}" for name in names[3:]])
    annotator.run(job, ray=False)
    uris = [Path(uri).name for uri in table(job.output, "seg")["uri"].to_pylist()]
    assert uris == names[3:]
    assert is_whole(job)


@pytest.mark.parametrize("error", [TransientStorageError("503 SlowDown"), KeyboardInterrupt()])
def test_a_run_record_that_cannot_be_written_ends_nothing(
    error: BaseException, job: annotator.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record only informs; labels and the terminal's state matter more."""

    class Watch(Silent):
        told = False

        def progressed(self, report: Report) -> None:
            if not isinstance(error, Exception):
                raise error

        def ended(self, report: Report) -> None:
            self.told = True

    def replace(self: Storage, source: bytes, uri: str, *, output: str) -> None:
        raise TransientStorageError(f"{uri}: 503 SlowDown")

    monkeypatch.setattr(Storage, "replace", replace)
    watcher = Watch()
    try:
        annotator.run(job, ray=False, watcher=watcher)
    except BaseException as err:
        assert err is error
    assert watcher.told
    assert table(job.output, "seg").num_rows == 3


def test_a_sample_of_pictures_named_by_a_struct_finds_them(tmp_path: Path, job: annotator.Job) -> None:
    names = write_images(tmp_path / "images", 4)
    image = pa.array([{"bytes": None, "path": f"../images/{name}"} for name in names])
    write_part(tmp_path, pa.table({"image": image}))
    sampled = annotator.sample(job, 3)
    annotator.run(sampled, ray=False)
    assert table(sampled.output, "seg")["status"].to_pylist() == ["ok"] * 3


def test_a_sample_that_was_killed_amid_its_manifest_is_completed(
    tmp_path: Path, job: annotator.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two manifest files of three rows; killed after the first is written."""
    more = [f"../images/{name}" for name in write_images(tmp_path / "images", 6)[3:]]
    write_manifest(tmp_path / "manifest", more, name="part-1.parquet")
    real = Storage.create

    def create(self: Storage, source: Path | bytes, uri: str, *, output: str) -> bool:
        if "part-1" in uri:
            raise KeyboardInterrupt
        return real(self, source, uri, output=output)

    monkeypatch.setattr(Storage, "create", create)
    with pytest.raises(KeyboardInterrupt):
        annotator.sample(job, 6)
    monkeypatch.undo()
    assert annotator.run(annotator.sample(job, 6), ray=False).images == 6
