"""Summarise a run of queries: metrics with intervals, comparisons, latency."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from visual_search.exceptions import InvalidLabels
from visual_search.quality.evaluation import DEPTH, Outcome
from visual_search.quality.metrics import Interval, hit_rate_at_k, intervals, mrr, ndcg_at_k, recall_at_k

if TYPE_CHECKING:
    from visual_search.quality.metrics import FloatArray

KS = (1, 5, 10, 20)
TITLES = {
    **{f"hit_at_{k}": f"hit rate at {k}" for k in KS},
    **{f"recall_at_{k}": f"recall at {k}" for k in KS},
    "mrr": "MRR",
    "ndcg_at_10": "nDCG at 10",
}
HEADLINES = ("hit_at_1", "hit_at_10", "mrr")  # for tables with room for three


@dataclass(frozen=True, slots=True)
class Figures:
    """The metrics of several queries as shares from 0 to 1, or their gains in a comparison.

    queries, products: how many queries, and how many different products they look for.
    """

    queries: int
    products: int
    metrics: dict[str, Interval]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs of the same queries.

    gains: `this` minus `base`, paired. gained, lost: how many queries have a hit at 10 only in `this`, only in `base`.
    """

    this: Figures
    base: Figures
    gains: Figures
    gained: int
    lost: int


def measure(outcomes: Sequence[Outcome]) -> dict[str, FloatArray]:
    """Return the metrics of each query: (queries,) by name."""
    is_right = np.zeros((len(outcomes), DEPTH), dtype=bool)
    for row, outcome in enumerate(outcomes):
        is_right[row, np.array(outcome.places, dtype=int) - 1] = True
    wanted = [len(outcome.query.products) for outcome in outcomes]
    return {
        **{f"hit_at_{k}": hit_rate_at_k(is_right, k) for k in KS},
        **{f"recall_at_{k}": recall_at_k(is_right, wanted, k) for k in KS},
        "mrr": mrr(is_right),
        "ndcg_at_10": ndcg_at_k(is_right, wanted, 10),
    }


def figures(outcomes: Sequence[Outcome]) -> Figures:
    """Return the metrics of the queries with 95 % intervals over products."""
    return _figures(outcomes, measure(outcomes))


def compare(outcomes: Sequence[Outcome], base: Sequence[Outcome]) -> Comparison:
    """Return the gains over another run, on the queries that both have.

    Raises InvalidLabels if there are none.
    """
    before = {_identity(outcome): outcome for outcome in base}
    pairs = [(outcome, before[_identity(outcome)]) for outcome in outcomes if _identity(outcome) in before]
    if not pairs:
        raise InvalidLabels("The two runs have no query in common. Compare runs of the same file of queries.")
    new_outcomes, old_outcomes = [this for this, _ in pairs], [that for _, that in pairs]
    new, old = measure(new_outcomes), measure(old_outcomes)
    gains = _figures(new_outcomes, {name: new[name] - old[name] for name in new})
    difference = new["hit_at_10"] - old["hit_at_10"]
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    return Comparison(figures(new_outcomes), figures(old_outcomes), gains, gained, lost)


def by_kind(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Return the queries by kind: scores and figures of photos, texts and photos with texts can't be compared."""
    return _grouped(outcomes, lambda outcome: outcome.query.kind)


def by_group(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Return the queries of each group, the largest first."""
    return _grouped([outcome for outcome in outcomes if outcome.group], lambda outcome: outcome.group)


def latency(outcomes: Sequence[Outcome]) -> dict[str, tuple[float, float]]:
    """Return the median and 95th percentile in ms of each stage and of their sum, without cached queries."""
    encoded = [outcome.timings_ms for outcome in outcomes if not outcome.is_cached]
    if not encoded:
        return {}
    stages = dict.fromkeys(stage for timings in encoded for stage in timings)
    columns = {stage: [timings.get(stage, 0.0) for timings in encoded] for stage in stages}
    columns["all"] = [sum(timings.values()) for timings in encoded]
    return {
        stage: (float(np.median(values)), float(np.percentile(values, 95)))
        for stage, values in columns.items()
        if any(value >= 0.05 for value in values)
    }


def _identity(outcome: Outcome) -> Hashable:
    return outcome.query.kind, outcome.query.name


def _figures(outcomes: Sequence[Outcome], values: dict[str, FloatArray]) -> Figures:
    # A query with several right products belongs to the cluster of the first: clusters must not overlap.
    clusters = [outcome.query.products[0] for outcome in outcomes]
    metrics = intervals(np.stack(list(values.values()), axis=1), clusters)
    return Figures(len(outcomes), len(set(clusters)), dict(zip(values, metrics, strict=True)))


def _grouped(outcomes: Sequence[Outcome], key: Callable[[Outcome], str]) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome), []).append(outcome)
    return dict(sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])))
