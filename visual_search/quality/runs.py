"""Describe a run of queries, write it as JSON, read it again, and compare two runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from visual_search.exceptions import InvalidLabels
from visual_search.quality.evaluation import Configuration, FoundProduct, Outcome, indexed_entries
from visual_search.quality.figures import Comparison, Figures, by_group, by_kind, compare, figures, latency
from visual_search.quality.labelled import LabelledQuery
from visual_search.quality.metrics import Interval

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Run:
    """The outcomes of a file's queries. about: the configuration that was measured, see `describe`."""

    about: Mapping[str, Any]
    outcomes: Sequence[Outcome]
    problems: Sequence[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """A one-line description of the configuration."""
        about = self.about
        return f"index version {about['version']} ({about['checkpoint']}), photos prepared by {about['strategy']!r}"


def describe(configuration: Configuration, *, labels: Path, split: str | None, group_by: str | None) -> dict[str, Any]:
    """Return the run's `about`: what was measured, with which index version and preparation, and when."""
    version = configuration.version
    return {
        "labels": str(labels),
        "split": split,
        "group_by": group_by,
        "version": version.pk,
        "checkpoint": version.checkpoint,
        "fingerprint": version.fingerprint,
        "gallery_preparation": version.preparation,
        "strategy": configuration.strategy,
        "products": indexed_entries(version).count(),
        "thresholds": {"photo": version.photo_threshold, "text": version.text_threshold},
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def as_json(run: Run, base: Run | None = None) -> str:
    """Return the run as JSON: figures by kind of query and by group, and every outcome, for later comparisons."""
    document = {
        "format": FORMAT,
        "about": dict(run.about),
        "figures": {kind: _figures_to_json(figures(outcomes)) for kind, outcomes in by_kind(run.outcomes).items()},
        "groups": {
            kind: {group: _figures_to_json(figures(members)) for group, members in by_group(outcomes).items()}
            for kind, outcomes in by_kind(run.outcomes).items()
        },
        "latency_ms": {
            kind: {stage: {"median": low, "p95": high} for stage, (low, high) in latency(outcomes).items()}
            for kind, outcomes in by_kind(run.outcomes).items()
        },
        "comparison": base and {"with": dict(base.about), "kinds": _comparison_to_json(run, base)},
        "problems": list(run.problems),
        "queries": [_outcome_to_json(outcome) for outcome in run.outcomes],
    }
    return json.dumps(document, indent=1, ensure_ascii=False)


def read_run(path: Path) -> Run:
    """Read a run that `as_json` wrote. Raises InvalidLabels for any other file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']!r}, not {FORMAT!r}")
        outcomes = [_outcome_from_json(row) for row in document["queries"]]
        return Run(document["about"], outcomes, document["problems"])
    except OSError as error:
        raise InvalidLabels(f"{str(path)!r} can't be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidLabels(
            f"{str(path)!r} was not written by `evaluate_search --json` of this version: {error}."
        ) from error


def comparisons(run: Run, base: Run) -> dict[str, Comparison]:
    """Return the comparison of each kind of query that both runs have. Raises InvalidLabels if there is none."""
    run_kinds, base_kinds = by_kind(run.outcomes), by_kind(base.outcomes)
    kinds = [kind for kind in run_kinds if kind in base_kinds]
    if not kinds:
        raise InvalidLabels("The two runs have no query in common. Compare runs of the same file of queries.")
    return {kind: compare(run_kinds[kind], base_kinds[kind]) for kind in kinds}


def _comparison_to_json(run: Run, base: Run) -> dict[str, Any]:
    return {
        kind: {"base": _figures_to_json(comparison.base), "gains": _figures_to_json(comparison.gains)}
        for kind, comparison in comparisons(run, base).items()
    }


def _figures_to_json(totals: Figures) -> dict[str, Any]:
    metrics = {name: _interval_to_json(interval) for name, interval in totals.metrics.items()}
    return {"queries": totals.queries, "products": totals.products, **metrics}


def _interval_to_json(interval: Interval) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else round(value, 5) for name, value in asdict(interval).items()}


def _outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    query = outcome.query
    return {
        "name": query.name,
        "photo": query.photo and str(query.photo),
        "text": query.text,
        "products": query.products,
        "made_from": query.made_from,
        "group": outcome.group,
        "places": outcome.places,
        "right_score": outcome.right_score,
        "wrong_score": outcome.wrong_score,
        "found": [[item.product, item.image, round(item.score, 5)] for item in outcome.found],
        "timings_ms": {stage: round(ms, 2) for stage, ms in outcome.timings_ms.items()},
        "is_cached": outcome.is_cached,
        "fallback": outcome.fallback,
    }


def _outcome_from_json(row: Mapping[str, Any]) -> Outcome:
    photo = Path(row["photo"]) if row["photo"] else None
    query = LabelledQuery(photo, row["text"], tuple(row["products"]), row["name"], made_from=row["made_from"])
    return Outcome(
        query,
        tuple(FoundProduct(*item) for item in row["found"]),
        tuple(row["places"]),
        row["right_score"],
        row["wrong_score"],
        row["group"],
        row["timings_ms"],
        row["is_cached"],
        row["fallback"],
    )
