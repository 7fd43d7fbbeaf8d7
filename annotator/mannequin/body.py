"""Flesh and clothes: a skeleton and a look to painted solids, and where COCO's keypoints are on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from annotator.keypoints import keypoint_set
from annotator.mannequin.looks import Look, Paint, sample_look
from annotator.mannequin.shapes import Capsule, Ellipsoid, Shape, ball
from annotator.mannequin.skeleton import SIDES, Skeleton, make_skeleton, sample_bones, sample_pose
from annotator.tasks.seg import GOLIATH

KEYPOINTS = tuple(keypoint_set(17).names)
CLASS_ID = {name: i for i, (name, _) in enumerate(GOLIATH)}
_FACE = ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
_FACE_DEPTH, _LIMB_DEPTH = 0.05, 0.13  # metres that a keypoint may lie under the skin and still count as seen
_LIMBS = ("Upper_Arm", "Lower_Arm", "Hand", "Upper_Leg", "Lower_Leg", "Shoe")
_PART_NAMES = ["Face_Neck", "Hair", "Upper_Clothing", "Lower_Clothing"]
_PART_NAMES += [f"{side}_{limb}" for limb in _LIMBS for side in ("Left", "Right")]
PARTS = tuple(sorted(CLASS_ID[name] for name in _PART_NAMES))
"""The ids of the 28 classes that mannequins have, background not among them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Solid:
    """A painted shape of one class; `origin` (3,) and `axes` (3, 3) of its pattern are in `unit`s."""

    shape: Shape
    part: int
    paint: Paint
    origin: np.ndarray
    axes: np.ndarray
    unit: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """A mannequin: its solids, COCO's 17 keypoints (17, 3), and how thick it is round each of them, (17,) metres."""

    solids: tuple[Solid, ...]
    keypoints_K3: np.ndarray
    depth_K: np.ndarray


def sample_body(rng: np.random.Generator) -> Body:
    """Return a mannequin of random proportions, pose and look, standing at the origin."""
    return make_body(make_skeleton(sample_bones(rng), sample_pose(rng)), sample_look(rng))


def make_body(skeleton: Skeleton, look: Look) -> Body:
    """Return the mannequin in the skeleton's frame."""
    solids = [*_trunk(skeleton, look), *_head(skeleton, look)]
    for side in range(2):
        solids += [*_arm(skeleton, look, side), *_leg(skeleton, look, side)]
    points = _face_points(skeleton) | {name: skeleton.joints[name] for name in KEYPOINTS if name in skeleton.joints}
    girth = skeleton.bones.girth
    depths = [_FACE_DEPTH if name in _FACE else _LIMB_DEPTH for name in KEYPOINTS]
    return Body(
        solids=tuple(solids),
        keypoints_K3=np.array([points[name] for name in KEYPOINTS]),
        depth_K=np.array(depths) * girth,
    )


def _solid(shape: Shape, part: str, paint: Paint) -> Solid:
    return Solid(shape=shape, part=CLASS_ID[part], paint=paint, origin=np.zeros(3), axes=np.eye(3))


def _bone(start: np.ndarray, end: np.ndarray, radius: float, end_radius: float) -> Capsule:
    return Capsule(start=start, end=end, radius=radius, end_radius=end_radius)


def _trunk(skeleton: Skeleton, look: Look) -> list[Solid]:
    bones, joints, frames = skeleton.bones, skeleton.joints, skeleton.frames
    g, pelvis, chest = bones.girth, joints["pelvis"], frames["chest"]

    def lump(up: float, radii: tuple[float, float, float], part: str, paint: Paint, axes: np.ndarray) -> Solid:
        centre = pelvis + axes @ (0, up * bones.spine, 0)
        shape = Ellipsoid(centre=centre, axes=axes, radii=np.array(radii))
        return Solid(shape=shape, part=CLASS_ID[part], paint=paint, origin=pelvis, axes=axes)

    across = chest @ (0.8 * bones.shoulder, -0.02, 0)
    top = joints["chest"]
    return [
        lump(0.0, (bones.hip + 0.075 * g, 0.13, 0.11 * g), "Lower_Clothing", look.trousers, frames["pelvis"]),
        lump(0.45, (0.135 * g, 0.21, 0.105 * g), "Upper_Clothing", look.shirt, chest),
        lump(0.74, (bones.shoulder * 0.72 + 0.04 * g, 0.17, 0.115 * g), "Upper_Clothing", look.shirt, chest),
        Solid(
            shape=_bone(top + across, top - across, 0.062 * g, 0.062 * g),
            part=CLASS_ID["Upper_Clothing"],
            paint=look.shirt,
            origin=pelvis,
            axes=chest,
        ),
    ]


def _head(skeleton: Skeleton, look: Look) -> list[Solid]:
    half, axes, centre = skeleton.bones.head, skeleton.frames["head"], skeleton.joints["head"]

    def at(x: float, y: float, z: float) -> np.ndarray:
        return np.asarray(centre + axes @ (np.array([x, y, z]) * half))

    def egg(place: np.ndarray, radii: tuple[float, float, float], part: str, paint: Paint) -> Solid:
        shape = Ellipsoid(centre=place, axes=axes, radii=np.array(radii) * half)
        return Solid(shape=shape, part=CLASS_ID[part], paint=paint, origin=centre, axes=axes, unit=half)

    neck = _bone(skeleton.joints["chest"], at(0, -0.3, -0.1), 0.05 * skeleton.bones.girth, 0.048 * skeleton.bones.girth)
    solids = [
        _solid(neck, "Face_Neck", look.skin),
        egg(centre, (0.78, 1.0, 0.85), "Face_Neck", look.face),
        _solid(_bone(at(0, 0.05, 0.82), at(0, -0.16, 0.90), 0.08 * half, 0.14 * half), "Face_Neck", look.skin),
        egg(at(0, 0.30, -0.16), (0.86, 0.80, 0.86), "Hair", look.hair),
    ]
    for _, sign in SIDES:
        solids.append(_solid(ball(at(sign * 0.30, 0.14, 0.74), 0.115 * half), "Face_Neck", look.eye))
        solids.append(egg(at(sign * 0.80, -0.05, -0.02), (0.12, 0.24, 0.17), "Face_Neck", look.skin))
    if look.hair_style == "long":
        solids.append(egg(at(0, -0.25, -0.42), (0.80, 1.10, 0.55), "Hair", look.hair))
    elif look.hair_style == "bun":
        solids.append(egg(at(0, 1.05, -0.35), (0.36, 0.36, 0.36), "Hair", look.hair))
    elif look.hair_style == "short":
        solids.append(egg(at(0, 0.72, 0.18), (0.66, 0.36, 0.62), "Hair", look.hair))
    return solids


def _face_points(skeleton: Skeleton) -> dict[str, np.ndarray]:
    half, axes, centre = skeleton.bones.head, skeleton.frames["head"], skeleton.joints["head"]
    places = {"nose": (0.0, -0.14, 1.02)}
    for name, sign in SIDES:
        places[f"{name}_eye"] = (sign * 0.31, 0.14, 0.84)
        places[f"{name}_ear"] = (sign * 0.88, -0.05, -0.02)
    return {name: np.asarray(centre + axes @ (np.array(place) * half)) for name, place in places.items()}


def _arm(skeleton: Skeleton, look: Look, side: int) -> list[Solid]:
    name, joints, g = SIDES[side][0], skeleton.joints, skeleton.bones.girth
    shoulder, elbow, wrist, hand = (joints[f"{name}_{joint}"] for joint in ("shoulder", "elbow", "wrist", "hand"))
    title, marked = name.title(), look.joints[side]
    solids = [
        _solid(_bone(shoulder, elbow, 0.056 * g, 0.047 * g), f"{title}_Upper_Arm", look.skin),
        _solid(_bone(elbow, wrist, 0.047 * g, 0.037 * g), f"{title}_Lower_Arm", look.skin),
        _solid(_bone(wrist + 0.35 * (hand - wrist), hand, 0.048 * g, 0.058 * g), f"{title}_Hand", look.skin),
    ]
    solids += _sleeve((shoulder, elbow, wrist), (0.066 * g, 0.058 * g, 0.048 * g), look.sleeve, "Upper_Clothing", look)
    covered = look.sleeve > 0.5
    part = "Upper_Clothing" if covered else f"{title}_Upper_Arm"
    solids.append(_solid(ball(elbow, (0.066 if covered else 0.056) * g), part, marked))
    solids.append(_solid(ball(wrist, 0.052 * g), f"{title}_Lower_Arm", marked))
    return solids


def _leg(skeleton: Skeleton, look: Look, side: int) -> list[Solid]:
    name, joints, g = SIDES[side][0], skeleton.joints, skeleton.bones.girth
    hip, knee, ankle, heel, toe = (joints[f"{name}_{joint}"] for joint in ("hip", "knee", "ankle", "heel", "toe"))
    title, marked = name.title(), look.joints[side]
    solids = [
        _solid(_bone(hip, knee, 0.090 * g, 0.064 * g), f"{title}_Upper_Leg", look.skin),
        _solid(_bone(knee, ankle, 0.064 * g, 0.046 * g), f"{title}_Lower_Leg", look.skin),
        _solid(_bone(heel, toe, 0.052 * g, 0.050 * g), f"{title}_Shoe", look.shoes),
    ]
    solids += _sleeve((hip, knee, ankle), (0.100 * g, 0.078 * g, 0.062 * g), look.leg, "Lower_Clothing", look)
    covered = look.leg > 0.5
    part = "Lower_Clothing" if covered else f"{title}_Upper_Leg"
    solids.append(_solid(ball(knee, (0.086 if covered else 0.074) * g), part, marked))
    solids.append(_solid(ball(ankle, 0.066 * g), f"{title}_Lower_Leg", marked))
    return solids


def _sleeve(
    joints: tuple[np.ndarray, np.ndarray, np.ndarray],
    radii: tuple[float, float, float],
    length: float,
    part: str,
    look: Look,
) -> list[Solid]:
    """Return the cloth over a limb, from its first joint to `length` of the way to its third."""
    paint = look.sleeves if part == "Upper_Clothing" else look.trousers
    solids = []
    for i in range(2):
        share = min(1.0, 2 * length - i)
        if share > 0:
            end = joints[i] + share * (joints[i + 1] - joints[i])
            end_radius = radii[i] + share * (radii[i + 1] - radii[i])
            solids.append(_solid(_bone(joints[i], end, radii[i], end_radius), part, paint))
    return solids
