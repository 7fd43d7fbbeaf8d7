"""The command line when something is wrong: one line, and the documented exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import annotator
from annotator.cli import run as cli_module
from annotator.errors import TransientStorageError
from annotator.storage import Storage
from tests.running.command import Cli, is_one_line
from tests.running.make import write_images
from tests.running.test_resume import StopAfter


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run"], ["job file", "--manifest", "--output", "--task"]),
        (["run", "absent.yaml"], ["absent.yaml: no such job file"]),
        (["run", "JOB", "--task", "seg"], ["--task seg", "NAME=CHECKPOINT"]),
        (["run", "JOB", "--set", "dtype"], ["--set dtype", "KEY=VALUE"]),
        (["run", "JOB", "--set", "dtyp=float32"], ["'dtyp'", "did you mean 'dtype'"]),
        (["run", "JOB", "--set", "limits.attempts=many"], ["limits.attempts"]),
        (["run", "JOB", "--set", "shard_rows.x=1"], ["shard_rows"]),
        (["run", "JOB", "--task", "sag=x.pth"], ["'sag'", "did you mean 'seg'"]),
        (["run", "JOB", "--task", "seg=absent.pth"], ["absent.pth", "no such checkpoint"]),
        (["plan", "JOB", "--set", "where=widht > 3"], ["where", "'widht'"]),
        (["run", "JOB", "--set", "storage.secret_key=S3CRET"], ["secret_key", "environment"]),
        (["status", "absent"], ["absent"]),
        (["verify", "absent"], ["absent"]),
        (["preview", "absent"], ["absent"]),
        (["schema", "sge"], ["'sge'", "'seg'"]),
        (["manifest", "check", "absent"], ["absent"]),
        (["manifest", "append", "images", "--out", "absent"], ["absent", "manifest build"]),
        (["models", "inspect", "absent.pth"], ["absent.pth"]),
        (["models", "list", "absent"], ["absent"]),
        (["models", "random", "x.safetensors", "--task", "sag"], ["'sag'", "seg"]),
        (["models", "random", "x.safetensors", "--task", "seg", "--input", "big"], ["--input big"]),
        (["models", "random", "x.safetensors", "--task", "seg", "--heads", "7"], ["num_heads is 7"]),
        pytest.param(
            ["run", "JOB", "--set", "limits.attempts=[1"],
            ["--set limits.attempts=[1"],
        ),
        pytest.param(
            ["models", "random", "JOB/x.safetensors", "--task", "seg"],
            ["x.safetensors"],
        ),
        (["manifest", "build", "absent", "--out", "m"], ["absent: "]),
    ],
    ids=lambda value: " ".join(value) if value and " " not in value[0] else "",
)
def test_wrong_input_is_one_line_on_standard_error_and_exit_2(
    words: list[str],
    says: list[str],
    cli: Cli,
    job_file: Path,
    job: annotator.Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(job_file.parent)
    typed = cli(*(word.replace("JOB", "job.yaml") for word in words))
    assert typed.code == 2, typed
    assert typed.out == ""
    assert is_one_line(typed.err), typed.err
    assert [part for part in says if part not in typed.err] == [], typed.err
    assert "S3CRET" not in typed.err
    assert not Path(job.output).exists()


@pytest.mark.parametrize(
    "words", [["labl"], ["run", "--bogus"], ["run", "--limit", "0"], ["status"], ["models", "random"]]
)
def test_a_typing_error_exits_2_and_points_to_the_help(words: list[str], cli: Cli) -> None:
    typed = cli(*words)
    assert typed.code == 2
    assert typed.out == ""
    assert "--help" in typed.err


@pytest.mark.parametrize(
    "words",
    [
        [],
        *([name] for name in ("run", "plan", "status", "verify", "preview", "schema")),
        *(["manifest", name] for name in ("build", "append", "check")),
        *(["models", name] for name in ("inspect", "list", "random")),
    ],
    ids=" ".join,
)
def test_every_command_has_help(words: list[str], cli: Cli) -> None:
    assert cli(*words, "--help").code == 0


def test_another_jobs_output_exits_3(cli: Cli, job_file: Path, job: annotator.Job) -> None:
    cli("run", job_file, "--no-ray")
    typed = cli("run", job_file, "--no-ray", "--set", "shard_rows=6")
    assert typed.code == 3
    assert is_one_line(typed.err) and "shard_rows is 6" in typed.err


def test_a_storage_fault_exits_4(cli: Cli, job_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    typed = cli("run", job_file, "--no-ray", "--set", f"spool_dir={tmp_path / 'file' / 'spool'}", "--quiet")
    assert typed.code == 4
    assert is_one_line(typed.err) and "spool_dir" in typed.err


def test_shards_left_over_exit_5(cli: Cli, job_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Storage.create

    def create(self: Storage, source: Path | bytes, uri: str, *, output: str) -> bool:
        if uri.endswith("000000000000-000000000005.parquet"):
            raise TransientStorageError(f"{uri}: 503 SlowDown")
        return real(self, source, uri, output=output)

    monkeypatch.setattr(Storage, "create", create)
    monkeypatch.setattr("annotator.rounds.PATIENCE_S", 0.0)
    typed = cli("run", job_file, "--no-ray", "--quiet")
    assert typed.code == 5
    assert is_one_line(typed.err)
    assert "000000000000-000000000005" in typed.err and "SlowDown" in typed.err and "run again" in typed.err


def test_too_many_bad_rows_exit_6(cli: Cli, job_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("annotator.report._MIN_BUDGET_ROWS", 1)
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"no image")
    typed = cli("run", job_file, "--no-ray", "--quiet", "--set", "failure_budget=0.1")
    assert typed.code == 6
    assert is_one_line(typed.err) and "failure_budget = 0.1" in typed.err


def test_an_interrupted_run_exits_130_and_says_how_to_go_on(
    cli: Cli, job_file: Path, job: annotator.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_module, "terminal_watcher", lambda quiet: StopAfter(1))
    typed = cli("run", job_file, "--no-ray")
    assert typed.code == 130
    assert "run again to go on" in typed.err
    monkeypatch.undo()
    assert annotator.status(job.output).runs[-1].state == "interrupted"


def test_a_picture_that_cannot_be_written_is_told(cli: Cli, tmp_path: Path, job_file: Path, job: annotator.Job) -> None:
    cli("run", job_file, "--no-ray")
    typed = cli("preview", job.output, "--out", job_file / "sheet.png")
    assert typed.code in (2, 4)
    assert is_one_line(typed.err)


def test_a_wrong_checkpoint_is_told_before_a_manifest_is_made(cli: Cli, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 1)
    typed = cli("run", "--images", tmp_path / "photos", "--output", tmp_path / "out", "--task", "seg=absent.pth")
    assert typed.code == 2
    assert not (tmp_path / "out").exists()


def test_images_by_option_and_the_rest_by_a_job_file(
    cli: Cli, tmp_path: Path, tiny_checkpoints: dict[str, Path]
) -> None:
    write_images(tmp_path / "photos", 2)
    path = tmp_path / "job.yaml"
    tasks = {"seg": {"checkpoint": str(tiny_checkpoints["seg"])}}
    path.write_text(yaml.safe_dump({"output": str(tmp_path / "out"), "tasks": tasks}))
    assert "done: 2 images" in cli("run", path, "--images", tmp_path / "photos", "--no-ray").out
