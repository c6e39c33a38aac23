"""Choose the lowest score threshold that a given rate of false accepts allows, and measure what it hides.

A *false accept* is a query for something that the shop does not have, answered with a product all the same.
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

FOLDS = 5  # of the cross-validation: a threshold from four fifths of the products is tested on the remaining fifth
MIN_QUERIES = 20  # 5 % of fewer is less than one query
CURVE_POINTS = 101
MAX_HIDDEN_SHARE = 0.5  # of the right products found: a threshold that hides more is saved only with --force
PAGE_SIZE = 10  # a right product further down does not count as found: no threshold could keep it there
NO_SCORE = -2.0  # below every cosine: no such product was found


@dataclass(frozen=True, slots=True)
class Curve:
    """The effect of each threshold as shares; each array is (points,)."""

    thresholds: FloatArray
    kept: FloatArray
    false_accepts: FloatArray


@dataclass(frozen=True, slots=True)
class Calibration:
    """The threshold of one kind of query.

    false_accepts: queries without their product that are answered all the same. kept: queries whose right product is
    among the first ten and passes the threshold. Both are measured on products that the threshold was not chosen from.
    found: the share of queries with a right product among the first ten, without a threshold.
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
        """Whether the threshold hides more than MAX_HIDDEN_SHARE of the right products that are found."""
        return self.kept.value < (1 - MAX_HIDDEN_SHARE) * self.found.value


def calibrate(
    inside: Sequence[Outcome], outside: Sequence[Outcome] | None, *, kind: str, false_accept_rate: float
) -> Calibration:
    """Return the lowest threshold that keeps the false accepts within the given rate.

    inside: queries for products that the shop has. outside: queries for what it does not have; if None, each inside
    query counts with its own products left out. Raises InvalidLabels for too few queries.
    """
    right, own = np.array([_score_if_shown(outcome) for outcome in inside]), _product_numbers(inside)
    wrong = np.array([_or_no_score(outcome.wrong_score) for outcome in (inside if outside is None else outside)])
    for what, scores in (("for products that the shop has", right), ("for what the shop does not have", wrong)):
        if len(scores) < MIN_QUERIES:
            raise InvalidLabels(f"There are {len(scores)} {kind} queries {what}; at least {MIN_QUERIES} are needed.")
    wrong_clusters = own if outside is None else np.arange(len(wrong))
    kept, accepted = _cross_validate(right, own, wrong, wrong_clusters, false_accept_rate)
    known = [score for score in (*right, *wrong) if score > NO_SCORE]
    thresholds = np.linspace(min(known), max(known), CURVE_POINTS)
    return Calibration(
        kind=kind,
        threshold=threshold_at(wrong, false_accept_rate),
        false_accept_rate=false_accept_rate,
        false_accepts=interval(accepted, wrong_clusters.tolist()),
        kept=interval(kept, own.tolist()),
        found=interval(right > NO_SCORE, own.tolist()),
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
    """Return the lowest threshold that at most this share of `wrong` reaches.

    A score equal to the threshold passes, so the threshold lies just above the highest score that must not pass.
    """
    descending = np.sort(wrong)[::-1]
    allowed = int(false_accept_rate * len(wrong))
    if allowed >= len(wrong):
        return float(descending[-1])
    # Stores keep float32 and the database float64: the step has to be visible in both.
    return float(descending[allowed]) + 1e-5


def _cross_validate(
    right: FloatArray, own: IntArray, wrong: FloatArray, wrong_clusters: IntArray, false_accept_rate: float
) -> tuple[FloatArray, FloatArray]:
    """Return whether each right and each wrong product passes a threshold that was chosen without it.

    own, wrong_clusters: the product's number of each score, see `_product_numbers`.
    """
    right_passes, wrong_passes = np.zeros(len(right)), np.zeros(len(wrong))
    for fold in range(FOLDS):
        is_unseen = wrong_clusters % FOLDS == fold
        threshold = threshold_at(wrong if is_unseen.all() else wrong[~is_unseen], false_accept_rate)
        wrong_passes[is_unseen] = wrong[is_unseen] >= threshold
        right_passes[own % FOLDS == fold] = right[own % FOLDS == fold] >= threshold
    return right_passes, wrong_passes


def _product_numbers(outcomes: Sequence[Outcome]) -> IntArray:
    """Return, for each query, the number of the first product that it should find."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(outcome.query.products[0], len(numbers)) for outcome in outcomes])


def _score_if_shown(outcome: Outcome) -> float:
    is_shown = bool(outcome.places) and outcome.places[0] <= PAGE_SIZE
    return _or_no_score(outcome.right_score) if is_shown else NO_SCORE


def _or_no_score(score: float | None) -> float:
    return NO_SCORE if score is None else score
