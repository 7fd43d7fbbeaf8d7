"""The commands that the documentation shows are run, page by page, as a reader would type them.

Every ```sh and ```python block of a page runs, in order, in one temporary folder; Python blocks share their names.
A block that can't run here says why: ```sh not-run: needs a second machine. Of the repository the folder holds the
photographs and the example jobs; what a page takes for granted besides is in PREPARED. Text blocks are not compared.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import annotator
from annotator.job import StorageOptions

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SERVER = "https://s3.example.com"
"""The S3 server of the documentation; the test server takes its place."""

QUICK = {"docs/reference/files.md", "docs/reference/labels.md", "docs/reference/python.md"}
"""Pages that run in two seconds; all others are marked slow."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block: its language, why it isn't run if it isn't, its code and the line where that starts."""

    language: str
    not_run: str | None
    code: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\S+)(?: ([^\n]+))?\n(.*?)^```$", text, re.M | re.S):
        language, info, code = match.groups()
        line = text[: match.start(3)].count("\n") + 1
        not_run = info.partition("not-run:")[2].strip() if info else None
        yield Block(language=language, not_run=not_run, code=code, line=line)


def runnable(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language in ("sh", "python") and block.not_run is None]


def starts_ray(block: Block) -> bool:
    """Whether the block runs workers on Ray."""
    if block.language == "python":
        return "annotator.run(" in block.code and "ray=False" not in block.code
    return any("annotator run " in line and "--no-ray" not in line for line in _lines(block.code))


def _lines(code: str) -> list[str]:
    return code.replace("\\\n", " ").splitlines()


def _cases() -> Iterator[Any]:
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        found = runnable(page)
        if found:
            marks = [] if name in QUICK else [pytest.mark.slow]
            marks += [pytest.mark.ray] if any(starts_ray(block) for block in found) else []
            marks += [pytest.mark.s3] if any("s3://" in block.code for block in found) else []
            yield pytest.param(page, marks=marks, id=name)


# -- what pages take for granted ------------------------------------------------------------------


def _own_photographs_and_weights(folder: Path, checkpoints: dict[str, Path]) -> None:
    shutil.copytree(folder / "tests" / "photos", folder / "photos")
    (folder / "weights").mkdir()
    for task, path in checkpoints.items():
        shutil.copy(path, folder / "weights" / f"{task}.safetensors")


def _tutorial(folder: Path, checkpoints: dict[str, Path]) -> None:
    """What lies in `try` when the tutorial is done, with normals as well."""
    (folder / "try").mkdir()
    for task, path in checkpoints.items():
        shutil.copy(path, folder / "try" / f"{task}.safetensors")
    annotator.build_manifest(str(folder / "tests" / "photos"), str(folder / "try" / "manifest"))
    tasks = "".join(f"  {task}: {{checkpoint: try/{task}.safetensors}}\n" for task in checkpoints)
    job = folder / "try" / "job.yaml"
    sources = "sources: {roots: [tests/photos]}\n"
    job.write_text(
        f"manifest: try/manifest\noutput: try/labels\n{sources}tasks:\n{tasks}shard_rows: 2\n", encoding="ascii"
    )
    annotator.run(annotator.load_job(job), ray=False)


def _bucket(folder: Path, checkpoints: dict[str, Path]) -> None:
    """s3://corpus/ with photographs and weights, on the server that the environment names."""
    import boto3

    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    client.create_bucket(Bucket="corpus")
    for photo in (folder / "tests" / "photos").glob("*.jpg"):
        client.upload_file(str(photo), "corpus", f"images/{photo.name}")
    client.upload_file(str(checkpoints["seg"]), "corpus", "weights/seg.safetensors")
    client.close()


PREPARED: dict[str, Callable[[Path, dict[str, Path]], None]] = {
    "README.md": _own_photographs_and_weights,
    "docs/how-to/bad-images.md": _tutorial,
    "docs/how-to/checkpoints.md": _tutorial,
    "docs/how-to/cluster.md": _tutorial,
    "docs/how-to/compact.md": _tutorial,
    "docs/how-to/cost.md": _tutorial,
    "docs/how-to/export.md": _tutorial,
    "docs/how-to/people.md": _tutorial,
    "docs/how-to/preview.md": _tutorial,
    "docs/how-to/query.md": _tutorial,
    "docs/how-to/read-labels.md": _tutorial,
    "docs/how-to/resume-and-extend.md": _tutorial,
    "docs/how-to/s3.md": _bucket,
    "docs/how-to/speed.md": _tutorial,
    "docs/how-to/verify.md": _tutorial,
    "docs/reference/cli.md": _tutorial,
    "docs/reference/files.md": _tutorial,
    "docs/reference/labels.md": _tutorial,
    "docs/reference/python.md": _tutorial,
}


@pytest.fixture
def folder(tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder that has of the repository what commands on a page may name."""
    (tmp_path / "tests" / "photos").mkdir(parents=True)
    for photo in photos:
        shutil.copy(photo, tmp_path / "tests" / "photos")
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- the pages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", list(_cases()))
def test_every_command_of_a_page_runs(
    page: Path, folder: Path, tiny_checkpoints: dict[str, Path], request: pytest.FixtureRequest
) -> None:
    server = ""
    if request.node.get_closest_marker("s3"):
        options: StorageOptions = request.getfixturevalue("moto_s3")
        server = str(options.endpoint_url)
        patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
        for name, value in {"ACCESS_KEY_ID": "testing", "SECRET_ACCESS_KEY": "testing", "ENDPOINT_URL": server}.items():
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    prepare = PREPARED.get(str(page.relative_to(ROOT)))
    if prepare is not None:
        prepare(folder, tiny_checkpoints)
    names: dict[str, Any] = {}
    for block in runnable(page):
        code = block.code.replace(SERVER, server) if server else block.code
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + code, str(page), "exec"), names)
        else:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", code], capture_output=True, text=True, timeout=240, check=False
            )
            assert done.returncode == 0, f"{page}:{block.line}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    code = [block for block in blocks(page) if block.language in ("sh", "python", "console", "bash", "shell")]
    assert [block.line for block in code if block.language not in ("sh", "python")] == [], "use sh, it is run"
    assert [block.line for block in code if block.not_run is not None and len(block.not_run) < 10] == []


def test_few_blocks_are_not_run() -> None:
    shown = [block for page in PAGES for block in blocks(page) if block.language in ("sh", "python")]
    assert len([block for block in shown if block.not_run is not None]) <= len(shown) / 4


def test_a_page_that_starts_ray_is_known_by_its_commands() -> None:
    def block(language: str, code: str) -> Block:
        return Block(language=language, not_run=None, code=code, line=1)

    assert starts_ray(block("sh", "annotator run \\\n  job.yaml\n"))
    assert not starts_ray(block("sh", "annotator run \\\n  job.yaml --no-ray\n"))
    assert starts_ray(block("python", "annotator.run(job)\n"))
    assert not starts_ray(block("python", "annotator.run(job, ray=False)\n"))
