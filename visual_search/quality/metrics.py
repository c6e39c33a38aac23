"""Ranking metrics and their confidence intervals. Each metric is computed per query; its mean is the figure.

The tests check them against trec_eval, the reference implementation.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    BoolArray = NDArray[np.bool_]
    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]

ROUNDS = 2000  # of the bootstrap: bounds vary between seeds by at most a tenth of the interval's width
LEVEL = 0.95
MIN_CLUSTERS = 5  # with fewer, bootstrap intervals are far too narrow


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the bounds of its 95 % interval; NaN where there are none, see `intervals`."""

    value: float
    low: float
    high: float


def relevance(ranked: Sequence[Sequence[str]], relevant: Sequence[Collection[str]], *, depth: int) -> BoolArray:
    """Return whether the answer at each rank is right: (queries, depth), False beyond a list's end."""
    is_right = np.zeros((len(ranked), depth), dtype=bool)
    for row, (found, wanted) in enumerate(zip(ranked, relevant, strict=True)):
        shown = found[:depth]
        is_right[row, : len(shown)] = [key in wanted for key in shown]
    return is_right


def hit_rate_at_k(is_right: BoolArray, k: int) -> FloatArray:
    """Return 1 for each query with a right answer among the first k, otherwise 0: (queries,)."""
    return is_right[:, :k].any(axis=1).astype(float)


def recall_at_k(is_right: BoolArray, wanted: ArrayLike, k: int) -> FloatArray:
    """Return the share of a query's right answers that are among the first k: (queries,).

    wanted: (queries,), how many right answers there are, found or not.
    """
    shares: FloatArray = is_right[:, :k].sum(axis=1) / np.asarray(wanted, dtype=float)
    return shares


def mrr(is_right: BoolArray) -> FloatArray:
    """Return the reciprocal rank of the first right answer, 0 where none was found: (queries,)."""
    first = is_right.argmax(axis=1)
    return np.where(is_right.any(axis=1), 1.0 / (first + 1), 0.0)


def ndcg_at_k(is_right: BoolArray, wanted: ArrayLike, k: int) -> FloatArray:
    """Return the normalized discounted cumulative gain of the first k, every right answer worth 1: (queries,).

    Source: Järvelin and Kekäläinen, ACM TOIS 20 (2002).
    """
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    best = np.cumsum(discounts)[np.minimum(np.asarray(wanted, dtype=int), k) - 1]
    shown = is_right[:, :k]
    gains: FloatArray = (shown @ discounts[: shown.shape[1]]) / best
    return gains


def intervals(values: FloatArray, clusters: Iterable[Hashable], *, seed: int = 0) -> list[Interval]:
    """Return the mean of each column with its 95 % interval: percentile bootstrap over whole clusters.

    values: (queries, columns). clusters: the cluster of each query. Queries of one product resemble each other, so the
    bootstrap draws products, each with all its queries; drawing single queries would make the interval too narrow.
    There are no bounds with fewer than MIN_CLUSTERS, nor where all clusters agree: the spread is unknown then.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13; Field and Welsh, JRSS B 69 (2007).
    """
    numbers: dict[Hashable, int] = {}
    belongs = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    means = values.mean(axis=0)
    if len(numbers) < MIN_CLUSTERS:
        return [Interval(float(mean), math.nan, math.nan) for mean in means]
    sums = np.stack([np.bincount(belongs, column) for column in values.T], axis=1)
    sizes = np.bincount(belongs)
    rng = np.random.default_rng(seed)
    drawn_means = np.empty((ROUNDS, values.shape[1]))
    for row in range(ROUNDS):
        times = np.bincount(rng.integers(len(sizes), size=len(sizes)), minlength=len(sizes))
        drawn_means[row] = times @ sums / (times @ sizes)
    tail = (1 - LEVEL) / 2 * 100
    lows, highs = np.percentile(drawn_means, [tail, 100 - tail], axis=0)
    bounds = zip(means.tolist(), lows.tolist(), highs.tolist(), strict=True)
    return [
        Interval(mean, low, high) if low < high else Interval(mean, math.nan, math.nan) for mean, low, high in bounds
    ]


def interval(values: ArrayLike, clusters: Iterable[Hashable], *, seed: int = 0) -> Interval:
    """Return the mean of (queries,) with its 95 % interval; of paired differences, the gain and its interval."""
    return intervals(np.asarray(values, dtype=float)[:, None], clusters, seed=seed)[0]
