"""A run of queries: made now, kept as JSON, read again to be compared with another one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from visual_search.exceptions import InvalidLabels
from visual_search.quality.evaluation import Configuration, Found, Outcome, indexed_in
from visual_search.quality.figures import Comparison, Figures, by_group, by_kind, compare, figures, latency
from visual_search.quality.labelled import LabelledQuery
from visual_search.quality.metrics import Interval

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Run:
    """Queries, what they came to, and how they were searched with. about: plain values that say so."""

    about: Mapping[str, Any]
    outcomes: Sequence[Outcome]
    problems: Sequence[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The configuration in words."""
        about = self.about
        return f"index version {about['version']} ({about['checkpoint']}), photos prepared by {about['strategy']!r}"


def describe(configuration: Configuration, *, labels: Path, split: str | None, group_by: str | None) -> dict[str, Any]:
    """Return what a run has to say about itself."""
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
        "products": indexed_in(version).count(),
        "thresholds": {"photo": version.photo_threshold, "text": version.text_threshold},
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def as_json(run: Run, base: Run | None = None) -> str:
    """Return the run as JSON: figures by kind of query and by group, and every query, so that it can be compared."""
    document = {
        "format": FORMAT,
        "about": dict(run.about),
        "figures": {kind: _of_figures(figures(some)) for kind, some in by_kind(run.outcomes).items()},
        "groups": {
            kind: {group: _of_figures(figures(few)) for group, few in by_group(some).items()}
            for kind, some in by_kind(run.outcomes).items()
        },
        "latency_ms": {
            kind: {stage: {"median": low, "p95": high} for stage, (low, high) in latency(some).items()}
            for kind, some in by_kind(run.outcomes).items()
        },
        "comparison": base and {"with": dict(base.about), "kinds": _compared(run, base)},
        "problems": list(run.problems),
        "queries": [_of_outcome(outcome) for outcome in run.outcomes],
    }
    return json.dumps(document, indent=1, ensure_ascii=False)


def read_run(path: Path) -> Run:
    """Read what `as_json` wrote. Raises InvalidLabels for anything else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"it is of format {document['format']!r}")
        outcomes = [_to_outcome(row) for row in document["queries"]]
        return Run(document["about"], outcomes, document["problems"])
    except OSError as error:
        raise InvalidLabels(f"{str(path)!r} can't be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidLabels(
            f"{str(path)!r} is not what `evaluate_search --json` of this version writes: {error}."
        ) from error


def comparisons(run: Run, base: Run) -> dict[str, Comparison]:
    """Return the comparison of each kind of query that both runs have. Raises InvalidLabels if there is none."""
    ours, theirs = by_kind(run.outcomes), by_kind(base.outcomes)
    kinds = [kind for kind in ours if kind in theirs]
    if not kinds:
        raise InvalidLabels("The two runs have no query in common. Compare runs of the same file of queries.")
    return {kind: compare(ours[kind], theirs[kind]) for kind in kinds}


def _compared(run: Run, base: Run) -> dict[str, Any]:
    return {
        kind: {"base": _of_figures(both.base), "gains": _of_figures(both.gains)}
        for kind, both in comparisons(run, base).items()
    }


def _of_figures(some: Figures) -> dict[str, Any]:
    metrics = {name: _of_interval(interval) for name, interval in some.metrics.items()}
    return {"queries": some.queries, "products": some.products, **metrics}


def _of_interval(interval: Interval) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else round(value, 5) for name, value in asdict(interval).items()}


def _of_outcome(outcome: Outcome) -> dict[str, Any]:
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


def _to_outcome(row: Mapping[str, Any]) -> Outcome:
    photo = Path(row["photo"]) if row["photo"] else None
    query = LabelledQuery(photo, row["text"], tuple(row["products"]), row["name"], made_from=row["made_from"])
    return Outcome(
        query,
        tuple(Found(*item) for item in row["found"]),
        tuple(row["places"]),
        row["right_score"],
        row["wrong_score"],
        row["group"],
        row["timings_ms"],
        row["is_cached"],
        row["fallback"],
    )
