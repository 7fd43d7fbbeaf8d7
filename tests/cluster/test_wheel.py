"""The wheel that goes with a job: ours, the same bytes each time, installed without an index."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import annotator
from annotator import wheel
from annotator.wheel import build_wheel, package_digest, package_files

pytestmark = pytest.mark.slow


def test_the_same_code_gives_the_same_bytes_under_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    one, other = build_wheel(tmp_path), build_wheel(tmp_path / "again")
    assert (one.name, one.read_bytes()) == (other.name, other.read_bytes())
    assert one.name == f"annotator-{annotator.__version__}+{package_digest()}-py3-none-any.whl"


def test_any_change_of_the_code_gives_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build_wheel(tmp_path).name
    files = {**package_files(), "annotator/new.py": b""}
    monkeypatch.setattr(wheel, "package_files", lambda: dict(files))
    assert build_wheel(tmp_path).name != before


def test_it_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    names = zipfile.ZipFile(build_wheel(tmp_path)).namelist()
    assert {"annotator/worker.py", "annotator/keypoints.json", "annotator/cli/__main__.py"} <= set(names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"annotator"}
    assert [name for name in names if "__pycache__" in name] == []


def test_pip_installs_it_without_an_index_and_it_is_the_package_that_python_then_finds(tmp_path: Path) -> None:
    """As Ray does on a node: pip with a target, and the target first on the path."""
    target = tmp_path / "node"
    command = ["-m", "pip", "install", "--no-index", "--quiet", str(build_wheel(tmp_path)), f"--target={target}"]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    code = "import annotator.wheel as w; print(w.__file__, w.package_digest())"
    env = {"PYTHONPATH": str(target), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(target / "annotator" / "wheel.py"), package_digest()]
