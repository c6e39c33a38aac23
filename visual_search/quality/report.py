"""Write HTML reports: one file each, with pictures and plots inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.template.loader import render_to_string
from django.utils.safestring import mark_safe

from visual_search.quality import plots
from visual_search.quality.calibration import Calibration
from visual_search.quality.evaluation import Outcome
from visual_search.quality.figures import TITLES, Comparison, by_group, by_kind, figures, latency
from visual_search.quality.runs import Run, comparisons
from visual_search.quality.sheets import examples
from visual_search.quality.tables import notes, percent, points, shown_metrics


def write_report(path: Path, run: Run, base: Run | None = None) -> None:
    """Write the report of a run, and of its gains over another run."""
    against = comparisons(run, base) if base else {}
    before = by_kind(base.outcomes) if base else {}
    kinds = [
        _kind_context(kind, outcomes, run, against.get(kind), before.get(kind, []))
        for kind, outcomes in by_kind(run.outcomes).items()
    ]
    context = {"run": run, "base": base, "kinds": kinds, "notes": [line.strip() for line in notes(run) if line]}
    path.write_text(render_to_string("visual_search/quality_report.html", context), encoding="utf-8")


def write_calibration(path: Path, title: str, calibrations: Sequence[Calibration]) -> None:
    """Write the calibration report: what each threshold keeps and lets through."""
    rows = [
        {
            "one": one,
            "false_accepts": percent(one.false_accepts),
            "found": percent(one.found),
            "kept": percent(one.kept),
            "plot": _inline(plots.trade_off(one)),
        }
        for one in calibrations
    ]
    context = {"title": title, "calibrations": rows}
    path.write_text(render_to_string("visual_search/quality_calibration.html", context), encoding="utf-8")


def _kind_context(
    kind: str, outcomes: Sequence[Outcome], run: Run, comparison: Comparison | None, base: Sequence[Outcome]
) -> dict[str, Any]:
    totals = figures(outcomes)
    misses = [outcome for outcome in outcomes if min(outcome.places, default=999) > 10]
    hits = [outcome for outcome in outcomes if outcome.places[:1] == (1,)]
    lines = {"this": outcomes} | ({"compared with": base} if base else {})
    drawn = [
        plots.hit_rates(lines),
        plots.scores(outcomes, run.about["thresholds"].get(kind)),
        plots.groups(outcomes, str(run.about["group_by"])),
    ]
    return {
        "kind": kind,
        "figures": totals,
        "rows": [_row(name, totals.metrics[name], comparison) for name in shown_metrics(totals, outcomes)],
        "both": comparison,
        "plots": [_inline(plot) for plot in drawn if plot],
        "groups": [
            (
                name,
                group.queries,
                group.products,
                percent(group.metrics["hit_at_1"]),
                percent(group.metrics["hit_at_10"]),
            )
            for name, group in ((name, figures(members)) for name, members in by_group(outcomes).items())
        ],
        "latency": latency(outcomes).items(),
        "sheets": [
            (f"Missed: not among the first ten ({len(misses)} of {len(outcomes)})", examples(misses)),
            (f"Found first ({len(hits)} of {len(outcomes)})", examples(hits)),
        ],
    }


def _row(name: str, value: Any, comparison: Comparison | None) -> tuple[str, ...]:
    if comparison is None:
        return TITLES[name], percent(value)
    parts = comparison.this.metrics[name], comparison.base.metrics[name]
    return TITLES[name], *map(percent, parts), points(comparison.gains.metrics[name])


def _inline(svg: str) -> str:
    return mark_safe(svg)  # noqa: S308  drawn by plots.py; matplotlib escapes its text
