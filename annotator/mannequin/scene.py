"""Who stands where before which camera: bodies on the ground, a light, and the frame that a picture shows.

Everything is in the camera's frame, metres, x right, y down, z ahead; the plane is the camera's at depth 1, so a
point of it is (x / z, y / z).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from annotator.mannequin.body import Body, sample_body
from annotator.mannequin.skeleton import turn

MAX_PEOPLE = 3
_SHADOW = 0.30  # metres, of the disc under a mannequin


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The pixels of a picture: the plane's x, y at the centre of the first one, the step to the next, how many."""

    first_xy: tuple[float, float]
    step_xy: tuple[float, float]
    size_hw: tuple[int, int]

    def to_pixels(self, plane_N2: np.ndarray) -> np.ndarray:
        """Return where points of the plane lie, x, y in pixels; (0, 0) is the centre of the first one."""
        pixels_N2: np.ndarray = (plane_N2 - np.array(self.first_xy)) / np.array(self.step_xy)
        return pixels_N2

    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the plane's x of each column (W,) and y of each row (H,), float32."""
        x, y = (
            first + step * np.arange(n)
            for first, step, n in zip(self.first_xy, self.step_xy, self.size_hw[::-1], strict=True)
        )
        return x.astype(np.float32), y.astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Bodies before a camera.

    frame      x1, y1, x2, y2 on the plane: what a photographer would show
    horizon    the plane's y where the floor ends
    shadows    outlines on the plane, (M, 2) each, of the discs under the bodies
    light      unit vector towards the lamp, (3,)
    """

    bodies: tuple[Body, ...]
    frame: tuple[float, float, float, float]
    horizon: float
    shadows: tuple[np.ndarray, ...]
    light: np.ndarray

    def extent(self, person: int) -> np.ndarray:
        """Return x1, y1, x2, y2 on the plane of a whole body, as if nothing hid it; (4,)."""
        bounds = [solid.shape.bounds() for solid in self.bodies[person].solids]
        return np.concatenate([np.min([low for low, _ in bounds], 0), np.max([high for _, high in bounds], 0)])


def sample_scene(rng: np.random.Generator, *, people: int | None = None) -> Scene:
    """Return a scene of so many people, or of one to MAX_PEOPLE, most often one."""
    count = people or 1 + int(rng.choice(MAX_PEOPLE, p=[0.6, 0.27, 0.13]))
    bodies = [sample_body(rng) for _ in range(count)]
    places = _places(rng, count)
    # cameras are held at eye height or above and near enough for perspective to show
    pitch = np.clip(rng.normal(17, 7), 0, 32)
    distance = rng.uniform(2.2, 4.0) + 0.7 * (count - 1)
    to_camera = turn("z", np.clip(rng.normal(0, 2), -5, 5)) @ np.diag([1.0, -1, -1]) @ turn("x", pitch)
    target = np.array([0, 0.9, 0])
    shift = np.array([0, 0, distance])
    placed = [
        _place(body, to_camera, to_camera @ (place - target) + shift)
        for body, place in zip(bodies, places, strict=True)
    ]
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    disc = np.stack([np.cos(angle), 0 * angle, np.sin(angle)], 1) * _SHADOW
    shadows = [(disc + place - target) @ to_camera.T + shift for place in places]
    light = np.array([rng.normal(-0.3, 0.5), rng.uniform(-1.0, -0.3), rng.uniform(-1.3, -0.6)])
    scene = Scene(
        bodies=tuple(placed),
        frame=(0, 0, 1, 1),
        horizon=float(-np.tan(np.deg2rad(pitch)) + rng.uniform(-0.05, 0.25)),
        shadows=tuple(points[:, :2] / points[:, 2:] for points in shadows),
        light=light / np.linalg.norm(light),
    )
    return _framed(scene, rng)


def _places(rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Return where on the ground people stand, side by side with some depth, (3,) each."""
    across = (np.arange(count) - (count - 1) / 2) * rng.uniform(0.6, 0.95)
    order = rng.permutation(count)
    return [np.array([across[i] + rng.normal(0, 0.05), 0, rng.normal(0, 0.35) if count > 1 else 0.0]) for i in order]


def _place(body: Body, rotation: np.ndarray, shift: np.ndarray) -> Body:
    solids = tuple(
        dataclasses.replace(
            solid,
            shape=solid.shape.moved(rotation, shift),
            origin=rotation @ solid.origin + shift,
            axes=rotation @ solid.axes,
        )
        for solid in body.solids
    )
    return dataclasses.replace(body, solids=solids, keypoints_K3=body.keypoints_K3 @ rotation.T + shift)


def _framed(scene: Scene, rng: np.random.Generator) -> Scene:
    """Return the scene with a frame round everybody, now and then a little too tight."""
    extents = np.array([scene.extent(i) for i in range(len(scene.bodies))])
    low, high = extents[:, :2].min(0), extents[:, 2:].max(0)
    aspects = (2 / 3, 0.75, 0.8, 1.0) if len(scene.bodies) == 1 else (0.8, 1.0, 1.25, 4 / 3)
    aspect = aspects[rng.integers(len(aspects))]
    width, height = high - low
    height = max(height, width / aspect) / (rng.uniform(0.72, 0.96) if rng.random() < 0.92 else rng.uniform(1, 1.1))
    size = np.array([height * aspect, height])
    slack = size - (high - low)
    first = low - slack * (0.5 + rng.uniform(-0.4, 0.4, 2))
    x1, y1 = (float(v) for v in first)
    return dataclasses.replace(scene, frame=(x1, y1, x1 + float(size[0]), y1 + float(size[1])))


def whole_view(scene: Scene, size_hw: tuple[int, int]) -> View:
    """Return the view of the frame in so many pixels, stretched if its aspect is another."""
    x1, y1, x2, y2 = scene.frame
    step_xy = ((x2 - x1) / size_hw[1], (y2 - y1) / size_hw[0])
    return View(first_xy=(x1 + step_xy[0] / 2, y1 + step_xy[1] / 2), step_xy=step_xy, size_hw=size_hw)


def natural_size(scene: Scene, long_side: int) -> tuple[int, int]:
    """Return height and width, in pixels of no distortion, of a picture of the frame."""
    x1, y1, x2, y2 = scene.frame
    scale = long_side / max(x2 - x1, y2 - y1)
    return max(1, round((y2 - y1) * scale)), max(1, round((x2 - x1) * scale))
