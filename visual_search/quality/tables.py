"""Format figures as lines of text for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from visual_search.quality.evaluation import Outcome
from visual_search.quality.figures import (
    HEADLINES,
    TITLES,
    Comparison,
    Figures,
    by_group,
    by_kind,
    figures,
    latency,
)
from visual_search.quality.metrics import Interval
from visual_search.quality.runs import Run, comparisons

GROUPS = 20  # groups shown; the report and the JSON have all
PROBLEMS = 20


def percent(interval: Interval) -> str:
    """Format a share as `35.5 (28.1 to 42.9)`, in percent; without bounds if there are none."""
    value = f"{interval.value * 100:5.1f}"
    if math.isnan(interval.low):
        return value
    return f"{value} ({interval.low * 100:.1f} to {interval.high * 100:.1f})"


def points(interval: Interval) -> str:
    """Format a gain as `+2.3 (-0.4 to +5.1)`, in percentage points."""
    value = f"{interval.value * 100:+5.1f}"
    if math.isnan(interval.low):
        return value
    return f"{value} ({interval.low * 100:+.1f} to {interval.high * 100:+.1f})"


def shown_metrics(totals: Figures, outcomes: Sequence[Outcome]) -> list[str]:
    """Return the metrics worth showing: with one right answer per query, recall equals the hit rate."""
    has_several = any(len(outcome.query.products) > 1 for outcome in outcomes)
    return [name for name in totals.metrics if has_several or not name.startswith("recall")]


def table(run: Run, base: Run | None = None) -> Iterator[str]:
    """Yield the lines of a run, and of its gains over another run."""
    against = comparisons(run, base) if base else {}
    yield run.title
    if base:
        yield f"compared with {base.title}"
    for kind, outcomes in by_kind(run.outcomes).items():
        totals = figures(outcomes)
        yield ""
        yield f"{totals.queries} {kind} queries for {totals.products} products; percent, 95 % intervals over products"
        yield from _comparison(against[kind]) if kind in against else _metrics(totals, outcomes)
        yield from _groups(outcomes, run)
        yield from _scores(outcomes)
        yield from _latency(outcomes)
    yield from notes(run)


def notes(run: Run) -> Iterator[str]:
    """Yield the caveats about these queries, and the queries that could not be used."""
    made = [outcome.query.made_from for outcome in run.outcomes if outcome.query.made_from]
    if made:
        kinds = ", ".join(f"{made.count(kind)} from {kind}" for kind in dict.fromkeys(made))
        yield ""
        yield f"Made from the shop's own images, not photos of customers: {kinds}."
    if len({outcome.query.products[0] for outcome in run.outcomes}) == 1:
        yield ""
        yield "All queries look for one product: there is no interval, and the figures say nothing about others."
    if fallbacks := [outcome.fallback for outcome in run.outcomes if outcome.fallback]:
        reasons = ", ".join(f"{fallbacks.count(reason)} {reason}" for reason in dict.fromkeys(fallbacks))
        yield ""
        yield f"Photos used without preparation: {reasons}."
    if run.problems:
        yield ""
        yield f"{len(run.problems)} could not be used:"
        yield from (f"  {problem}" for problem in run.problems[:PROBLEMS])
        if len(run.problems) > PROBLEMS:
            yield "  …"


def _metrics(totals: Figures, outcomes: Sequence[Outcome]) -> Iterator[str]:
    for name in shown_metrics(totals, outcomes):
        yield f"  {TITLES[name]:<16} {percent(totals.metrics[name])}"


def _comparison(comparison: Comparison) -> Iterator[str]:
    yield f"  {'':<16} {'this':<24} {'compared with':<24} gain in points (paired)"
    for name, gain in comparison.gains.metrics.items():
        if name.startswith("recall"):
            continue
        this, base = percent(comparison.this.metrics[name]), percent(comparison.base.metrics[name])
        yield f"  {TITLES[name]:<16} {this:<24} {base:<24} {points(gain)}"
    alone = f"only by this {comparison.gained}, only by the other {comparison.lost}"
    yield f"  {comparison.this.queries} queries are in both runs; found among the first ten {alone}"


def _groups(outcomes: Sequence[Outcome], run: Run) -> Iterator[str]:
    groups = by_group(outcomes)
    if len(groups) < 2:
        return
    yield f"  {'by ' + str(run.about['group_by']):<24} {'queries':>8}  " + "  ".join(
        f"{TITLES[name]:<20}" for name in HEADLINES
    )
    for group, members in list(groups.items())[:GROUPS]:
        totals = figures(members)
        cells = "  ".join(f"{percent(totals.metrics[name]):<20}" for name in HEADLINES)
        yield f"  {group[:24]:<24} {totals.queries:>8} {totals.products:>9}  {cells}".rstrip()
    if len(groups) > GROUPS:
        yield f"  … and {len(groups) - GROUPS} more groups, in the report and the JSON"


def _scores(outcomes: Sequence[Outcome]) -> Iterator[str]:
    right = [outcome.right_score for outcome in outcomes if outcome.right_score is not None]
    wrong = [outcome.wrong_score for outcome in outcomes if outcome.wrong_score is not None]
    yield (
        "  scores: "
        + "; ".join(
            f"best {name} product {low:.2f} to {high:.2f}, median {middle:.2f}"
            for name, scores in (("right", right), ("wrong", wrong))
            if scores
            for low, middle, high in [np.percentile(scores, [5, 50, 95])]
        )
        + " (5th to 95th percentile)"
    )


def _latency(outcomes: Sequence[Outcome]) -> Iterator[str]:
    stages = latency(outcomes)
    if not stages:
        yield "  no latency: every embedding was cached"
        return
    stages_ms = ", ".join(f"{stage} {middle:.1f} ({high:.1f})" for stage, (middle, high) in stages.items())
    yield f"  ms a query, median (95th percentile): {stages_ms}"
