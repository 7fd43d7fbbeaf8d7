"""The generator tells the truth: what it says of a picture is what the picture shows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotator.crop import cut, make_crop
from annotator.mannequin.body import CLASS_ID, KEYPOINTS, PARTS
from annotator.mannequin.render import Picture, render
from annotator.mannequin.samples import Sample, crop_sample, crop_view, training_rng, whole_sample
from annotator.mannequin.scene import Scene, View, natural_size, sample_scene, whole_view
from annotator.mannequin.shapes import BOUNDS_MARGIN, Capsule, Ellipsoid, Shape
from annotator.mannequin.skeleton import LIMITS, Pose, make_skeleton, sample_bones, sample_pose

SEEDS = range(6)
SIDE = 256


@functools.cache
def made(seed: int, people: int | None = None) -> tuple[Scene, View, Picture]:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, people=people)
    view = whole_view(scene, natural_size(scene, SIDE))
    return scene, view, render(scene, view, rng)


def rotation(rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(3, 3)))[0]


def shape_of(seed: int) -> Shape:
    """A shape of some size, three metres ahead."""
    rng = np.random.default_rng(seed)
    ahead = np.array([0, 0, 3.0])
    if seed % 2:
        return Ellipsoid(centre=ahead + rng.normal(0, 0.2, 3), axes=rotation(rng), radii=rng.uniform(0.1, 0.6, 3))
    start, end = ahead + rng.normal(0, 0.4, (2, 3))
    radius = rng.uniform(0.05, 0.4)
    # as limbs are: in one that tapers much more, depth has a kink over most of what is seen of it
    return Capsule(start=start, end=end, radius=radius, end_radius=radius * rng.uniform(0.75, 1.33))


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_normals_of_a_shape_are_those_of_its_depth(seed: int) -> None:
    """The cross product of two steps along the surface that the depth describes."""
    shape = shape_of(seed)
    view = View(first_xy=(-0.5, -0.5), step_xy=(0.005, 0.005), size_hw=(201, 201))
    x_X, y_Y = view.rays()
    depth_YX = shape.depth(x_X, y_Y).astype(np.float64)
    hit_YX = np.isfinite(depth_YX)
    inner_YX = cv2.erode(hit_YX.astype(np.uint8), np.ones((5, 5), np.uint8), borderValue=0) > 0
    if inner_YX.sum() < 50:
        return
    safe_YX = np.where(hit_YX, depth_YX, 0)
    points_YX3 = np.stack([x_X[None] * safe_YX, y_Y[:, None] * safe_YX, safe_YX], 2)
    across, down = np.gradient(points_YX3, axis=1), np.gradient(points_YX3, axis=0)
    expected = np.cross(down, across)[inner_YX]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = shape.normals(points_YX3[inner_YX])
    assert np.allclose(np.linalg.norm(found, axis=1), 1)
    agreement = (found * expected).sum(1)
    assert np.median(agreement) > 0.999 and (agreement > 0.9).mean() > 0.9  # at seams of ball and cone depth has a kink


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_bounds_hold_what_a_shape_covers(seed: int) -> None:
    shape = shape_of(seed)
    view = View(first_xy=(-0.6, -0.6), step_xy=(0.006, 0.006), size_hw=(201, 201))
    x_X, y_Y = view.rays()
    rows, columns = np.nonzero(np.isfinite(shape.depth(x_X, y_Y)))
    if not len(rows):
        return
    low, high = shape.bounds()
    margin = BOUNDS_MARGIN * (high - low) + 0.006
    assert x_X[columns.min()] >= low[0] - margin[0] and x_X[columns.max()] <= high[0] + margin[0]
    assert y_Y[rows.min()] >= low[1] - margin[1] and y_Y[rows.max()] <= high[1] + margin[1]


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_poses_stay_within_the_joints_limits(seed: int) -> None:
    pose = sample_pose(np.random.default_rng(seed))
    for angle in dataclasses.fields(Pose):
        least, most = LIMITS[angle.name][2:]
        values = getattr(pose, angle.name)
        assert all(least <= v <= most for v in (values if isinstance(values, tuple) else (values,)))


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_bones_keep_their_length_and_nobody_stands_under_the_ground(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bones = sample_bones(rng)
    joints = make_skeleton(bones, sample_pose(rng)).joints
    for side in ("left", "right"):
        for start, end, length in (
            ("shoulder", "elbow", bones.upper_arm),
            ("elbow", "wrist", bones.lower_arm),
            ("hip", "knee", bones.thigh),
            ("knee", "ankle", bones.shin),
        ):
            assert np.linalg.norm(joints[f"{side}_{start}"] - joints[f"{side}_{end}"]) == pytest.approx(length)
    assert min(joint[1] for joint in joints.values()) > 0


def test_one_seed_is_one_picture() -> None:
    one, again, other = (render_again(seed) for seed in (3, 3, 4))
    for name in (f.name for f in dataclasses.fields(Picture)):
        assert np.array_equal(getattr(one, name), getattr(again, name))
    assert one.pixels_YXC.shape != other.pixels_YXC.shape or (one.pixels_YXC != other.pixels_YXC).any()


def render_again(seed: int) -> Picture:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng)
    return render(scene, whole_view(scene, natural_size(scene, 96)), rng)


@pytest.mark.parametrize("seed", SEEDS)
def test_all_maps_cover_the_same_pixels(seed: int) -> None:
    picture = made(seed)[2]
    people_YX = picture.person_YX >= 0
    assert people_YX.any()
    assert np.array_equal(picture.parts_YX > 0, people_YX)
    assert np.array_equal(picture.depth_YX > 0, people_YX)
    assert np.array_equal(picture.normals_YXC.any(2), people_YX)
    assert set(np.unique(picture.parts_YX)) <= {0, *PARTS}


@pytest.mark.parametrize("seed", SEEDS)
def test_normals_are_unit_vectors_and_face_the_camera(seed: int) -> None:
    """X right, Y up, Z towards the camera: against the ray, which goes right, down and away."""
    _, view, picture = made(seed)
    people_YX = picture.person_YX >= 0
    assert np.allclose(np.linalg.norm(picture.normals_YXC[people_YX], axis=1), 1, atol=1e-5)
    x_X, y_Y = view.rays()
    ray_YX3 = np.stack(np.broadcast_arrays(x_X[None], -y_Y[:, None], np.float32(-1)), 2)
    assert ((picture.normals_YXC * ray_YX3).sum(2)[people_YX] < 1e-3).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_normals_agree_with_the_slope_of_the_depth(seed: int) -> None:
    """Where depth grows to the right the surface looks right, where it grows downwards the surface looks down."""
    picture = made(seed)[2]
    whole_YX = cv2.erode((picture.person_YX >= 0).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    down_YX, right_YX = np.gradient(picture.depth_YX)
    smooth_YX = whole_YX & (np.abs(right_YX) < 0.02) & (np.abs(down_YX) < 0.02)  # not from one limb to another
    x_YX, y_YX = picture.normals_YXC[..., 0], picture.normals_YXC[..., 1]
    assert np.corrcoef(right_YX[smooth_YX], x_YX[smooth_YX])[0, 1] > 0.6
    assert np.corrcoef(down_YX[smooth_YX], y_YX[smooth_YX])[0, 1] < -0.6


@pytest.mark.parametrize("seed", SEEDS)
def test_boxes_are_tight(seed: int) -> None:
    picture = made(seed)[2]
    for person, (x1, y1, x2, y2) in enumerate(picture.boxes_N4.astype(int)):
        mask_YX = picture.person_YX == person
        inside_YX = mask_YX[y1:y2, x1:x2]
        assert inside_YX.sum() == mask_YX.sum() > 0
        assert inside_YX[0].any() and inside_YX[-1].any() and inside_YX[:, 0].any() and inside_YX[:, -1].any()


@pytest.mark.parametrize("seed", SEEDS)
def test_keypoints_that_are_seen_lie_on_their_person(seed: int) -> None:
    picture = made(seed)[2]
    height, width = picture.parts_YX.shape
    for person, points_K3 in enumerate(picture.keypoints_NK3):
        for x, y, flag in points_K3:
            inside = -0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5
            assert inside or flag == 0
            if flag == 2:
                assert picture.person_YX[round(float(y)), round(float(x))] == person


def test_keypoints_lie_on_the_parts_they_belong_to() -> None:
    """Counted over many mannequins: a wrist is seen on the lower arm of its own side or on the hand before it."""
    belongs = {
        "wrist": ("Lower_Arm", "Hand"),
        "ankle": ("Lower_Leg", "Shoe", "Lower_Clothing"),
        "knee": ("Upper_Leg", "Lower_Leg", "Lower_Clothing"),
        "nose": ("Face_Neck",),
    }
    right = total = 0
    for seed in range(20):
        picture = made(seed, 1)[2]
        for name, (x, y, flag) in zip(KEYPOINTS, picture.keypoints_NK3[0], strict=True):
            side, _, joint = name.rpartition("_")
            if flag == 2 and joint in belongs:
                names = {f"{side.title()}_{part}" if side else part for part in belongs[joint]} | set(belongs[joint])
                found = picture.parts_YX[round(float(y)), round(float(x))]
                right += found in {CLASS_ID[name] for name in names if name in CLASS_ID}
                total += 1
    assert total > 60
    assert right > 0.85 * total


def test_left_is_on_the_pictures_right_of_who_faces_it() -> None:
    """Yaw stays within 75 degrees, so a mannequin's left shoulder is never far to the left of its right one."""
    shoulders = [KEYPOINTS.index(f"{side}_shoulder") for side in ("left", "right")]
    offsets = []
    for seed in range(20):
        points_K3 = made(seed, 1)[2].keypoints_NK3[0]
        offsets.append(points_K3[shoulders[0], 0] - points_K3[shoulders[1], 0])
    assert np.mean(np.array(offsets) > 0) > 0.9


def test_of_two_mannequins_the_nearer_one_is_seen() -> None:
    for seed in range(4):
        scene, view, both = made(seed, 2)
        alone = [
            render(dataclasses.replace(scene, bodies=(body,)), view, np.random.default_rng(0)).depth_YX
            for body in scene.bodies
        ]
        nearest_YX = np.minimum(*(np.where(depth_YX > 0, depth_YX, np.inf) for depth_YX in alone))
        shared_YX = (both.depth_YX > 0) & np.isfinite(nearest_YX)
        assert np.allclose(both.depth_YX[shared_YX], nearest_YX[shared_YX])


def test_a_crop_is_what_the_pose_task_cuts() -> None:
    """The same person by way of the picture and annotator/crop.py, and straight from the scene."""
    rng = np.random.default_rng(11)
    scene = sample_scene(rng, people=1)
    size_hw = natural_size(scene, 512)
    view = whole_view(scene, size_hw)
    picture = render(scene, view, np.random.default_rng(5))
    box_4 = scene.extent(0)
    pixels_4 = view.to_pixels(box_4.reshape(2, 2)).ravel()
    people_YXC = np.repeat((picture.parts_YX > 0)[..., None] * np.uint8(255), 3, axis=2)
    by_way = cut(people_YXC, make_crop(pixels_4, (192, 144)), size_hw)
    straight = render(scene, crop_view(box_4, (192, 144)), np.random.default_rng(6))
    x_W, y_H = crop_view(box_4, (192, 144)).rays()
    x1, y1, x2, y2 = scene.frame
    inside = ((y_H > y1) & (y_H < y2))[:, None] & ((x_W > x1) & (x_W < x2))
    differs = (by_way[..., 0] > 127) != ((straight.parts_YX > 0) & inside)
    assert differs.mean() < 0.02


@pytest.mark.parametrize("sample", [crop_sample, whole_sample])
def test_samples_have_the_networks_size_and_nobody_beside_the_frame(
    sample: Callable[[np.random.Generator, tuple[int, int]], Sample],
) -> None:
    for index in range(6):
        one = sample(training_rng(index), (64, 48))
        assert one.pixels_HWC.shape == (64, 48, 3) and one.pixels_HWC.dtype == np.uint8
        assert one.parts_HW.shape == one.depth_HW.shape == one.normals_HWC.shape[:2] == (64, 48)
        beside_HW = cv2.erode((~one.pixels_HWC.any(2)).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert not one.parts_HW[beside_HW].any()
