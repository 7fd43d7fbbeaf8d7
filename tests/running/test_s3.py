"""The whole job on S3: images, manifest, weights and labels in a bucket, against a test server (moto)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import yaml

import annotator
from annotator.errors import InvalidInputError, StorageError
from annotator.job import Sources, StorageOptions
from annotator.shards import label_uri
from annotator.storage import Storage, join
from annotator.watch import Silent
from tests.records.faulty import FaultyServer
from tests.running.command import Cli, cli
from tests.running.make import TASKS, table, write_images, write_manifest
from tests.running.test_resume import StopAfter

__all__ = ["cli"]

pytestmark = pytest.mark.s3

COUNT = 12


@pytest.fixture
def storage(moto_s3: StorageOptions) -> Storage:
    return Storage(options=moto_s3)


@pytest.fixture
def bucket(s3_bucket: str, storage: Storage, tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> str:
    """A bucket with 12 pictures, one of them damaged, and the weights."""
    for name in write_images(tmp_path / "images", COUNT):
        storage.create(tmp_path / "images" / name, f"{s3_bucket}/images/deep/{name}", output=s3_bucket)
    storage.replace(b"no image", f"{s3_bucket}/images/deep/image-0007.png", output=s3_bucket)
    (tmp_path / "images" / "image-0007.png").write_bytes(b"no image")
    for task, path in tiny_checkpoints.items():
        storage.create(path, f"{s3_bucket}/weights/{task}.safetensors", output=s3_bucket)
    return s3_bucket


@pytest.fixture
def job(bucket: str, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> annotator.Job:
    """A job of three tasks that names everything in the bucket; how S3 is reached is in the job alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    annotator.build_manifest(f"{bucket}/images/", f"{bucket}/manifest/", storage)
    return annotator.Job(
        manifest=f"{bucket}/manifest/",
        output=f"{bucket}/labels/",
        tasks={task: {"checkpoint": f"{bucket}/weights/{task}.safetensors"} for task in TASKS},
        storage=storage.options,
        shard_rows=5,
        deterministic=True,
    )


def labels(job: annotator.Job, task: str, storage: Storage) -> pa.Table:
    """Return a task's labels in manifest order, through the public API."""
    found = annotator.open_labels(job.output, task, storage=storage).to_table()
    return found.sort_by([("row", "ascending")])


def test_the_whole_job_gives_the_labels_of_a_local_run(
    job: annotator.Job, storage: Storage, tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    report = annotator.run(job, ray=False)
    assert (report.state, report.images, report.errors) == ("done", COUNT, {"unsupported_format": 3})
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    here = annotator.Job(
        manifest=str(write_manifest(tmp_path / "manifest", [f"../images/{name}" for name in names])),
        output=str(tmp_path / "local"),
        sources=Sources(roots=(str(tmp_path / "images"),)),
        tasks={task: {"checkpoint": str(tiny_checkpoints[task])} for task in TASKS},
        shard_rows=5,
        deterministic=True,
    )
    annotator.run(here, ray=False)
    for task in TASKS:
        there, local = labels(job, task, storage), table(here.output, task)
        own = {"shard", "uri", "image_id"}  # they name the place
        assert there.schema.equals(local.schema.set(0, there.schema.field(0)))
        differ = [n for n in there.column_names if n not in own and there[n].to_pylist() != local[n].to_pylist()]
        assert differ == []
        assert [Path(uri).name for uri in there["uri"].to_pylist()] == names
    assert annotator.run(job, ray=False).rounds == 0
    assert annotator.verify(job.output, storage).ok


def test_a_stopped_run_goes_on_and_touches_nothing_that_is_committed(job: annotator.Job, storage: Storage) -> None:
    with pytest.raises(KeyboardInterrupt):
        annotator.run(job, ray=False, watcher=StopAfter(1))
    before = {info.uri: info.etag for info in storage.list(f"{job.output}labels")}
    assert 0 < len(before) < 3 * len(TASKS)
    assert annotator.verify(job.output, storage).counts == {"missing_shard": 3 * len(TASKS) - len(before)}
    annotator.run(job, ray=False)
    after = {info.uri: info.etag for info in storage.list(f"{job.output}labels")}
    assert len(after) == 3 * len(TASKS)
    assert before.items() <= after.items()
    assert annotator.verify(job.output, storage).ok


def test_labels_open_lazily_and_maps_are_arrays(job: annotator.Job, storage: Storage) -> None:
    annotator.run(job, ray=False)
    ok = annotator.open_labels(job.output, "seg", filter="status == 'ok'", storage=storage)
    assert ok.count_rows() == COUNT - 1
    row = ok.head(1).to_pylist()[0]
    assert annotator.load_map(row, "seg", root=job.output).shape == (row["map_height"], row["map_width"])
    filesystem, path = storage.arrow(f"{job.output}labels/seg")
    plain = ds.dataset(path, format="parquet", filesystem=filesystem).to_table()  # no help from us but the endpoint
    assert plain.num_rows == COUNT


def test_a_map_stored_as_a_path_is_read_under_root(
    job: annotator.Job, bucket: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotator.run(job, ray=False, limit=1)
    row = labels(job, "seg", storage).to_pylist()[0]
    storage.create(row["mask"]["bytes"], f"{bucket}/export/masks/a.png", output=bucket)
    moved = {**row, "mask": {"bytes": None, "path": "masks/a.png"}}
    monkeypatch.setenv("AWS_ENDPOINT_URL", str(storage.options.endpoint_url))
    assert (annotator.load_map(moved, "seg", root=f"{bucket}/export") == annotator.load_map(row, "seg")).all()


def test_two_runs_at_once_share_the_work_and_the_labels_are_whole(
    job: annotator.Job, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second starts while the first is at its first commit."""
    real = Storage.create
    started: list[str] = []

    def create(self: Storage, source: Path | bytes, uri: str, *, output: str) -> bool:
        if "/labels/" in uri.removeprefix(output) and not started:
            started.append(uri)
            annotator.run(job, ray=False)
        return real(self, source, uri, output=output)

    monkeypatch.setattr(Storage, "create", create)
    report = annotator.run(job, ray=False)
    assert started
    assert report.state == "done"
    assert annotator.verify(job.output, storage).ok


def test_the_command_line_takes_the_endpoint_from_the_job_or_an_option(
    cli: Cli, job: annotator.Job, bucket: str, tmp_path: Path, storage: Storage
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_defaults=True)))
    url = ["--endpoint-url", storage.options.endpoint_url]
    built = cli("manifest", "build", f"{bucket}/images", "--out", f"{bucket}/again", "--json", *url)
    assert built.json["images"] == COUNT
    assert cli("manifest", "check", f"{bucket}/again", *url).code == 0
    assert "12 images in 3 shards left" in cli("plan", path).out
    assert cli("run", path, "--no-ray", "--json", "--quiet").json["state"] == "done"
    assert cli("run", path).out.startswith("nothing to do")
    assert "3/3" in cli("status", job.output, *url).out
    assert cli("verify", job.output, *url).code == 0
    sheet = tmp_path / "sheet.png"
    cli("preview", job.output, "--out", sheet, "--limit", 2, *url)
    assert np.ptp(cv2.imread(str(sheet))) > 100
    assert cli("models", "inspect", f"{bucket}/weights/seg.safetensors", "--json", *url).json["random"] is True


def test_verify_finds_what_somebody_changed_in_the_bucket(job: annotator.Job, storage: Storage) -> None:
    annotator.run(job, ray=False)
    client = boto3.client("s3", endpoint_url=storage.options.endpoint_url, region_name=storage.options.region)
    uris = [info.uri for info in storage.list(f"{job.output}labels/seg")]
    name, _, key = uris[0][5:].partition("/")
    client.delete_object(Bucket=name, Key=key)
    storage.replace(storage.read(uris[1])[:-50], uris[1], output=job.output)
    client.close()
    assert annotator.verify(job.output, storage).counts == {"missing_shard": 1, "unreadable": 1}
    assert annotator.run(job, ray=False).shards == 1  # what is missing is made again, what is there is not touched


@pytest.fixture
def faulty(job: annotator.Job) -> Iterator[tuple[FaultyServer, annotator.Job]]:
    """The job, by way of a server that fails when told to."""
    with FaultyServer(str(job.storage.endpoint_url)).running() as server:
        options = StorageOptions(endpoint_url=server.url, region="us-east-1")
        limits = job.limits.model_copy(update={"attempts": 2})
        tasks = {"seg": job.tasks["seg"]}
        yield server, job.model_copy(update={"storage": options, "limits": limits, "tasks": tasks})


def test_passing_faults_cost_nothing(faulty: tuple[FaultyServer, annotator.Job], storage: Storage) -> None:
    """A fault on every third request, of all kinds; each request is tried again."""
    server, job = faulty
    server.faults += [fault or "" for fault in ("slow_down", "", "", "reset", "", "", "lost", "", "", "internal")] * 3
    report = annotator.run(job, ray=False)
    assert report.errors == {"unsupported_format": 1}
    assert not server.faults
    assert annotator.verify(job.output, storage).ok


def test_expired_credentials_end_the_run_and_what_is_done_stays(
    faulty: tuple[FaultyServer, annotator.Job], storage: Storage
) -> None:
    server, job = faulty

    class ExpireAfterOne(Silent):
        def progressed(self, report: object) -> None:
            server.faults += ["expired"] * 1000

    with pytest.raises(StorageError, match=r"ExpiredToken"):
        annotator.run(job, ray=False, watcher=ExpireAfterOne())
    server.faults.clear()
    assert 1 <= len(list(storage.list(f"{job.output}labels/seg"))) < 3
    annotator.run(job, ray=False)
    assert annotator.verify(job.output, storage).ok


def test_a_missing_bucket_is_told_before_any_work(job: annotator.Job) -> None:
    for key in ("manifest", "output"):
        changed = job.model_copy(update={key: "s3://no-such-bucket-here/x"})
        with pytest.raises((StorageError, InvalidInputError), match="no-such-bucket-here"):
            annotator.run(changed, ray=False)


def test_a_picture_that_is_missing_from_the_bucket_costs_its_row(
    job: annotator.Job, bucket: str, storage: Storage
) -> None:
    client = boto3.client("s3", endpoint_url=storage.options.endpoint_url, region_name=storage.options.region)
    client.delete_object(Bucket=bucket[5:], Key="images/deep/image-0002.jpg")
    client.close()
    annotator.run(job, ray=False)
    rows = labels(job, "depth", storage).to_pylist()
    assert {row["uri"].rsplit("/", 1)[1]: row["error_class"] for row in rows if row["status"] != "ok"} == {
        "image-0002.jpg": "not_found",
        "image-0007.png": "unsupported_format",
    }


def test_the_place_of_a_label_file_is_the_same_on_s3(job: annotator.Job, storage: Storage) -> None:
    annotator.run(job, ray=False, limit=1)
    shard = annotator.plan(job).manifest.files[0].key
    assert storage.exists(join(job.output, "labels", "seg", shard, "000000000000-000000000005.parquet"))
    assert label_uri(job.output, "seg", next(annotator.plan(job).shards("x"))).startswith(job.output)


def test_a_bad_row_is_mended_in_the_bucket(job: annotator.Job, bucket: str, storage: Storage, tmp_path: Path) -> None:
    """The picture that was none is uploaded again; its shard's label files are replaced by one conditional PUT each."""
    annotator.run(job, ray=False)
    folder = join(job.output, "labels")
    before = {info.uri: info.etag for info in storage.list(folder)}
    write_images(tmp_path / "good", COUNT)
    storage.replace(
        (tmp_path / "good" / "image-0007.png").read_bytes(), f"{bucket}/images/deep/image-0007.png", output=bucket
    )
    report = annotator.retry(job.output, ["unsupported_format"], job=job, ray=False)
    assert (report.images, report.shards, report.errors) == (1, 1, {})
    changed = [uri for uri, etag in before.items() if storage.info(uri).etag != etag]
    assert len(changed) == len(TASKS) and len({uri.rsplit("/", 1)[1] for uri in changed}) == 1
    assert annotator.verify(job.output, storage).ok


def test_a_probe_leaves_its_forecast_in_the_bucket_and_the_run_finds_it(job: annotator.Job, storage: Storage) -> None:
    """Of 12 pictures all are probed; three tasks can't read the damaged one."""
    forecast = annotator.plan(job, probe=12, ray=False).forecast
    assert forecast is not None
    assert forecast.errors == {"unsupported_format": 3}
    assert [info.uri for info in storage.list(job.output)] == [join(job.output, "_annotator", "forecast.json")]
    report = annotator.run(job, ray=False)
    assert report.forecast is not None
    assert report.forecast.hits["bytes"].off == pytest.approx(0, abs=0.1)
