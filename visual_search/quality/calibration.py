"""The score threshold: as low as a chosen rate of false accepts allows, and what that costs.

A *false accept* is a query for something that the shop does not have which is answered with a product all the same.
Such queries are either given (photos of what the shop does not sell), or made by leaving out each query's own right
products: the best of the others is what the same query would get if the shop did not have its product. That is strict:
the shop's other products are often of the same kind, and photos of something else score lower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from visual_search.exceptions import InvalidLabels
from visual_search.quality.evaluation import Outcome
from visual_search.quality.metrics import Interval, interval

if TYPE_CHECKING:
    from visual_search.quality.metrics import FloatArray, IntArray

FOLDS = 5  # thresholds of four fifths of the products are tried on the fifth that they have not seen
MIN_QUERIES = 20  # a rate of 5 % of fewer is not one query
CURVE_POINTS = 101
MOST_HIDDEN = 0.5  # of the right products found: a threshold that hides more is not kept unless forced
PAGE = 10  # a right product further down is not what a threshold could keep
NONE = -2.0  # below every cosine: no such product was found


@dataclass(frozen=True, slots=True)
class Curve:
    """What each threshold would do: shares, (points,) each."""

    thresholds: FloatArray
    kept: FloatArray
    false_accepts: FloatArray


@dataclass(frozen=True, slots=True)
class Calibration:
    """The threshold of one kind of query.

    false_accepts: queries without their product that are answered all the same. kept: queries whose right product is
    among the first ten and stays. Both as they came out on products that the threshold was not chosen with.
    found: the share of queries with a right product among the first ten without any threshold.
    """

    kind: str
    threshold: float
    false_accept_rate: float
    false_accepts: Interval
    kept: Interval
    found: Interval
    queries: int
    outside: int
    is_left_out: bool
    curve: Curve

    @property
    def hides_too_much(self) -> bool:
        """Whether it hides more than MOST_HIDDEN of the right products that are found: shoppers lose by it."""
        return self.kept.value < (1 - MOST_HIDDEN) * self.found.value


def calibrate(
    inside: Sequence[Outcome], outside: Sequence[Outcome] | None, *, kind: str, false_accept_rate: float
) -> Calibration:
    """Return the lowest threshold that lets through no more than the wanted rate of false accepts.

    inside: queries whose products the shop has. outside: queries for what it does not have; None leaves each inside
    query's own products out instead. Raises InvalidLabels for too few queries.
    """
    right, own = np.array([_score_if_shown(outcome) for outcome in inside]), _numbers(inside)
    wrong = np.array([_or_none(outcome.wrong_score) for outcome in (inside if outside is None else outside)])
    for what, scores in (("of products that the shop has", right), ("for what it does not have", wrong)):
        if len(scores) < MIN_QUERIES:
            raise InvalidLabels(f"There are {len(scores)} queries by {kind} {what}; at least {MIN_QUERIES} are wanted.")
    strangers = own if outside is None else np.arange(len(wrong))
    kept, accepted = _on_unseen(right, own, wrong, strangers, false_accept_rate)
    seen = [score for score in (*right, *wrong) if score > NONE]
    thresholds = np.linspace(min(seen), max(seen), CURVE_POINTS)
    return Calibration(
        kind=kind,
        threshold=threshold_at(wrong, false_accept_rate),
        false_accept_rate=false_accept_rate,
        false_accepts=interval(accepted, strangers.tolist()),
        kept=interval(kept, own.tolist()),
        found=interval(right > NONE, own.tolist()),
        queries=len(right),
        outside=len(wrong),
        is_left_out=outside is None,
        curve=Curve(
            thresholds,
            (right[:, None] >= thresholds).mean(axis=0),
            (wrong[:, None] >= thresholds).mean(axis=0),
        ),
    )


def threshold_at(wrong: FloatArray, false_accept_rate: float) -> float:
    """Return the lowest score that at most this share of `wrong` reaches.

    A score equal to the threshold passes, so it lies just above the first one that may not.
    """
    descending = np.sort(wrong)[::-1]
    allowed = int(false_accept_rate * len(wrong))
    if allowed >= len(wrong):
        return float(descending[-1])
    # Stores and database keep scores as float32 and float64: a step that both can tell.
    return float(descending[allowed]) + 1e-5


def _on_unseen(
    right: FloatArray, own: IntArray, wrong: FloatArray, strangers: IntArray, false_accept_rate: float
) -> tuple[FloatArray, FloatArray]:
    """Return whether each right product stays and each wrong one passes, by a threshold made without its product."""
    stays, passes = np.zeros(len(right)), np.zeros(len(wrong))
    for fold in range(FOLDS):
        is_new = strangers % FOLDS == fold
        threshold = threshold_at(wrong if is_new.all() else wrong[~is_new], false_accept_rate)
        passes[is_new] = wrong[is_new] >= threshold
        stays[own % FOLDS == fold] = right[own % FOLDS == fold] >= threshold
    return stays, passes


def _numbers(outcomes: Sequence[Outcome]) -> IntArray:
    """Return a number for the product that each query looks for."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(outcome.query.products[0], len(numbers)) for outcome in outcomes])


def _score_if_shown(outcome: Outcome) -> float:
    is_shown = bool(outcome.places) and outcome.places[0] <= PAGE
    return _or_none(outcome.right_score) if is_shown else NONE


def _or_none(score: float | None) -> float:
    return NONE if score is None else score
