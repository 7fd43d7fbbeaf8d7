"""The notebooks run from top to bottom, and are committed without outputs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

import annotator
from annotator.job import Sources

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def labelled(tmp_path: Path, photos: list[Path], tiny_checkpoints: dict[str, Path]) -> Path:
    """Return the output folder of a small finished run: all dense tasks on the shipped photographs."""
    images = tmp_path / "images"
    images.mkdir()
    for photo in photos[:5]:
        shutil.copy(photo, images)
    (images / "broken.jpg").write_bytes(b"not a picture")
    manifest, output = tmp_path / "manifest", tmp_path / "output"
    annotator.build_manifest(str(images), str(manifest))
    job = annotator.Job(
        manifest=str(manifest),
        output=str(output),
        sources=Sources(roots=(str(images),)),
        tasks={task: {"checkpoint": str(path)} for task, path in tiny_checkpoints.items()},
        shard_rows=2,
    )
    annotator.run(job, ray=False)
    return output


@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANNOTATOR_DEMO", str(labelled))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(labelled.parent / "ipython"))
    notebook: Any = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    drawn = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert drawn, "no picture was drawn"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_valid_and_committed_without_outputs(path: Path) -> None:
    notebook: Any = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in cells if cell.outputs or cell.execution_count is not None] == []
