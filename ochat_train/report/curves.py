"""Long and noisy curves as few points: bins and moving means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_WINDOW_RATIO = 1 / 40  # of a curve's points, on each side of the one that is drawn


@dataclass(frozen=True, kw_only=True)
class Bins:
    """A long curve in few points: float64[n] each. x: where a bin starts."""

    x: np.ndarray
    low: np.ndarray
    mean: np.ndarray
    high: np.ndarray


def binned(x: np.ndarray, y: np.ndarray, *, most_points: int) -> Bins:
    """A curve as at most `most_points` bins of consecutive points; NaN in y is skipped."""
    known = ~np.isnan(y)
    x, y = x[known], y[known]
    if not len(x):
        return Bins(x=x, low=y, mean=y, high=y)
    starts = np.unique(np.linspace(0, len(x), min(most_points, len(x)), endpoint=False).astype(int))
    sizes = np.diff([*starts, len(x)])
    return Bins(
        x=x[starts],
        low=np.minimum.reduceat(y, starts),
        mean=np.add.reduceat(y, starts) / sizes,
        high=np.maximum.reduceat(y, starts),
    )


def smoothed(y: np.ndarray) -> np.ndarray:
    """The mean of each point and its neighbours, a fortieth of the curve on each side; near an end of as many as are on
    both sides, so that nothing is shifted and the ends stay. y: float64[n] without NaN; the result has its shape.
    """
    places = np.arange(len(y))
    most = int(len(y) * _WINDOW_RATIO)
    half = np.minimum(most, np.minimum(places, len(y) - 1 - places))
    sums = np.concatenate(([0.0], np.cumsum(y)))
    means: np.ndarray = (sums[places + half + 1] - sums[places - half]) / (2 * half + 1)
    return means
