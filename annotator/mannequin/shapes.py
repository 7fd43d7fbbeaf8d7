"""Capsules and ellipsoids, and where rays from a camera meet them.

The camera is at the origin and looks along z, x right, y down. A ray is (x, y, 1), so the distance along it is
the depth. Rays come as a grid: x_X (X,) of the columns, y_Y (Y,) of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NOTHING = np.float32(np.inf)
"""The depth where a ray meets nothing."""

BOUNDS_MARGIN = 0.25
"""What a shape may cover beyond its `bounds`, as a part of their size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ellipsoid:
    """A ball stretched along its own axes: centre (3,), axes (3, 3) as columns, radii (3,)."""

    centre: np.ndarray
    axes: np.ndarray
    radii: np.ndarray

    def moved(self, turn: np.ndarray, shift: np.ndarray) -> Ellipsoid:
        """Return it turned and then shifted."""
        return Ellipsoid(centre=turn @ self.centre + shift, axes=turn @ self.axes, radii=self.radii)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the least and greatest x, y at depth 1 that it covers, (2,) each, right to second order."""
        reach = np.sqrt(((self.axes * self.radii) ** 2).sum(1))[:2]
        return (self.centre[:2] - reach) / self.centre[2], (self.centre[:2] + reach) / self.centre[2]

    def depth(self, x_X: np.ndarray, y_Y: np.ndarray) -> np.ndarray:
        """Return the depth of its near side, float32 (Y, X), NOTHING where rays miss it."""
        # in the frame where it is the unit ball, rays are linear in x and y, so the quadratic's terms are too
        into = (self.axes / self.radii).T.astype(np.float32)
        origin = -(into @ self.centre.astype(np.float32))
        g, h = into.T @ into, into.T @ origin
        x, y = x_X[None, :], y_Y[:, None]
        a = x * (g[0, 0] * x + 2 * g[0, 1] * y + 2 * g[0, 2]) + y * (g[1, 1] * y + 2 * g[1, 2]) + g[2, 2]
        b = h[0] * x + h[1] * y + h[2]
        root = b * b - a * np.float32(origin @ origin - 1)
        return np.asarray(np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, NOTHING))

    def normals(self, points_N3: np.ndarray) -> np.ndarray:
        """Return the outward unit normals at points of the surface, (N, 3)."""
        out_N3 = ((points_N3 - self.centre) @ (self.axes / self.radii**2)) @ self.axes.T
        return _unit(out_N3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Capsule:
    """All balls whose centre runs from start to end (3,), while the radius goes from `radius` to `end_radius`."""

    start: np.ndarray
    end: np.ndarray
    radius: float
    end_radius: float

    def moved(self, turn: np.ndarray, shift: np.ndarray) -> Capsule:
        """Return it turned and then shifted."""
        start, end = turn @ self.start + shift, turn @ self.end + shift
        return Capsule(start=start, end=end, radius=self.radius, end_radius=self.end_radius)

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the least and greatest x, y at depth 1 that it covers, (2,) each, right to second order."""
        ends = ((self.start, self.radius), (self.end, self.end_radius))
        return (
            np.min([(at[:2] - r) / at[2] for at, r in ends], axis=0),
            np.max([(at[:2] + r) / at[2] for at, r in ends], axis=0),
        )

    def depth(self, x_X: np.ndarray, y_Y: np.ndarray) -> np.ndarray:
        """Return the depth of its near side, float32 (Y, X), NOTHING where rays miss it."""
        x, y = x_X[None, :], y_Y[:, None]
        square = x * x + y * y + 1  # of the ray's length
        near = np.minimum(
            _ball_depth(x, y, square, self.start, self.radius), _ball_depth(x, y, square, self.end, self.end_radius)
        )
        return np.asarray(np.minimum(near, self._side(x, y, square)))

    def _side(self, x: np.ndarray, y: np.ndarray, square: np.ndarray) -> np.ndarray:
        """Return the depth of the cone between the two balls, where it is the surface."""
        start, along = self.start.astype(np.float32), (self.end - self.start).astype(np.float32)
        taper = np.float32(self.radius - self.end_radius)
        length2 = along @ along
        body2 = length2 - taper * taper
        if body2 <= 0:  # one ball holds the other
            return np.full(np.broadcast_shapes(x.shape, y.shape), NOTHING)
        r = np.float32(self.radius)
        away = -(along @ start)
        ray_along = along[0] * x + along[1] * y + along[2]
        ray_start = -(start[0] * x + start[1] * y + start[2])
        a = body2 * square - ray_along * ray_along
        b = body2 * ray_start - away * ray_along + ray_along * (taper * r)
        c = body2 * (start @ start) - away * away + away * taper * r * 2 - length2 * r * r
        root = b * b - a * c
        hit = (root > 0) & (a > 1e-9)
        depth = (-b - np.sqrt(np.maximum(root, 0))) / np.where(hit, a, 1)
        place = away - taper * r + depth * ray_along
        return np.asarray(np.where(hit & (place > 0) & (place < body2), depth, NOTHING))

    def normals(self, points_N3: np.ndarray) -> np.ndarray:
        """Return the outward unit normals at points of the surface, (N, 3)."""
        along = self.end - self.start
        taper, length = self.radius - self.end_radius, np.sqrt(along @ along)
        from_start_N3 = points_N3 - self.start
        foot_N = from_start_N3 @ along / length**2
        height_N = np.linalg.norm(from_start_N3 - foot_N[:, None] * along, axis=1)
        # the ball that touches the surface here has its centre further towards the thick end
        slope = taper / np.sqrt(max(length**2 - taper**2, 1e-12))
        centre_N = np.clip(foot_N - height_N * slope / length, 0, 1)
        return _unit(from_start_N3 - centre_N[:, None] * along)


Shape = Ellipsoid | Capsule


def ball(centre: np.ndarray, radius: float) -> Ellipsoid:
    """Return a sphere."""
    return Ellipsoid(centre=centre, axes=np.eye(3), radii=np.full(3, radius))


def _ball_depth(x: np.ndarray, y: np.ndarray, square: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    at = centre.astype(np.float32)
    b = at[0] * x + at[1] * y + at[2]
    root = b * b - square * np.float32(at @ at - radius * radius)
    return np.asarray(np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / square, NOTHING))


def _unit(vectors_N3: np.ndarray) -> np.ndarray:
    unit_N3: np.ndarray = vectors_N3 / (np.linalg.norm(vectors_N3, axis=1, keepdims=True) + 1e-12)
    return unit_N3
