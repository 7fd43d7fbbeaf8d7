"""A model of a released size labels a photograph, on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import annotator
from annotator.job import Sources
from annotator.models import load_model, random_checkpoint
from tests.running.make import is_whole, table, write_manifest

INPUT_HW = (512, 384)
"""A quarter of 1024 x 768, for the test's time: 1.1 TFLOP an image instead of 4.7."""


@pytest.mark.slow
def test_a_real_size_model_is_built_saved_loaded_and_labels_a_photograph(tmp_path: Path, photos: list[Path]) -> None:
    """0.3b seg: 339,495,196 parameters, 1.36 GB (sapiens-v1.md 2.1, 8.2), fewer places at a quarter of its input."""
    checkpoint = tmp_path / "seg.safetensors"
    random_checkpoint(checkpoint, task="seg", embed_dim=1024, num_layers=24, num_heads=16, input_hw=INPUT_HW, seed=0)
    places = (1024 * 768 - INPUT_HW[0] * INPUT_HW[1]) // 16**2
    assert sum(p.numel() for p in load_model(str(checkpoint)).parameters()) == 339_495_196 - places * 1024
    photo = next(path for path in photos if path.name == "collins.jpg")
    job = annotator.Job(
        manifest=str(write_manifest(tmp_path / "manifest", [str(photo)])),
        output=str(tmp_path / "out"),
        sources=Sources(roots=(str(photo.parent),)),
        tasks={"seg": {"checkpoint": str(checkpoint)}},
        batch_size=1,
    )
    try:
        annotator.run(job, ray=False)
    finally:
        checkpoint.unlink()  # pytest would keep 1.4 GB for a while
    (row,) = table(job.output, "seg").to_pylist()
    mask = annotator.load_map(row, "seg")
    assert row["status"] == "ok"
    assert mask.shape == (row["height"], row["width"])
    assert len(np.unique(mask)) > 5
    assert is_whole(job)
