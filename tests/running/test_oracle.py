"""A picture's way through a whole run ends where the disk was drawn, by the public API alone.

The network is the analytic oracle of `tests/oracle.py` instead of the checkpoint's; everything else is what a
user gets: manifest, preflight, worker, label files, `open_labels`, `load_map`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

import annotator
from annotator.job import Sources
from annotator.models import random_checkpoint
from annotator.stages import networks
from tests.oracle import Oracle, Picture, error_px, make_picture
from tests.running.make import TASKS, write_manifest

TOLERANCE_PX = 0.1
INPUT_HW = (256, 192)
CHANNELS = {"seg": 2, "depth": 1, "normal": 3}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints whose architecture has the oracle's input and channels; their weights are never run."""
    folder = tmp_path_factory.mktemp("oracle")
    for task, channels in CHANNELS.items():
        random_checkpoint(
            folder / f"{task}.safetensors",
            task=task,
            embed_dim=16,
            num_layers=1,
            num_heads=1,
            input_hw=INPUT_HW,
            seed=0,
            channels=channels,
        )
    return {task: str(folder / f"{task}.safetensors") for task in CHANNELS}


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers load the oracle."""

    def load(uri: str, *, task: Literal["seg", "depth", "normal"], **_: Any) -> Oracle:
        return Oracle(task, INPUT_HW)

    monkeypatch.setattr(networks, "load_network", load)


def errors_px(
    folder: Path,
    pictures: Mapping[str, Picture],
    checkpoints: Mapping[str, str],
    *,
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[tuple[str, str], float]:
    """Label the pictures and return how far each map is off, in pixels of the upright image, by task and name."""
    for name, picture in pictures.items():
        (folder / name).write_bytes(picture.data)
    job = annotator.Job(
        manifest=str(write_manifest(folder / "manifest", [f"../{name}" for name in pictures])),
        output=str(folder / "out"),
        tasks={task: {"checkpoint": checkpoints[task], **(options or {})} for task in TASKS},
        sources=Sources(roots=(str(folder),)),
        gpus_per_worker=0,
        batch_size=3,
        **settings,
    )
    annotator.run(job, ray=False)
    found = {}
    for task in TASKS:
        for row in annotator.open_labels(job.output, task).to_table().to_pylist():
            name = Path(row["uri"]).name
            assert row["status"] == "ok", row["error"]
            assert (row["height"], row["width"]) == pictures[name].size_yx
            label = annotator.load_map(row, task)
            assert label.shape[:2] == (row["map_height"], row["map_width"])
            found[task, name] = error_px(task, label, pictures[name])
    assert len(found) == len(TASKS) * len(pictures)
    return found


def worst(errors: Mapping[tuple[str, str], float]) -> float:
    """Return the largest error; the failure message has them all."""
    return max(errors.values())


@pytest.mark.usefixtures("oracle")
def test_maps_lie_on_the_picture_for_every_orientation_kind_and_odd_size(
    tmp_path: Path, checkpoints: dict[str, str]
) -> None:
    """The disk is off centre, so that a flip or a turn would move it by tens of pixels."""
    kinds: tuple[Literal["jpeg", "png"], ...] = ("jpeg", "png")
    pictures = {
        f"turned-{orientation}.{kind}": make_picture(
            (151, 211), (61.3, 130.8), radius=37, orientation=orientation, kind=kind
        )
        for kind in kinds
        for orientation in range(1, 9)
    }
    pictures |= {
        f"{height}x{width}.{kind}": make_picture(
            (height, width), (height * 0.47 + 0.13, width * 0.55 + 0.29), radius=31, kind=kind
        )
        for (height, width), kind in zip([(101, 83), (97, 401), (403, 95), (333, 301)], kinds * 2, strict=True)
    }
    errors = errors_px(tmp_path, pictures, checkpoints, shard_rows=7)
    assert worst(errors) < TOLERANCE_PX, errors


@pytest.mark.usefixtures("oracle")
@pytest.mark.parametrize("options", [{"label_size": "input"}, {"label_size": "head"}, {"max_label_pixels": 20_000}])
def test_maps_of_another_size_lie_on_the_picture(
    options: dict[str, Any], tmp_path: Path, checkpoints: dict[str, str]
) -> None:
    pictures = {
        f"turned-{orientation}.jpg": make_picture(
            (211, 301), (95.7, 160.2), radius=60, orientation=orientation, kind="jpeg"
        )
        for orientation in (1, 6)
    }
    errors = errors_px(tmp_path, pictures, checkpoints, options=options)
    assert worst(errors) < TOLERANCE_PX, errors


@pytest.mark.usefixtures("oracle")
def test_maps_of_pictures_decoded_at_a_reduced_scale_lie_on_the_picture(
    tmp_path: Path, checkpoints: dict[str, str]
) -> None:
    """`decode: fast` reads these at 1/2: 2051 rows become 1026, which stand for 2052; that must not move the map."""
    pictures = {
        f"{orientation}-{height}x{width}.jpg": make_picture(
            (height, width),
            (height * 0.7 + 0.3, width * 0.6 + 0.1),
            radius=400,
            edge=60,
            orientation=orientation,
            kind="jpeg",
        )
        for orientation, height, width in [(1, 2051, 2803), (6, 2777, 2065)]
    }
    errors = errors_px(tmp_path, pictures, checkpoints, decode="fast")
    assert worst(errors) < TOLERANCE_PX, errors
