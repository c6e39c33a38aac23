"""Figures as lines of text, for the terminal."""

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

GROUPS = 20  # lines of groups; the report and the JSON have all
PROBLEMS = 20


def percent(interval: Interval) -> str:
    """Return a share as `35.5 (28.1 to 42.9)`, in percent; without bounds where there are none."""
    value = f"{interval.value * 100:5.1f}"
    if math.isnan(interval.low):
        return value
    return f"{value} ({interval.low * 100:.1f} to {interval.high * 100:.1f})"


def points(interval: Interval) -> str:
    """Return a gain as `+2.3 (-0.4 to +5.1)`, in percentage points."""
    value = f"{interval.value * 100:+5.1f}"
    if math.isnan(interval.low):
        return value
    return f"{value} ({interval.low * 100:+.1f} to {interval.high * 100:+.1f})"


def shown_metrics(some: Figures, outcomes: Sequence[Outcome]) -> list[str]:
    """Return the metrics that say something: with one right answer a query, recall is the hit rate."""
    has_several = any(len(outcome.query.products) > 1 for outcome in outcomes)
    return [name for name in some.metrics if has_several or not name.startswith("recall")]


def table(run: Run, base: Run | None = None) -> Iterator[str]:
    """Yield the lines of a run, and of what it gained over another one."""
    against = comparisons(run, base) if base else {}
    yield run.title
    if base:
        yield f"compared with {base.title}"
    for kind, outcomes in by_kind(run.outcomes).items():
        some = figures(outcomes)
        yield ""
        yield f"{some.queries} queries by {kind}, of {some.products} products; percent, 95 % intervals over products"
        yield from _compared(against[kind]) if kind in against else _metrics(some, outcomes)
        yield from _groups(outcomes, run)
        yield from _scores(outcomes)
        yield from _latency(outcomes)
    yield from notes(run)


def notes(run: Run) -> Iterator[str]:
    """Yield what the reader has to know of these queries."""
    made = [outcome.query.made_from for outcome in run.outcomes if outcome.query.made_from]
    if made:
        kinds = ", ".join(f"{made.count(kind)} from {kind}" for kind in dict.fromkeys(made))
        yield ""
        yield f"Made from the shop's own images, not photos of customers: {kinds}."
    if len({outcome.query.products[0] for outcome in run.outcomes}) == 1:
        yield ""
        yield "All queries look for one product: there is no interval, and the figures say nothing of others."
    if left := [outcome.fallback for outcome in run.outcomes if outcome.fallback]:
        reasons = ", ".join(f"{left.count(reason)} {reason}" for reason in dict.fromkeys(left))
        yield ""
        yield f"Photos searched with as they are: {reasons}."
    if run.problems:
        yield ""
        yield f"{len(run.problems)} could not be used:"
        yield from (f"  {problem}" for problem in run.problems[:PROBLEMS])
        if len(run.problems) > PROBLEMS:
            yield "  …"


def _metrics(some: Figures, outcomes: Sequence[Outcome]) -> Iterator[str]:
    for name in shown_metrics(some, outcomes):
        yield f"  {TITLES[name]:<16} {percent(some.metrics[name])}"


def _compared(both: Comparison) -> Iterator[str]:
    yield f"  {'':<16} {'this':<24} {'compared with':<24} gained, in points (paired)"
    for name, gain in both.gains.metrics.items():
        if name.startswith("recall"):
            continue
        this, base = percent(both.this.metrics[name]), percent(both.base.metrics[name])
        yield f"  {TITLES[name]:<16} {this:<24} {base:<24} {points(gain)}"
    alone = f"by this alone {both.gained}, by the other alone {both.lost}"
    yield f"  {both.this.queries} queries of both runs; found among the first ten {alone}"


def _groups(outcomes: Sequence[Outcome], run: Run) -> Iterator[str]:
    groups = by_group(outcomes)
    if len(groups) < 2:
        return
    yield f"  {'by ' + str(run.about['group_by']):<24} {'queries':>8}  " + "  ".join(
        f"{TITLES[name]:<20}" for name in HEADLINES
    )
    for group, few in list(groups.items())[:GROUPS]:
        some = figures(few)
        cells = "  ".join(f"{percent(some.metrics[name]):<20}" for name in HEADLINES)
        yield f"  {group[:24]:<24} {some.queries:>8} {some.products:>9}  {cells}".rstrip()
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
