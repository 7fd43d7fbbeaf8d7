"""The published contracts in schemas/ are what the code gives, and the jobs that we show keep to them.

After a change of a contract write them anew: `annotator schema job > schemas/job.schema.json`, and
`annotator schema TASK > schemas/TASK.json` for the task.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import annotator
import annotator.errors
import annotator.tasks
from annotator.cli.labels import schema as schema_command
from annotator.tasks import task_names
from tests.running.make import TASKS, make_job

ROOT = Path(__file__).resolve().parent.parent
FILES = {"job": "job.schema.json", **{task: f"{task}.json" for task in task_names()}}

JOB: dict[str, Any] = {"manifest": "m/", "output": "o/", "tasks": {"seg": {"checkpoint": "seg.pth"}}}


@pytest.mark.parametrize("what", FILES)
def test_a_published_contract_is_what_the_code_gives(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    schema_command(what)
    is_same = (ROOT / "schemas" / FILES[what]).read_text(encoding="ascii") == capsys.readouterr().out
    assert is_same, f"the contract changed: annotator schema {what} > schemas/{FILES[what]}"


def test_nothing_else_is_published() -> None:
    assert {path.name for path in (ROOT / "schemas").iterdir()} == set(FILES.values())


def problems(job: Any) -> list[str]:
    """Return what the published JSON Schema has against a job."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = annotator.schema("job")
    jsonschema.Draft202012Validator.check_schema(schema)
    errors = jsonschema.Draft202012Validator(schema).iter_errors(job)
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in errors]


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_jobs_that_we_show_keep_to_the_published_schema(path: Path) -> None:
    assert problems(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((), {"limts": {}}),
        (("tasks", "seg"), {"lable_size": "head"}),
        (("tasks", "seg"), {"label_size": "huge"}),
        (("tasks", "seg"), {"max_label_pixels": 0}),
        ((), {"shard_rows": 0}),
        ((), {"workers": "many"}),
        ((), {"storage": {"secret_key": "x"}}),
        ((), {"limits": {"attempts": 0}}),
        ((), {"tasks": {}}),
    ],
)
def test_what_the_code_refuses_the_published_schema_refuses(place: tuple[str, ...], value: dict[str, Any]) -> None:
    job = copy.deepcopy(JOB)
    assert problems(job) == []
    inner = job
    for key in place:
        inner = inner[key]
    inner.update(value)
    assert problems(job) != []
    with pytest.raises(annotator.errors.JobError):
        annotator.tasks.resolve(annotator.load_job(None, job))


@pytest.mark.parametrize(
    "value",
    [
        {"workers": {"min": 1, "max": 3}, "limits": {"max_bytes": "64MiB"}, "dtype": None},
        {"keep_columns": ["licence"], "batch_size": "auto", "gpus_per_worker": 0.5},
        {"tasks": {"my_lab.hands": {"checkpoint": "x.pth", "fingers": 5}}},
    ],
)
def test_what_the_code_takes_the_published_schema_takes(value: dict[str, Any]) -> None:
    job = {**JOB, **value}
    assert problems(job) == []
    annotator.load_job(None, job)


def test_label_files_have_the_published_columns(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> None:
    job = make_job(tmp_path, tiny_checkpoints, count=2)
    annotator.run(job, ray=False)
    for task in TASKS:
        (path,) = (Path(job.output) / "labels" / task).rglob("*.parquet")
        published = annotator.schema(task)["columns"]
        schema: pa.Schema = pq.read_schema(path)
        assert [(f.name, str(f.type)) for f in schema] == [(c["name"], c["type"]) for c in published]
        assert [f.metadata.get(b"unit", b"").decode() for f in schema] == [c.get("unit", "") for c in published]
