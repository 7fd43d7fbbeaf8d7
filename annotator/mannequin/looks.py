"""What a mannequin wears: colours, patterns, lengths of sleeves and legs, hair."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Literal

import numpy as np

Pattern = Literal["plain", "stripes", "checks", "dots", "front", "emblem", "face"]

_SKIN = ((224, 172, 138), (240, 200, 172), (198, 140, 104), (160, 106, 74), (118, 76, 52), (92, 60, 44))
_HAIR = ((30, 24, 22), (62, 42, 30), (112, 74, 42), (196, 158, 92), (150, 60, 30), (140, 136, 134))
_SKIN_HUES = (0.0, 0.115)  # clothes keep away from these, or nobody could tell a sleeve from an arm


@dataclass(frozen=True, kw_only=True, slots=True)
class Paint:
    """Colour of a surface, RGB 0 to 255, and a pattern of a second one in the solid's own frame."""

    colour: tuple[float, float, float]
    pattern: Pattern = "plain"
    second: tuple[float, float, float] = (0, 0, 0)
    gloss: float = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One mannequin's outfit.

    joints        of the visible ball joints, (left, right): reds on its left, blues on its right
    sleeve, leg   part of the arm, of the leg, that clothes cover; 0.5 is to the elbow, to the knee
    """

    skin: Paint
    face: Paint
    eye: Paint
    hair: Paint
    shirt: Paint
    sleeves: Paint
    trousers: Paint
    shoes: Paint
    joints: tuple[Paint, Paint]
    sleeve: float
    leg: float
    hair_style: Literal["short", "long", "bun", "flat"]


def sample_look(rng: np.random.Generator) -> Look:
    """Return an outfit."""
    skin = _near(rng, _SKIN[rng.integers(len(_SKIN))], 8)
    shirt, second = _cloth(rng), _cloth(rng)
    pattern = rng.choice(np.array(["plain", "stripes", "checks", "dots", "front", "emblem"]))
    trousers = Paint(colour=_cloth(rng))
    lips = (min(255.0, skin[0] * 0.95), skin[1] * 0.45, skin[2] * 0.5)
    return Look(
        skin=Paint(colour=skin),
        face=Paint(colour=skin, pattern="face", second=lips),
        eye=Paint(colour=(28, 26, 34), gloss=0.8),
        hair=Paint(colour=_near(rng, _HAIR[rng.integers(len(_HAIR))], 8), gloss=0.3),
        shirt=Paint(colour=shirt, pattern=str(pattern), second=second),  # type: ignore[arg-type]  # one of the above
        sleeves=Paint(colour=shirt if rng.random() < 0.8 else second),
        trousers=trousers,
        shoes=Paint(colour=_cloth(rng), gloss=0.5),
        joints=(Paint(colour=_hue(rng, 0.985, 0.02), gloss=0.6), Paint(colour=_hue(rng, 0.60, 0.03), gloss=0.6)),
        sleeve=float(rng.uniform(0.18, 0.30) if rng.random() < 0.8 else 0.97),
        leg=float(rng.uniform(0.20, 0.32) if rng.random() < 0.75 else 0.96),
        hair_style=("short", "long", "bun", "flat")[rng.integers(4)],
    )


def _near(rng: np.random.Generator, colour: tuple[int, int, int], spread: float) -> tuple[float, float, float]:
    red, green, blue = np.clip(np.array(colour) + rng.normal(0, spread) + rng.normal(0, spread / 3, 3), 0, 255)
    return float(red), float(green), float(blue)


def _cloth(rng: np.random.Generator) -> tuple[float, float, float]:
    """Return a colour that is not skin: any other hue, or white, grey, black."""
    if rng.random() < 0.25:
        grey = rng.uniform(25, 235)
        return _near(rng, (int(grey),) * 3, 2)
    hue = rng.uniform(_SKIN_HUES[1] + 0.03, 1.0 - 0.03)
    red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.35, 0.95), rng.uniform(0.3, 0.95))
    return red * 255, green * 255, blue * 255


def _hue(rng: np.random.Generator, hue: float, spread: float) -> tuple[float, float, float]:
    shade = (hue + rng.uniform(-spread, spread)) % 1
    red, green, blue = colorsys.hsv_to_rgb(shade, rng.uniform(0.8, 0.95), rng.uniform(0.7, 0.95))
    return red * 255, green * 255, blue * 255


def pattern_mask(pattern: Pattern, at_N3: np.ndarray) -> np.ndarray:
    """Return where a pattern shows its second colour, bool (N,).

    at_N3  points in the solid's own frame, x to the left, y up, z to the front; metres for clothes, and halves of
           the head's height for a face
    """
    x, y, z = at_N3.T
    if pattern == "stripes":
        return np.asarray(np.mod(y, 0.12) < 0.05)
    if pattern == "checks":
        return np.asarray((np.mod(x, 0.14) < 0.05) ^ (np.mod(y, 0.14) < 0.05))
    if pattern == "dots":
        return np.asarray(np.hypot(np.mod(x, 0.11) - 0.055, np.mod(y, 0.11) - 0.055) < 0.024)
    if pattern == "front":
        return np.asarray((np.abs(x) < 0.04) & (z > 0))
    if pattern == "emblem":
        return np.asarray((np.abs(x) < 0.09) & (np.abs(y - 0.34) < 0.07) & (z > 0))
    if pattern == "face":
        return np.asarray((np.abs(x) < 0.30) & (np.abs(y + 0.48 - 0.25 * x * x) < 0.065) & (z > 0.3))
    return np.zeros(len(at_N3), bool)
