"""The RADOS gateway of the tests: a whole job on it, and what is said where it can't be had."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pyarrow.dataset as ds
import pytest

import annotator
from annotator.job import StorageOptions
from annotator.storage import Storage
from tests.conftest import make_bucket
from tests.running.make import TASKS, make_job, table
from tests.running.test_resume import StopAfter
from tests.servers import rgw


@pytest.mark.s3
def test_a_job_on_a_gateway_stops_goes_on_and_gives_the_labels_of_a_local_run(
    rgw_s3: StorageOptions, tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket, storage = make_bucket(rgw_s3), Storage(options=rgw_s3)
    here = make_job(tmp_path, tiny_checkpoints, 12)
    for file in (*(tmp_path / "images").iterdir(), *tiny_checkpoints.values()):
        storage.create(file, f"{bucket}/{file.parent.name}/{file.name}", output=bucket)
    annotator.build_manifest(f"{bucket}/images/", f"{bucket}/manifest/", storage)
    weights = {
        task: {"checkpoint": f"{bucket}/{file.parent.name}/{file.name}"} for task, file in tiny_checkpoints.items()
    }
    there = {"manifest": f"{bucket}/manifest/", "output": f"{bucket}/labels-of/", "tasks": weights, "storage": rgw_s3}
    job = here.model_copy(update=there)
    with pytest.raises(KeyboardInterrupt):
        annotator.run(job, ray=False, watcher=StopAfter(1))
    before = {info.uri: info.etag for info in storage.list(f"{job.output}labels")}
    assert 0 < len(before) < 3 * len(TASKS)
    assert annotator.run(job, ray=False).state == "done"
    after = {info.uri: info.etag for info in storage.list(f"{job.output}labels")}
    assert before.items() <= after.items() and len(after) == 3 * len(TASKS)
    assert annotator.verify(job.output, storage).ok
    assert annotator.run(job, ray=False).rounds == 0
    annotator.run(here, ray=False)
    for task in TASKS:
        filesystem, path = storage.arrow(f"{job.output}labels/{task}")
        found = ds.dataset(path, format="parquet", filesystem=filesystem).to_table().sort_by("row")
        own = ["shard", "uri", "image_id"]  # they name the place
        assert found.drop_columns(own).equals(table(here.output, task).drop_columns(own))


def test_where_the_packages_cannot_be_installed_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: dict[str, str] = {}
    monkeypatch.setattr(shutil, "which", nothing.get)
    with pytest.raises(rgw.NotInstallableError, match=r"radosgw.* no apt-get"):
        rgw.install()
    nothing["apt-get"] = "/usr/bin/apt-get"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(rgw.NotInstallableError, match=r"only root .* apt-get install radosgw"):
        rgw.install()
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def fails(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(100, command, stderr=b"E: Could not resolve the archive\n")

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(rgw.NotInstallableError, match=r"`apt-get update` failed: E: Could not resolve"):
        rgw.install()

    def hangs(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 200)

    monkeypatch.setattr(subprocess, "run", hangs)
    with pytest.raises(rgw.NotInstallableError, match=r"took more than 200 s"):
        rgw.install()
