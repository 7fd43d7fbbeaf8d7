"""The jobs that we show are jobs that run: in jobs/, and in every YAML block of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from annotator.job import Job, Options, load_job, parse
from annotator.tasks import resolve

ROOT = Path(__file__).resolve().parent.parent
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT)}:{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S))
    if "manifest:" in block
]


def test_two_jobs_are_shown_at_least() -> None:
    assert {p.stem for p in JOBS} >= {"laptop", "cluster"}


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_an_example_job_parses_down_to_its_tasks_options(path: Path) -> None:
    job = load_job(path)
    assert set(resolve(job)) == set(job.tasks)


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_an_example_job_explains_itself(path: Path) -> None:
    lines = path.read_text(encoding="ascii").splitlines()
    assert sum("#" in line for line in lines) >= len(lines) / 3


@pytest.mark.parametrize("block", BLOCKS)
def test_a_job_in_the_documentation_parses_down_to_its_tasks_options(block: str) -> None:
    resolve(parse(Job, yaml.safe_load(block), "documentation"))


def test_every_key_of_a_job_is_explained_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "job.md").read_text(encoding="utf-8")
    assert [key for key in _keys(Job) if f"`{key}`" not in text] == []


def _keys(model: type[Options], prefix: str = "") -> list[str]:
    keys = []
    for name, info in model.model_fields.items():
        inner = info.annotation
        nested = isinstance(inner, type) and issubclass(inner, Options)
        keys += _keys(inner, f"{prefix}{name}.") if nested else [prefix + name]  # type: ignore[arg-type]
    return keys
