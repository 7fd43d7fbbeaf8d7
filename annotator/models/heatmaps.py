"""Heatmaps to points, for all keypoints of a batch at once and on the device (fact sheet 4.4, roofline sheet).

The reference blurs every whole map, rescales it to its old maximum, takes the log and makes one Newton step
at the peak. The step reads 3 x 3 blurred values, that is 13 x 13 raw ones, and the rescaling is a constant
of the log, so the window gives the same point. Only where a value may meet the limits of the clip does the
constant matter: these maps, which hold next to nothing, are blurred whole.

Why the GPU blurs all maps (2026-11): picking out the few would make the host wait for the forward pass,
while blurring a person's 308 maps as two matrix products is small beside it.
"""

from __future__ import annotations

import functools

import cv2
import torch
from torch import Tensor

RADIUS = 5  # an 11 x 11 kernel (fact sheet 4.4, as all constants here)
SIGMA = 2.0  # what cv2 takes for 11 when told 0: 0.3 * ((11 - 1) / 2 - 1) + 0.8
LOW, HIGH = 1e-3, 50.0
EPS = 1.1920928955078125e-07  # of float32
_MAPS_AT_ONCE, _MAPS_AT_ONCE_CPU = 2048, 128
"""On a CPU so few that they are still in the cache when their windows are read, and that torch takes no step of
the work on windows to be worth splitting over threads: where cores are shared, waiting for each other costs most."""


def locate(maps_BKhw: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each map peaks, in map pixels (B, K, 2) x, y float64, and how high (B, K) float32.

    A peak that is not positive is a missing keypoint: NaN, score 0. The score of a map with NaN or +infinity
    is not finite; infinity near a peak makes its place NaN. A refined point may lie outside the map; where
    the map is flat, so that there is no step to make, it is the peak itself.
    """
    batch, channels, height, width = maps_BKhw.shape
    at_once = _MAPS_AT_ONCE_CPU if maps_BKhw.device.type == "cpu" else _MAPS_AT_ONCE
    found = [_locate(part.float()) for part in maps_BKhw.reshape(-1, height, width).split(at_once)]
    points_N2, scores_N = torch.cat([points for points, _ in found]), torch.cat([scores for _, scores in found])
    return points_N2.reshape(batch, channels, 2), scores_N.reshape(batch, channels)


def _locate(maps_Nhw: Tensor) -> tuple[Tensor, Tensor]:
    """Return points (N, 2) and scores (N,) of some maps."""
    top_N, y_N, x_N = _peaks(maps_Nhw)
    near_N33 = _blurred_near(maps_Nhw, y_N, x_N)
    near_N33 = near_N33 * _rescaling(maps_Nhw, top_N, near_N33)[:, None, None]
    step_N2 = _newton_step(near_N33.clamp(LOW, HIGH).log())
    points_N2 = torch.stack([x_N, y_N], 1) - step_N2
    missing_N = top_N <= 0
    return points_N2.masked_fill(missing_N[:, None], torch.nan), top_N.masked_fill(missing_N, 0)


def average_mirrored(maps_BKhw: Tensor, mirrored_BKhw: Tensor, flip_indices: tuple[int, ...]) -> Tensor:
    """Return the mean of two passes, the second of which saw the image mirrored, float32 (fact sheet 4.4)."""
    channels_K = _indices(flip_indices, mirrored_BKhw.device)
    upright_BKhw = mirrored_BKhw.index_select(1, channels_K).flip(3)
    return (maps_BKhw.float() + upright_BKhw.float()) * 0.5


def _peaks(maps_Nhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each map's maximum and its first place, row by row; a NaN counts as the maximum."""
    flat = maps_Nhw.flatten(1)
    # numpy's is several times faster than torch's on a CPU
    index = torch.from_numpy(flat.numpy().argmax(1)) if flat.device.type == "cpu" else flat.argmax(1)
    width = maps_Nhw.shape[2]
    return flat.gather(1, index[:, None])[:, 0], index // width, index % width


def _blurred_near(maps_Nhw: Tensor, y_N: Tensor, x_N: Tensor) -> Tensor:
    """Return the blurred maps at the peak and its neighbours, (N, 3, 3) float64.

    The blur sees zeros outside the map; a neighbour outside the map is the map's nearest pixel.
    """
    height, width = maps_Nhw.shape[1:]
    device = maps_Nhw.device
    reach = torch.arange(-RADIUS - 1, RADIUS + 2, device=device)
    y_NR, x_NR = y_N[:, None] + reach, x_N[:, None] + reach
    index_NRR = y_NR.clamp(0, height - 1)[:, :, None] * width + x_NR.clamp(0, width - 1)[:, None, :]
    # indexing and take start all threads for a handful of numbers, gather does not
    window_NRR = maps_Nhw.flatten(1).gather(1, index_NRR.flatten(1)).view_as(index_NRR).double()
    inside = ((y_NR >= 0) & (y_NR < height))[:, :, None] & ((x_NR >= 0) & (x_NR < width))[:, None, :]
    window_NRR = window_NRR.masked_fill(~inside, 0)
    weights = _weights(device)
    side = len(weights)
    near_N3R = torch.stack([(window_NRR[:, i : i + side] * weights[:, None]).sum(1) for i in range(3)], 1)
    near_N33 = torch.stack([(near_N3R[:, :, i : i + side] * weights).sum(2) for i in range(3)], 2)
    beside = torch.arange(-1, 2, device=device)
    row_N3 = (y_N[:, None] + beside).clamp(0, height - 1) - y_N[:, None] + 1
    column_N3 = (x_N[:, None] + beside).clamp(0, width - 1) - x_N[:, None] + 1
    near_N33 = near_N33.gather(1, row_N3[:, :, None].expand(-1, -1, 3))
    return near_N33.gather(2, column_N3[:, None, :].expand(-1, 3, -1))


def _rescaling(maps_Nhw: Tensor, top_N: Tensor, near_N33: Tensor) -> Tensor:
    """Return what takes each blurred map back to its old maximum, or 1 where that changes no point, (N,) float64.

    The blur's weights are positive and add up to 1, so the blurred maximum is at most the old one and the
    factor at least 1: a value of LOW or more stays above LOW. It takes none above the old maximum.
    """
    matters_N = (top_N > 0) & ((near_N33.amin((1, 2)) < LOW) | (top_N > HIGH))
    if maps_Nhw.device.type == "cpu":
        side = 2 * RADIUS + 1
        largest_N = top_N.double()
        for n in matters_N.nonzero()[:, 0].tolist():
            blurred = cv2.GaussianBlur(maps_Nhw[n].numpy(), (side, side), SIGMA, borderType=cv2.BORDER_CONSTANT)
            largest_N[n] = float(blurred.max())
    else:
        largest_N = _blurred_max(maps_Nhw).double()
    factor_N = top_N.double() / largest_N
    return torch.where(matters_N & factor_N.isfinite(), factor_N, 1)


def _blurred_max(maps_Nhw: Tensor) -> Tensor:
    """Return the maximum of each blurred map, (N,), as two products with banded matrices."""
    height, width = maps_Nhw.shape[1:]
    rows, columns = _band(height, maps_Nhw.device), _band(width, maps_Nhw.device)
    # in parts, as each product is as large as the maps
    return torch.cat([(rows @ part @ columns).amax((1, 2)) for part in maps_Nhw.split(256)])


def _newton_step(log_N33: Tensor) -> Tensor:
    """Return one Newton step from the middle of 3 x 3 values, (N, 2) x, y; zero where there is none to make."""
    (nw, n, _), (w, o, e), (_, s, se) = (row.unbind(1) for row in log_N33.unbind(1))
    dx, dy = (e - w) / 2, (s - n) / 2
    dxx, dyy = e - 2 * o + w + EPS, s - 2 * o + n + EPS
    dxy = (se - s - e + 2 * o - w - n + nw) / 2
    step_N2 = torch.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], 1) / (dxx * dyy - dxy * dxy)[:, None]
    return step_N2.masked_fill(log_N33.isfinite().all(2).all(1)[:, None] & ~step_N2.isfinite(), 0)


@functools.lru_cache(maxsize=16)
def _weights(device: torch.device) -> Tensor:
    """Return the blur's weights along one axis, float64."""
    distance = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    weights = (distance.square() / (-2 * SIGMA**2)).exp()
    return (weights / weights.sum()).to(device)


@functools.lru_cache(maxsize=16)
def _band(size: int, device: torch.device) -> Tensor:
    """Return the matrix (size, size), float32, that blurs an axis of so many pixels, with zeros beyond its ends."""
    distance = (torch.arange(size)[:, None] - torch.arange(size)).abs()
    weights = _weights(torch.device("cpu"))[RADIUS:]
    return (weights[distance.clamp(max=RADIUS)] * (distance <= RADIUS)).float().to(device)


@functools.lru_cache(maxsize=16)
def _indices(flip_indices: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(flip_indices, device=device)
