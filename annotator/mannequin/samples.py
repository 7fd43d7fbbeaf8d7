"""What the networks are trained on: a picture at their input's size, and its truth in their outputs' terms."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np

from annotator.crop import PADDING
from annotator.mannequin.render import render
from annotator.mannequin.scene import Scene, View, sample_scene, whole_view

TRAINING = 0x5EED
"""The stream of seeds that training draws from; pictures of any other seed are held out."""

_CROPS = 0.5  # of the samples for all tasks show one person, as pose sees them; the rest a whole picture


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One input and its truth, all at the input's size.

    points_K3  keypoints of the person that the input is a crop of, as Picture has them, flags 0 if there is none
    boxes_N4   of everybody who is seen
    """

    pixels_HWC: np.ndarray
    parts_HW: np.ndarray
    depth_HW: np.ndarray
    normals_HWC: np.ndarray
    points_K3: np.ndarray
    boxes_N4: np.ndarray


def training_rng(index: int) -> np.random.Generator:
    """Return the generator of the training sample of this number."""
    return np.random.default_rng((TRAINING, index))


def any_sample(rng: np.random.Generator, size_hw: tuple[int, int]) -> Sample:
    """Return a crop or a whole picture."""
    return crop_sample(rng, size_hw) if rng.random() < _CROPS else whole_sample(rng, size_hw)


def whole_sample(rng: np.random.Generator, size_hw: tuple[int, int]) -> Sample:
    """Return a whole picture stretched to the input, as the dense tasks see it (geometry.stretch)."""
    scene = sample_scene(rng)
    view = whole_view(scene, size_hw)
    only = 0 if len(scene.bodies) == 1 else None
    return _sample(scene, view, rng, only)


def crop_sample(rng: np.random.Generator, size_hw: tuple[int, int]) -> Sample:
    """Return one person's crop, as pose sees it (crop.cut): padded, off by a detector's error, black off the frame."""
    scene = sample_scene(rng)
    person = int(rng.integers(len(scene.bodies)))
    view = crop_view(scene.extent(person) + _jitter(rng, scene.extent(person)), size_hw)
    return _sample(scene, view, rng, person)


def _jitter(rng: np.random.Generator, box_4: np.ndarray) -> np.ndarray:
    size = np.tile(box_4[2:] - box_4[:2], 2)
    return np.asarray(np.clip(rng.normal(0, 0.035, 4), -0.1, 0.1) * size)


def crop_view(box_4: np.ndarray, size_hw: tuple[int, int]) -> View:
    """Return the view that crop.make_crop gives of a box, here one on the plane."""
    width, height = (box_4[2:] - box_4[:2]) * PADDING
    aspect = size_hw[1] / size_hw[0]
    width, height = max(width, aspect * height), max(height, width / aspect)
    x, y = (box_4[:2] + box_4[2:]) / 2
    step_xy = (float(width / (size_hw[1] - 1)), float(height / (size_hw[0] - 1)))
    return View(first_xy=(float(x - width / 2), float(y - height / 2)), step_xy=step_xy, size_hw=size_hw)


def _sample(scene: Scene, view: View, rng: np.random.Generator, person: int | None) -> Sample:
    picture = render(scene, view, rng)
    x_W, y_H = view.rays()
    x1, y1, x2, y2 = scene.frame
    inside_HW = ((y_H >= y1) & (y_H < y2))[:, None] & ((x_W >= x1) & (x_W < x2))
    points_K3 = np.zeros((17, 3), np.float32) if person is None else picture.keypoints_NK3[person]
    column, row = (np.rint(points_K3[:, i]).astype(int).clip(0, n - 1) for i, n in enumerate(view.size_hw[::-1]))
    points_K3 = np.where((inside_HW[row, column] & (points_K3[:, 2] > 0))[:, None], points_K3, 0)
    return Sample(
        pixels_HWC=picture.pixels_YXC * inside_HW[..., None],
        parts_HW=picture.parts_YX * inside_HW,
        depth_HW=picture.depth_YX * inside_HW,
        normals_HWC=picture.normals_YXC * inside_HW[..., None],
        points_K3=points_K3,
        boxes_N4=picture.boxes_N4[picture.boxes_N4[:, 2] > 0],
    )


def boxed_sample(rng: np.random.Generator, size_hw: tuple[int, int], pad: int) -> Sample:
    """Return a whole picture fitted into the top left of the detector's canvas (tasks/person.py)."""
    scene = sample_scene(rng)
    x1, y1, x2, y2 = scene.frame
    aspect = (x2 - x1) / (y2 - y1)
    fit_hw = (size_hw[0], round(size_hw[1] * aspect)) if aspect < 1 else (round(size_hw[0] / aspect), size_hw[1])
    sample = _sample(scene, whole_view(scene, fit_hw), rng, None)
    border = (0, size_hw[0] - fit_hw[0], 0, size_hw[1] - fit_hw[1])
    pixels_HWC = cv2.copyMakeBorder(sample.pixels_HWC, *border, cv2.BORDER_CONSTANT, value=(pad, pad, pad))
    return dataclasses.replace(sample, pixels_HWC=pixels_HWC)
