"""Labels against the truth, from file to label, with the weights that the package ships.

Held-out pictures of odd sizes, JPEG and PNG, some rotated by EXIF, with one to three mannequins, through the
command line with the detector. And the gates see faults: each of those that this kind of code is prone to turns
one red.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

import annotator
from annotator.keypoints import keypoint_set
from annotator.mannequin.body import CLASS_ID
from annotator.mannequin.evaluate import Accuracy
from annotator.models import heatmaps, runtime
from annotator.stages import decode
from tests.mannequin.gates import GATES, HELD_OUT, measure, red
from tests.running.command import Cli, cli

__all__ = ["cli"]  # a fixture

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("truth") / "mannequins"
    annotator.make_images(48, HELD_OUT, folder)
    return folder


def test_labels_of_mannequins_are_right(cli: Cli, corpus: Path, tmp_path: Path) -> None:
    truth = pq.read_table(corpus / "truth.parquet", columns=["uri", "orientation", "people", "width", "height"])
    assert len(set(truth["orientation"].to_pylist())) > 2
    assert {uri.rsplit(".")[-1] for uri in truth["uri"].to_pylist()} == {"jpg", "png"}
    assert {len(people) for people in truth["people"].to_pylist()} == {1, 2, 3}
    accuracy = measure(cli, corpus, tmp_path)
    assert red(accuracy) == [], accuracy


Run = Callable[[Any, Tensor], Tensor]


def on_input(change: Callable[[Tensor], Tensor]) -> Callable[[Run], Run]:
    """Return a fault in what networks see, (B, H, W, 3)."""
    return lambda run: lambda model, images: run(model, change(images))


def on_output(change: Callable[[Tensor], Tensor]) -> Callable[[Run], Run]:
    """Return a fault in what networks say, (B, C, h, w)."""
    return lambda run: lambda model, images: change(run(model, images))


def swapped_classes() -> list[int]:
    """The seg classes with left and right exchanged."""
    names = {i: name for name, i in CLASS_ID.items()}
    other = {"Left": "Right", "Right": "Left"}
    swapped = []
    for i in range(len(names)):
        side, _, part = names[i].partition("_")
        swapped.append(CLASS_ID[f"{other[side]}_{part}"] if side in other else i)
    return swapped


FAULTS: dict[str, tuple[tuple[str, ...], Callable[[Run], Run]]] = {
    "a shift of 4 pixels": (("seg", "normal"), on_input(lambda images: images.roll(4, 2))),
    "left and right mixed up in seg": (("seg",), on_output(lambda maps: maps[:, swapped_classes()])),
    "left and right mixed up in pose": (
        ("person", "pose"),
        on_output(lambda maps: maps[:, list(keypoint_set(17).flip_indices)]),
    ),
    "a wrong class table": (("seg",), on_output(lambda maps: maps.roll(1, 1))),
    "normals with Y down": (("normal",), on_output(lambda maps: maps * torch.tensor([1, -1, 1]).view(3, 1, 1))),
    "normals with Z away": (("normal",), on_output(lambda maps: maps * torch.tensor([1, 1, -1]).view(3, 1, 1))),
    "inverted depth": (("depth",), on_output(lambda maps: -maps)),
    "BGR for RGB": (("seg", "pose", "person"), on_input(lambda images: images.flip(3))),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_turns_a_gate_red(
    fault: str, cli: Cli, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, change = FAULTS[fault]
    monkeypatch.setattr(runtime, "run", change(runtime.run))
    assert red(measure(cli, corpus, tmp_path, tasks)) != []


def test_swapped_x_and_y_turn_a_gate_red(
    cli: Cli, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = heatmaps.locate

    def swapped(maps_BKhw: Tensor) -> tuple[Tensor, Tensor]:
        points_BK2, scores_BK = real(maps_BKhw)
        return points_BK2.flip(2), scores_BK

    monkeypatch.setattr(heatmaps, "locate", swapped)
    assert "pck_10" in red(measure(cli, corpus, tmp_path, ("person", "pose")))


def test_a_lost_exif_rotation_turns_a_gate_red(
    cli: Cli, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(image_YXC: np.ndarray, orientation: int) -> np.ndarray:
        return image_YXC

    monkeypatch.setattr(decode, "apply_orientation", lost)
    assert red(measure(cli, corpus, tmp_path)) != []


def test_every_figure_has_a_gate_that_a_blind_model_fails() -> None:
    nothing = Accuracy(
        pictures=1, people=1, pck_10=0, pck_05=0, box_ap50=0, part_miou=0, normal_degrees=90, depth_ratio=1
    )
    assert red(nothing) == list(GATES)
