"""The whole way of a picture through a dense task ends where the disk was drawn."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch

from annotator.geometry import Geometry, stretch
from annotator.job import Limits, parse
from annotator.models.runtime import normalise
from annotator.stages.decode import decode
from annotator.tasks import load_task
from tests.oracle import Oracle, Picture, disk_of, error_px, make_picture

TOLERANCE_PX = 0.1
INPUT_HW = (256, 192)


def label_of(
    picture: Picture, task_name: Any, *, mode: Literal["exact", "fast"] = "exact", **options: Any
) -> np.ndarray:
    """Run one picture through decode, stretch, network, decode, encode and load."""
    task = load_task(task_name)
    checked: Any = parse(task.options, {"checkpoint": "none", **options}, task_name)
    image = decode(picture.data, Limits(), mode=mode, min_hw=INPUT_HW)
    assert (image.height, image.width) == picture.size_yx
    geometry = Geometry(picture.size_yx, INPUT_HW, checked.label_size, checked.max_label_pixels)
    batch = torch.from_numpy(stretch(image.pixels_YXC, INPUT_HW))[None]
    with torch.inference_mode():
        output_CHW = Oracle(task_name, INPUT_HW)(normalise(batch, torch.float32))[0]
        arrays = {k: v.numpy() for k, v in task.decode(output_CHW[None], [geometry], checked)[0].items()}
    loaded: np.ndarray = task.load(task.encode([arrays], (0, 0), checked, {}))
    return loaded


@pytest.mark.parametrize("task", ["seg", "depth", "normal"])
@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_label_lies_where_the_picture_is_for_every_orientation(task: str, kind: Any, orientation: int) -> None:
    """An image of odd size, with its disk off centre, so that a flip or a turn moves it by tens of pixels."""
    picture = make_picture((151, 211), (61.3, 130.8), radius=37, orientation=orientation, kind=kind)
    label = label_of(picture, task)
    assert label.shape[:2] == (151, 211)
    assert error_px(task, label, picture) < TOLERANCE_PX


@pytest.mark.parametrize("task", ["seg", "depth", "normal"])
@pytest.mark.parametrize("size_yx", [(101, 83), (97, 401), (403, 95), (333, 301), (256, 192)])
def test_label_lies_where_the_picture_is_for_every_shape(task: str, size_yx: tuple[int, int]) -> None:
    picture = make_picture(size_yx, (size_yx[0] * 0.47 + 0.13, size_yx[1] * 0.55 + 0.29), radius=31)
    assert error_px(task, label_of(picture, task), picture) < TOLERANCE_PX


@pytest.mark.parametrize("task", ["seg", "depth", "normal"])
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"label_size": "input"}, INPUT_HW),
        ({"label_size": "head"}, (INPUT_HW[0] // 2, INPUT_HW[1] // 2)),
        ({"max_label_pixels": 20_000}, (118, 168)),  # 20000 / (211 * 301) is a scale of .5612
    ],
)
def test_scaled_label_lies_where_the_picture_is(task: str, options: dict[str, Any], shape: tuple[int, int]) -> None:
    picture = make_picture((211, 301), (95.7, 160.2), radius=60, orientation=6, kind="jpeg")
    label = label_of(picture, task, **options)
    assert label.shape[:2] == shape
    assert error_px(task, label, picture) < TOLERANCE_PX


@pytest.mark.parametrize("size_yx", [(1001, 803), (1027, 1537), (768, 1025)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_label_of_a_reduced_picture_lies_where_the_picture_is(size_yx: tuple[int, int], orientation: int) -> None:
    """1001 x 803 at 3/8 is 376 x 302, which stand for 1002.7 x 805.3: taken for the whole, off by 2 px."""
    centre_yx = size_yx[0] * 0.7 + 0.3, size_yx[1] * 0.7 + 0.1
    picture = make_picture(size_yx, centre_yx, radius=200, edge=24, orientation=orientation, kind="jpeg")
    image = decode(picture.data, Limits(), mode="fast", min_hw=INPUT_HW)
    assert image.pixels_YXC.shape[0] < size_yx[0] * 0.51
    assert error_px("seg", label_of(picture, "seg", mode="fast"), picture) < TOLERANCE_PX


def test_a_label_moved_by_a_pixel_would_be_noticed() -> None:
    picture = make_picture((151, 211), (61.3, 130.8), radius=37)
    moved = np.roll(label_of(picture, "seg"), 1, axis=1)
    assert error_px("seg", moved, picture) > 0.9


def test_disk_has_the_area_it_was_drawn_with() -> None:
    label = label_of(make_picture((151, 211), (61.3, 130.8), radius=37), "seg")
    assert disk_of("seg", label).sum() == pytest.approx(np.pi * 37**2, rel=0.01)
