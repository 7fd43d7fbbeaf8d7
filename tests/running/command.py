"""The command line as tests type it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import annotator
from annotator.cli import main
from tests.running.make import make_job


@dataclass(frozen=True)
class Typed:
    """What a command gave: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Typed]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Return a function that runs the console script's own entry point with these words."""

    def run(*words: object) -> Typed:
        monkeypatch.setattr(sys, "argv", ["annotator", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return Typed(code, printed.out, printed.err)

    return run


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoints: dict[str, Path]) -> annotator.Job:
    return make_job(tmp_path, tiny_checkpoints, count=7, tasks=("seg",))


@pytest.fixture
def job_file(tmp_path: Path, job: annotator.Job) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_defaults=True)))
    return path


def is_one_line(err: str) -> bool:
    return err.startswith("error: ") and err.count("\n") == 1
