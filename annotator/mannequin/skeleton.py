"""Joints: how long a mannequin's bones are, how far its joints turn, and where that puts them.

The body's frame is x to the mannequin's own left, y up, z where it faces; lengths are metres, angles degrees.
Nothing here knows of cameras: the mannequin stands on the ground (y = 0) round the origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

SIDES = (("left", 1.0), ("right", -1.0))
"""A side's name, and the sign of its x."""

LIMITS: Mapping[str, tuple[float, float, float, float]] = {
    # mean, spread, least, most
    "yaw": (0, 28, -75, 75),  # of the whole body; beyond that left and right can hardly be told apart
    "lean": (5, 6, -15, 20),
    "sway": (0, 4, -12, 12),
    "twist": (0, 10, -30, 30),
    "bend": (4, 10, -10, 40),
    "tilt": (0, 6, -18, 18),
    "head_turn": (0, 18, -50, 50),
    "head_nod": (4, 10, -25, 30),
    "head_tilt": (0, 7, -20, 20),
    "arm_out": (28, 26, 6, 150),
    "arm_forward": (20, 30, -35, 95),
    "arm_twist": (0, 35, -80, 80),
    "elbow": (35, 35, 0, 135),
    "hand_bend": (0, 12, -40, 40),
    "leg_forward": (8, 14, -25, 95),
    "leg_out": (7, 6, -2, 35),
    "leg_turn": (8, 8, -8, 28),
    "knee": (12, 14, 0, 130),
    "foot_bend": (5, 8, -20, 20),
}
"""Joint limits: what a healthy adult does without effort, narrowed to what a small network learns."""

_BONES: Mapping[str, float] = {
    # as fractions of the stature; adult proportions but for head, hands and feet, which are a toy's
    "thigh": 0.235,
    "shin": 0.235,
    "hip": 0.058,
    "spine": 0.275,
    "shoulder": 0.125,
    "upper_arm": 0.170,
    "lower_arm": 0.150,
    "neck": 0.050,
    "head": 0.088,
    "hand": 0.058,
    "foot": 0.105,
}
_VARIATION = 0.08


@dataclass(frozen=True, kw_only=True, slots=True)
class Bones:
    """Lengths in metres; `hip` and `shoulder` are half widths, `head` is half the head's height."""

    thigh: float
    shin: float
    hip: float
    spine: float
    shoulder: float
    upper_arm: float
    lower_arm: float
    neck: float
    head: float
    hand: float
    foot: float
    girth: float
    """Thickness of all limbs against the usual."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pose:
    """Angles in degrees, each within LIMITS; those of limbs are (left, right)."""

    yaw: float
    lean: float
    sway: float
    twist: float
    bend: float
    tilt: float
    head_turn: float
    head_nod: float
    head_tilt: float
    arm_out: tuple[float, float]
    arm_forward: tuple[float, float]
    arm_twist: tuple[float, float]
    elbow: tuple[float, float]
    hand_bend: tuple[float, float]
    leg_forward: tuple[float, float]
    leg_out: tuple[float, float]
    leg_turn: tuple[float, float]
    knee: tuple[float, float]
    foot_bend: tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Skeleton:
    """Where joints are, (3,) each, and how the parts of the body are turned, (3, 3) each, columns x, y, z.

    joints  pelvis, chest, neck, head, and of each side, as in left_knee: shoulder, elbow, wrist, hand (its far
            end), hip, knee, ankle, heel, toe
    frames  pelvis, chest, head
    """

    bones: Bones
    joints: Mapping[str, np.ndarray]
    frames: Mapping[str, np.ndarray]


def turn(axis: str, degrees: float) -> np.ndarray:
    """Return the right-handed rotation about x, y or z, (3, 3)."""
    angle = np.deg2rad(degrees)
    c, s = np.cos(angle), np.sin(angle)
    if axis == "x":
        return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    if axis == "y":
        return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def sample_bones(rng: np.random.Generator) -> Bones:
    """Return the proportions of one mannequin, 1.5 to 1.9 m tall."""
    stature = rng.uniform(1.5, 1.9)
    lengths = {name: stature * part * rng.uniform(1 - _VARIATION, 1 + _VARIATION) for name, part in _BONES.items()}
    return Bones(**lengths, girth=rng.uniform(0.95, 1.25) * stature / 1.7)


def sample_pose(rng: np.random.Generator) -> Pose:
    """Return a pose within LIMITS: standing, walking, squatting or with an arm raised."""
    angles: dict[str, float | tuple[float, float]] = {}
    for angle in fields(Pose):
        paired = angle.name.startswith(("arm", "elbow", "hand", "leg", "knee", "foot"))
        values = [_limited(angle.name, rng.normal(*LIMITS[angle.name][:2])) for _ in range(2 if paired else 1)]
        angles[angle.name] = (values[0], values[1]) if paired else values[0]
    kind = rng.random()
    if kind < 0.25:
        _walk(rng, angles)
    elif kind < 0.37:
        _squat(rng, angles)
    if rng.random() < 0.35:
        _raise_arm(rng, angles)
    return Pose(**angles)  # type: ignore[arg-type]  # the names say which are pairs


def _limited(name: str, degrees: float) -> float:
    _, _, least, most = LIMITS[name]
    return float(np.clip(degrees, least, most))


def _walk(rng: np.random.Generator, angles: dict[str, float | tuple[float, float]]) -> None:
    stride = rng.choice([-1, 1]) * rng.uniform(15, 40)
    angles["leg_forward"] = (_limited("leg_forward", stride), _limited("leg_forward", -stride))
    front, back = rng.uniform(0, 20), rng.uniform(15, 55)
    angles["knee"] = (front, back) if stride > 0 else (back, front)
    angles["arm_forward"] = (_limited("arm_forward", -stride), _limited("arm_forward", stride))


def _squat(rng: np.random.Generator, angles: dict[str, float | tuple[float, float]]) -> None:
    depth = rng.uniform(40, 90)
    legs = depth + rng.normal(0, 5, 2)
    angles["leg_forward"] = (_limited("leg_forward", legs[0]), _limited("leg_forward", legs[1]))
    knees = depth * rng.uniform(1.0, 1.3) + rng.normal(0, 5, 2)
    angles["knee"] = (_limited("knee", knees[0]), _limited("knee", knees[1]))


def _raise_arm(rng: np.random.Generator, angles: dict[str, float | tuple[float, float]]) -> None:
    arms = list(angles["arm_out"])  # type: ignore[arg-type]  # a pair
    arms[int(rng.integers(2))] = _limited("arm_out", rng.uniform(70, 150))
    angles["arm_out"] = (arms[0], arms[1])


def make_skeleton(bones: Bones, pose: Pose) -> Skeleton:
    """Return the joints of a pose; the lowest end of a bone is a sole's thickness above the ground."""
    pelvis = turn("y", pose.yaw) @ turn("x", pose.lean) @ turn("z", pose.sway)
    chest = pelvis @ turn("y", pose.twist) @ turn("x", pose.bend) @ turn("z", pose.tilt)
    head = chest @ turn("y", pose.head_turn) @ turn("x", pose.head_nod) @ turn("z", pose.head_tilt)
    joints = {"pelvis": np.zeros(3)}
    joints["chest"] = chest @ (0, bones.spine, 0)
    joints["neck"] = joints["chest"] + chest @ (0, bones.neck, 0.004)
    joints["head"] = joints["neck"] + head @ (0, 0.85 * bones.head, 0.15 * bones.head)
    for side, (name, sign) in enumerate(SIDES):
        joints |= _arm(bones, pose, side, name, sign, joints["chest"], chest)
        joints |= _leg(bones, pose, side, name, sign, pelvis)
    lowest = min(joint[1] for joint in joints.values())
    rise = np.array([0, 0.04 * bones.girth - lowest, 0])
    standing = {name: joint + rise for name, joint in joints.items()}
    return Skeleton(bones=bones, joints=standing, frames={"pelvis": pelvis, "chest": chest, "head": head})


def _arm(
    bones: Bones, pose: Pose, side: int, name: str, sign: float, at: np.ndarray, chest: np.ndarray
) -> dict[str, np.ndarray]:
    upper = chest @ turn("x", -pose.arm_forward[side]) @ turn("z", sign * pose.arm_out[side])
    upper = upper @ turn("y", sign * -pose.arm_twist[side])
    lower = upper @ turn("x", -pose.elbow[side])
    shoulder = at + chest @ (sign * bones.shoulder, -0.02, 0)
    elbow = shoulder + upper @ (0, -bones.upper_arm, 0)
    wrist = elbow + lower @ (0, -bones.lower_arm, 0)
    hand = wrist + lower @ turn("x", pose.hand_bend[side]) @ (0, -bones.hand, 0)
    return {f"{name}_shoulder": shoulder, f"{name}_elbow": elbow, f"{name}_wrist": wrist, f"{name}_hand": hand}


def _leg(bones: Bones, pose: Pose, side: int, name: str, sign: float, pelvis: np.ndarray) -> dict[str, np.ndarray]:
    upper = pelvis @ turn("y", sign * pose.leg_turn[side]) @ turn("z", sign * pose.leg_out[side])
    upper = upper @ turn("x", -pose.leg_forward[side])
    lower = upper @ turn("x", pose.knee[side])
    # the sole stays near the ground's plane, as far as the ankle goes
    foot = lower @ turn("x", np.clip(pose.leg_forward[side] - pose.knee[side] - pose.lean, -35, 20))
    foot = foot @ turn("x", pose.foot_bend[side])
    hip = pelvis @ (sign * bones.hip, -0.015, 0)
    knee = hip + upper @ (0, -bones.thigh, 0)
    ankle = knee + lower @ (0, -bones.shin, 0)
    heel = ankle + foot @ (0, -0.045, -0.02)
    toe = ankle + foot @ (0, -0.050, bones.foot)
    return {f"{name}_hip": hip, f"{name}_knee": knee, f"{name}_ankle": ankle, f"{name}_heel": heel, f"{name}_toe": toe}
