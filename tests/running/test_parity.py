"""The whole path of the dense tasks, from an image file to a map of the image's size, against the fact sheet.

The fact sheet's steps are done here once more, plainly, in float64 numpy, with the same network in the middle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import annotator
from annotator.images import apply_orientation
from annotator.job import Sources
from annotator.models import load_model
from tests.oracle import with_orientation
from tests.running.make import table, write_manifest

INPUT_HW = (64, 48)
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])  # sapiens-v1.md 3
SIZES = {
    "odd-1.png": (83, 61),
    "wide-1.png": (41, 120),
    "turned-6.png": (90, 57),
    "small-1.png": (17, 23),
    "turned-3.png": (70, 95),
}
INVERSE = {6: 8, 8: 6}


def bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return (Y, X, C) resized to (height, width): pixel centres on pixel centres, edges repeated, float64."""
    for axis, n in enumerate(size):
        m = image.shape[axis]
        place = np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1)
        low = np.minimum(np.floor(place).astype(int), m - 1)
        high = np.minimum(low + 1, m - 1)
        part = (place - low).reshape([-1 if a == axis else 1 for a in range(3)])
        image = image.take(low, axis) * (1 - part) + image.take(high, axis) * part
    return image


def expected_output(picture: np.ndarray, model: Any) -> np.ndarray:
    """Return the network's output at the image's size, (Y, X, C) float64: stretch, network, two resizes."""
    seen = np.round(bilinear(picture.astype(np.float64), INPUT_HW))
    batch = torch.from_numpy(((seen - MEAN) / STD).transpose(2, 0, 1)[None]).float()
    with torch.inference_mode():
        output = model(batch)[0].double().numpy().transpose(1, 2, 0)
    return bilinear(bilinear(output, INPUT_HW), (picture.shape[0], picture.shape[1]))


@pytest.fixture(scope="module")
def labelled(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoints: dict[str, Path]
) -> tuple[annotator.Job, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("parity")
    rng = np.random.default_rng(3)
    pictures = {}
    (folder / "images").mkdir()
    for name, (height, width) in SIZES.items():
        coarse = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
        pictures[name] = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        orientation = int(name.split("-")[1][0])
        stored = apply_orientation(pictures[name], INVERSE.get(orientation, orientation))
        ok, png = cv2.imencode(".png", stored[..., ::-1])
        assert ok
        (folder / "images" / name).write_bytes(with_orientation(png.tobytes(), orientation))
    manifest = write_manifest(folder / "manifest", [f"../images/{name}" for name in pictures])
    tasks: dict[str, dict[str, Any]] = {t: {"checkpoint": str(p)} for t, p in tiny_checkpoints.items()}
    tasks["normal"]["bits"] = 16
    sources = Sources(roots=(str(folder / "images"),))
    job = annotator.Job(manifest=str(manifest), output=str(folder / "out"), tasks=tasks, sources=sources)
    annotator.run(job, ray=False)
    return job, pictures


@pytest.mark.parametrize("task", ["seg", "depth", "normal"])
def test_labels_at_image_size_are_those_of_the_fact_sheet(
    task: str, labelled: tuple[annotator.Job, dict[str, np.ndarray]], tiny_checkpoints: dict[str, Path]
) -> None:
    """OpenCV's stretch rounds in fixed point, so the network may see one grey level more or less here and there."""
    job, pictures = labelled
    model = load_model(str(tiny_checkpoints[task]))
    rows = table(job.output, task).to_pylist()
    assert len(rows) == len(pictures)
    for row in rows:
        expected = expected_output(pictures[row["uri"].rsplit("/", 1)[1]], model)
        label = annotator.load_map(row, task)
        assert label.shape[:2] == expected.shape[:2]
        if task == "seg":
            best = np.sort(expected, axis=2)
            clear = best[..., -1] - best[..., -2] > 0.05  # elsewhere a grey level decides
            assert clear.mean() > 0.5
            np.testing.assert_array_equal(label[clear], expected.argmax(axis=2)[clear])
            assert (label == expected.argmax(axis=2)).mean() > 0.98
        elif task == "depth":
            np.testing.assert_allclose(label, expected[..., 0], atol=0.02 * np.ptp(expected))
        else:
            unit = expected / (np.linalg.norm(expected, axis=2, keepdims=True) + 1e-5)
            cosine = (label * unit).sum(axis=2) / np.linalg.norm(label, axis=2)
            assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean() < 1.0


def test_a_released_folder_names_the_checkpoint_by_size(
    tmp_path: Path, labelled: tuple[annotator.Job, dict[str, np.ndarray]], tiny_checkpoints: dict[str, Path]
) -> None:
    """`checkpoint: {root: ..., size: ...}` finds the file; labels are those of the file itself."""
    job, _ = labelled
    folder = tmp_path / "sapiens_host" / "depth" / "checkpoints" / "sapiens_0.3b"
    folder.mkdir(parents=True)
    (folder / "sapiens_0.3b_render_people_epoch_100.safetensors").write_bytes(tiny_checkpoints["depth"].read_bytes())
    released = {"depth": {"checkpoint": {"root": str(tmp_path / "sapiens_host"), "size": "0.3b"}}}
    other = job.model_copy(update={"tasks": released, "output": str(tmp_path / "out")})
    annotator.run(other, ray=False)
    assert table(other.output, "depth")["depth"].equals(table(job.output, "depth")["depth"])
