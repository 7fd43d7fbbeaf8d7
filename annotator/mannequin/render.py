"""A scene and a view to a picture and everything that is true of it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from annotator.mannequin.background import background, hide
from annotator.mannequin.body import Solid
from annotator.mannequin.looks import pattern_mask
from annotator.mannequin.scene import Scene, View
from annotator.mannequin.shapes import BOUNDS_MARGIN, NOTHING

_HIDDEN, _SEEN = 1, 2  # COCO's visibility flags; 0 is outside the picture
_TO_LABEL = np.array([1, -1, -1], np.float32)  # the camera's axes to those of tasks/normal.py
_HIDING = 0.12  # of pictures have something before the mannequins


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture and its truth.

    pixels_YXC    uint8 RGB
    parts_YX      uint8, ids of the 28 classes, 0 where nobody is
    person_YX     int16, whose pixel it is, -1 nobody's
    depth_YX      float32 metres along the camera's axis, 0 where nobody is
    normals_YXC   float32 unit vectors, X right, Y up, Z towards the camera, as labels have them; 0 where nobody is
    keypoints_NK3 float32 x, y in pixels, (0, 0) the centre of the first, and COCO's visibility: 2 seen, 1 hidden,
                  0 outside the picture
    boxes_N4      float32 x1, y1, x2, y2 round each person's pixels, from the picture's corner; all 0 if none is seen
    """

    pixels_YXC: np.ndarray
    parts_YX: np.ndarray
    person_YX: np.ndarray
    depth_YX: np.ndarray
    normals_YXC: np.ndarray
    keypoints_NK3: np.ndarray
    boxes_N4: np.ndarray


@dataclass(frozen=True, slots=True)
class _Hits:
    """What the ray of each pixel meets first: the solid's number (-1 none), its person, depth; float32 maps."""

    solid_YX: np.ndarray
    depth_YX: np.ndarray


def render(scene: Scene, view: View, rng: np.random.Generator) -> Picture:
    """Return the picture; `rng` decides on background, what hides whom, and the camera's faults."""
    solids = [solid for body in scene.bodies for solid in body.solids]
    owners = np.concatenate([np.full(len(body.solids), i) for i, body in enumerate(scene.bodies)])
    hits = _trace(solids, view)
    horizon = view.to_pixels(np.array([[0, scene.horizon]]))[0, 1]
    shadows = [view.to_pixels(outline) for outline in scene.shadows]
    canvas_YXC = background(rng, view.size_hw, horizon, shadows)
    normals_YXC = _paint(canvas_YXC, hits, solids, view, scene.light, rng)
    seen_YX = hits.solid_YX >= 0
    _soften(canvas_YXC, hits.solid_YX)
    if rng.random() < _HIDING:
        seen_YX &= ~hide(rng, canvas_YXC)
    person_YX = np.where(seen_YX, owners[hits.solid_YX], -1).astype(np.int16)
    parts = np.array([solid.part for solid in solids], np.uint8)
    return Picture(
        pixels_YXC=_photograph(canvas_YXC, rng),
        parts_YX=np.where(seen_YX, parts[hits.solid_YX], 0).astype(np.uint8),
        person_YX=person_YX,
        depth_YX=np.where(seen_YX, hits.depth_YX, 0).astype(np.float32),
        normals_YXC=np.where(seen_YX[..., None], normals_YXC * _TO_LABEL, 0).astype(np.float32),
        keypoints_NK3=_keypoints(scene, view, person_YX, hits.depth_YX),
        boxes_N4=np.array([_box(person_YX == i) for i in range(len(scene.bodies))], np.float32),
    )


def _trace(solids: list[Solid], view: View) -> _Hits:
    x_X, y_Y = view.rays()
    depth_YX = np.full(view.size_hw, NOTHING)
    solid_YX = np.full(view.size_hw, -1, np.int16)
    for i, solid in enumerate(solids):
        low, high = solid.shape.bounds()
        margin = BOUNDS_MARGIN * (high - low)
        corners = view.to_pixels(np.array([low - margin, high + margin]))
        x1, y1 = np.clip(np.floor(corners[0]), 0, view.size_hw[::-1]).astype(int)
        x2, y2 = np.clip(np.ceil(corners[1]) + 1, 0, view.size_hw[::-1]).astype(int)
        if x1 >= x2 or y1 >= y2:
            continue
        window = (slice(y1, y2), slice(x1, x2))
        depth = solid.shape.depth(x_X[x1:x2], y_Y[y1:y2])
        nearer = depth < depth_YX[window]
        depth_YX[window] = np.where(nearer, depth, depth_YX[window])
        solid_YX[window][nearer] = i
    return _Hits(solid_YX, depth_YX)


def _paint(
    canvas_YXC: np.ndarray, hits: _Hits, solids: list[Solid], view: View, light: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw the solids in place; return their normals in the camera's frame, (Y, X, 3)."""
    x_X, y_Y = view.rays()
    normals_YXC = np.zeros((*view.size_hw, 3), np.float32)
    ambient, bright = rng.uniform(0.40, 0.65), rng.uniform(0.95, 1.1)
    half = light - np.array([0, 0, 1])
    half = half / np.linalg.norm(half)
    y_N, x_N = np.nonzero(hits.solid_YX >= 0)
    depth_N, solid_N = hits.depth_YX[y_N, x_N], hits.solid_YX[y_N, x_N]
    points_N3 = np.stack([x_X[x_N] * depth_N, y_Y[y_N] * depth_N, depth_N], 1)
    order = np.argsort(solid_N, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(solid_N[order])) + 1):
        if not len(group):
            continue
        solid, points = solids[solid_N[group[0]]], points_N3[group]
        normals = solid.shape.normals(points)
        albedo = np.tile(np.array(solid.paint.colour, np.float32), (len(group), 1))
        if solid.paint.pattern != "plain":
            local = (points - solid.origin) @ solid.axes / solid.unit
            albedo[pattern_mask(solid.paint.pattern, local)] = solid.paint.second
        diffuse = ambient + (1.1 - ambient) * (normals @ light).clip(0, 1)
        shine = solid.paint.gloss * 160 * (normals @ half).clip(0, 1) ** 24
        canvas_YXC[y_N[group], x_N[group]] = (albedo * diffuse[:, None] + shine[:, None]) * bright
        normals_YXC[y_N[group], x_N[group]] = normals
    return normals_YXC


def _soften(canvas_YXC: np.ndarray, solid_YX: np.ndarray) -> None:
    """Blur the pixels where one solid borders another, in place: a ray sees a point, a camera's pixel an area."""
    edge_YX = np.zeros(solid_YX.shape, bool)
    across, down = solid_YX[:, 1:] != solid_YX[:, :-1], solid_YX[1:] != solid_YX[:-1]
    edge_YX[:, 1:] |= across
    edge_YX[:, :-1] |= across
    edge_YX[1:] |= down
    edge_YX[:-1] |= down
    canvas_YXC[edge_YX] = cv2.GaussianBlur(canvas_YXC, (3, 3), 0.6)[edge_YX]


def _photograph(canvas_YXC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return what a camera makes of it: blur, exposure, colour cast, noise, JPEG; uint8."""
    picture = canvas_YXC
    if rng.random() < 0.25:
        picture = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.4, 0.9)))
    picture = picture * np.float32(rng.uniform(0.85, 1.12)) + rng.normal(0, 5, 3).astype(np.float32)
    picture += rng.standard_normal((*picture.shape[:2], 1), np.float32) * np.float32(rng.uniform(0, 7))
    pixels_YXC = np.rint(picture).clip(0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        quality = int(rng.integers(45, 96))
        _, code = cv2.imencode(".jpg", pixels_YXC, [cv2.IMWRITE_JPEG_QUALITY, quality])
        pixels_YXC = cv2.imdecode(code, cv2.IMREAD_COLOR)  # channels go in and out in the same order
    return np.asarray(pixels_YXC)


def _keypoints(scene: Scene, view: View, person_YX: np.ndarray, depth_YX: np.ndarray) -> np.ndarray:
    """Return everybody's keypoints; one is seen if its own body's surface is before it, and near."""
    height, width = view.size_hw
    found = []
    for person, body in enumerate(scene.bodies):
        points_K3 = body.keypoints_K3
        pixels_K2 = view.to_pixels(points_K3[:, :2] / points_K3[:, 2:])
        column_K, row_K = np.rint(pixels_K2).astype(int).T
        inside_K = (column_K >= 0) & (column_K < width) & (row_K >= 0) & (row_K < height)
        row_K, column_K = row_K.clip(0, height - 1), column_K.clip(0, width - 1)
        own_K = person_YX[row_K, column_K] == person
        near_K = depth_YX[row_K, column_K] > points_K3[:, 2] - body.depth_K
        flag_K = np.where(inside_K, np.where(own_K & near_K, _SEEN, _HIDDEN), 0)
        found.append(np.concatenate([pixels_K2, flag_K[:, None]], 1))
    return np.array(found, np.float32)


def _box(mask_YX: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask_YX.any(1)), np.flatnonzero(mask_YX.any(0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
