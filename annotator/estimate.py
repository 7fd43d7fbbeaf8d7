"""Estimates with 95 % intervals from few measurements: pure arithmetic, Student's t.

Values are means over rows. Seconds an image are means over stretches of at least a batch, the first left out, for it
fills the pipeline; the interval also takes in the average with that stretch, since a short probe can't tell which of
the two a run is nearer to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev

CONFIDENCE = 0.95

_STRETCHES = 16  # at most: shorter ones say more of chance than of speed
# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom; source: any table, such as NIST's, 1.3.6.7.2
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
      2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, and the ends of its 95 % interval; both None where nobody can tell, one None where it is open."""

    value: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if (self.low is not None and self.low > self.value) or (self.high is not None and self.high < self.value):
            raise ValueError(f"{self.value} does not lie between {self.low} and {self.high}")

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate of the quantity times a factor that is known and not negative."""
        return self._each(lambda x: x * factor)

    def plus(self, known: float) -> Estimate:
        """Return the estimate of the quantity and something known."""
        return self._each(lambda x: x + known)

    def _each(self, rising: Callable[[float], float]) -> Estimate:
        return Estimate(rising(self.value), *(None if x is None else rising(x) for x in (self.low, self.high)))

    def inverse(self) -> Estimate:
        """Return the estimate of one over the quantity, which is positive."""
        return Estimate(1 / self.value, *(1 / x if x else None for x in (self.high, self.low)))

    def holds(self, actual: float) -> bool | None:
        """Return whether a value lies in the interval; None if there is no interval."""
        if self.low is None and self.high is None:
            return None
        return (self.low is None or actual >= self.low) and (self.high is None or actual <= self.high)


def mean_of(values: Sequence[float]) -> Estimate:
    """Return the mean of what the values, none of them negative, were drawn from; no interval for a single one."""
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean)
    half = _t(len(values) - 1) * stdev(values) / len(values) ** 0.5
    return Estimate(mean, max(0.0, mean - half), mean + half)


def seconds_an_image(done_s: Sequence[float], batch: int) -> Estimate:
    """Return seconds an image of one worker, from when each image was done, counted from when it began.

    No interval where the images fill fewer than three stretches.
    """
    done_s = sorted(done_s)
    with_start = max(done_s[-1] / len(done_s), 1e-9)
    length = max(batch, -(-len(done_s) // _STRETCHES))
    marks = done_s[length - 1 :: length]
    if len(marks) < 3:
        return Estimate(with_start)
    found = mean_of([(end - begin) / length for begin, end in pairwise(marks)])
    assert found.low is not None and found.high is not None  # there are two or more
    value = max(found.value, 1e-9)
    return Estimate(value, min(found.low, with_start), max(found.high, with_start, value))


def _t(degrees: int) -> float:
    """Return the two-sided 95 % quantile of Student's t; beyond the table at most 0.001 too large."""
    return _T[degrees - 1] if degrees <= len(_T) else 1.96 + 2.45 / degrees
