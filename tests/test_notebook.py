"""The notebooks run from top to bottom, on labels like the demo's, and are committed without outputs."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import cv2
import nbclient
import nbformat
import numpy as np
import pytest

import annotator
from annotator.job import Sources

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture
def labelled(tmp_path: Path, photos: list[Path]) -> Path:
    """Return the output of a demo in small: mannequins, two photographs and a broken file; all tasks."""
    annotator.make_images(9, 1, tmp_path / "made")
    images, output = tmp_path / "made" / "images", tmp_path / "output"
    for photo in photos[:2]:
        shutil.copy(photo, images)
    (images / "broken.jpg").write_bytes(b"not a picture")
    annotator.build_manifest(str(images), str(tmp_path / "manifest"))
    checkpoints = annotator.copy_weights(tmp_path / "weights").checkpoints
    tasks: dict[str, dict[str, Any]] = {task: {"checkpoint": str(path)} for task, path in checkpoints.items()}
    tasks["pose"]["boxes"] = "person"
    tasks["depth"]["background"] = tasks["normal"]["background"] = "zero"
    sources = Sources(roots=(str(images),))
    manifest = str(tmp_path / "manifest")
    annotator.run(annotator.Job(manifest=manifest, output=str(output), sources=sources, tasks=tasks), ray=False)
    return output


@pytest.mark.notebook
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANNOTATOR_DEMO", str(labelled))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(labelled.parent / "ipython"))
    monkeypatch.setenv("TMPDIR", str(labelled.parent))
    notebook: Any = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    figures = [_figure(data["image/png"]) for data in outputs if "image/png" in data]
    drawing = [cell for cell in notebook.cells if "plt.show()" in cell.source]
    assert len(figures) == len(drawing) >= 6
    assert [number for number, figure in enumerate(figures) if _num_colours(figure) < 20] == []


def _figure(data: str) -> np.ndarray:
    figure = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert figure is not None
    return np.asarray(figure)


def _num_colours(figure: np.ndarray) -> int:
    return len(np.unique(figure.reshape(-1, 3) // 8, axis=0))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_valid_and_committed_without_outputs(path: Path) -> None:
    notebook: Any = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in cells if cell.outputs or cell.execution_count is not None] == []
