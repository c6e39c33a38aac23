"""The metrics against trec_eval and scikit-learn, and the intervals against their known properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from visual_search.quality.metrics import hit_rate_at_k, interval, intervals, mrr, ndcg_at_k, recall_at_k, relevance

DEPTH = 20
KEYS = [f"p{place}" for place in range(30)]
# For each query: the products found, best first, and the right ones (some of them never found).
queries = st.lists(
    st.tuples(
        st.lists(st.sampled_from(KEYS), unique=True, max_size=DEPTH),
        st.sets(st.sampled_from(KEYS), min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=6,
)


@given(queries)
def test_metrics__are_those_of_trec_eval(queries: list[tuple[list[str], set[str]]]) -> None:
    truth = {str(row): dict.fromkeys(right, 1) for row, (_, right) in enumerate(queries)}
    runs = {
        str(row): {key: float(DEPTH - place) for place, key in enumerate(found)}
        for row, (found, _) in enumerate(queries)
    }
    measures = {"success_1,5,10,20", "recall_1,5,10,20", "recip_rank", "ndcg_cut_1,5,10,20"}
    wanted = pytrec_eval.RelevanceEvaluator(truth, measures).evaluate(runs)
    is_right = relevance([found for found, _ in queries], [right for _, right in queries], depth=DEPTH)
    counts = [len(right) for _, right in queries]
    assert mrr(is_right) == pytest.approx([wanted[str(row)]["recip_rank"] for row in range(len(queries))])
    for k in (1, 5, 10, 20):
        computed = {
            "success": hit_rate_at_k(is_right, k),
            "recall": recall_at_k(is_right, counts, k),
            "ndcg_cut": ndcg_at_k(is_right, counts, k),
        }
        for name, values in computed.items():
            assert values == pytest.approx([wanted[str(row)][f"{name}_{k}"] for row in range(len(queries))])


def test_ndcg__is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    is_right = rng.random((50, DEPTH)) < 0.2
    is_right[:, 0] |= ~is_right.any(axis=1)
    scores = np.tile(np.arange(DEPTH, 0, -1), (50, 1))
    assert ndcg_at_k(is_right, is_right.sum(axis=1), 10).mean() == pytest.approx(ndcg_score(is_right, scores, k=10))


def test_k_beyond_the_depth__is_what_was_found() -> None:
    is_right = relevance([["a", "b"]], [{"b"}], depth=2)
    assert ndcg_at_k(is_right, [1], 10) == pytest.approx([1 / math.log2(3)])
    assert hit_rate_at_k(is_right, 10) == 1


def test_interval__covers_the_truth_about_as_often_as_it_says() -> None:
    """Queries of one product are correlated: the true mean, one half, should be outside in 5 % of the cases."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        luck = rng.beta(0.5, 0.5, size=60)
        clusters = np.repeat(np.arange(60), 5)
        found = interval(rng.random(300) < luck[clusters], clusters.tolist())
        covered += found.low <= 0.5 <= found.high
    assert 180 <= covered <= 199


def test_interval_over_clusters__is_wider_than_over_single_queries() -> None:
    values = np.repeat([0.0, 1.0], 100)
    alone = interval(values, range(200))
    together = interval(values, np.repeat(np.arange(20), 10).tolist())
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_intervals__are_the_same_each_time() -> None:
    values = np.random.default_rng(2).random((40, 3))
    assert intervals(values, range(40)) == intervals(values, range(40))
    assert intervals(values, range(40))[1].low == pytest.approx(interval(values[:, 1], range(40)).low)


@pytest.mark.parametrize(
    ("values", "clusters"),
    [
        ([1.0, 0.0], ["a", "a"]),
        ([1.0, 0.0, 1.0, 0.0], list("abcd")),
        ([1.0] * 8, list("abcdefgh")),
    ],
)
def test_interval_where_nothing_can_be_told__has_no_bounds(values: list[float], clusters: list[str]) -> None:
    found = interval(values, clusters)
    assert found.value == np.mean(values)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
