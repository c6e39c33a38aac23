"""Draw SVG plots for the reports. Text stays text and takes the page's colour, so it is readable in dark mode."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from visual_search.exceptions import ConfigurationError
from visual_search.quality.evaluation import Outcome
from visual_search.quality.figures import KS, by_group, figures
from visual_search.quality.metrics import intervals

if TYPE_CHECKING:
    from visual_search.quality.calibration import Calibration

INK = "#010203"  # a placeholder; replaced by the page's text colour
BLUE, ORANGE, GREEN = "#3b82f6", "#e07b39", "#2e9e6b"  # distinguishable on white, on black and for colour-blind readers
SIZE = (4.6, 3.1)  # inches: on a 320 px phone the text is still about 9 px high
GROUPS = 12
STYLE: Any = {  # Any: matplotlib's type lists every possible key
    "svg.fonttype": "none",
    "text.parse_math": False,  # a category may be called "$"
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def require_matplotlib() -> None:
    """Raise ConfigurationError if matplotlib is not installed. Call it before the work, not after."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            'Reports need matplotlib, which is not installed. Run `pip install "django-visual-search[quality]"`.'
        ) from error


def hit_rates(runs: Mapping[str, Sequence[Outcome]]) -> str:
    """Plot hit rate over k, with its interval, for one or two runs."""

    def draw(axes: Any) -> None:
        places = np.arange(1, max(KS) + 1)
        for (name, outcomes), colour in zip(runs.items(), (BLUE, ORANGE), strict=False):
            first = np.array([min(outcome.places, default=np.inf) for outcome in outcomes])
            rates = intervals(
                (first[:, None] <= places).astype(float), [outcome.query.products[0] for outcome in outcomes]
            )
            axes.plot(places, [100 * rate.value for rate in rates], color=colour, label=name)
            bounds = np.array([(rate.low, rate.high) for rate in rates]).T * 100
            axes.fill_between(places, *bounds, color=colour, alpha=0.2, linewidth=0)
        axes.set(xlabel="k", ylabel="hit rate at k, %", ylim=(0, 102), xticks=KS)
        axes.legend(loc="lower right")

    return _svg("Hit rate over the number of products shown, with 95 % intervals", draw)


def scores(outcomes: Sequence[Outcome], threshold: float | None) -> str:
    """Plot the distribution of the scores of the best right and of the best wrong product."""

    def draw(axes: Any) -> None:
        right = [outcome.right_score for outcome in outcomes if outcome.right_score is not None]
        wrong = [outcome.wrong_score for outcome in outcomes if outcome.wrong_score is not None]
        bins = np.histogram_bin_edges([*right, *wrong], bins=30)
        axes.hist(right, bins, color=GREEN, alpha=0.55, label="best right product")
        axes.hist(wrong, bins, color=ORANGE, alpha=0.55, label="best wrong product")
        if threshold is not None:
            axes.axvline(threshold, color=INK, linestyle="--", label=f"threshold {threshold:.3f}")
        axes.set(xlabel="score (cosine)", ylabel="queries")
        axes.margins(y=0.35)
        axes.legend(loc="upper right", fontsize=8)

    return _svg("Scores of the best right and of the best wrong product", draw)


def groups(outcomes: Sequence[Outcome], name: str) -> str:
    """Plot the hit rate at 10 of each group, the largest first; return "" if there are fewer than two."""
    kept = list(by_group(outcomes).items())[:GROUPS]
    if len(kept) < 2:
        return ""

    def draw(axes: Any) -> None:
        for place, (_, members) in enumerate(kept):
            rate = figures(members).metrics["hit_at_10"]
            axes.barh(place, rate.value * 100, color=BLUE, alpha=0.75)
            axes.plot([rate.low * 100, rate.high * 100], [place, place], color=INK, linewidth=1)
        labels = [f"{group[:18]} ({len(members)})" for group, members in kept]
        axes.set(yticks=range(len(kept)), yticklabels=labels, xlabel="hit rate at 10, %", xlim=(0, 102))
        axes.tick_params(axis="y", labelsize=8)
        axes.invert_yaxis()

    return _svg(f"Hit rate at 10 by {name}", draw, height=1.0 + 0.22 * len(kept))


def trade_off(calibration: Calibration) -> str:
    """Plot the right and wrong products that pass each threshold, and the chosen threshold."""

    def draw(axes: Any) -> None:
        curve = calibration.curve
        axes.plot(curve.thresholds, curve.kept * 100, color=GREEN, label="right products kept")
        axes.plot(curve.thresholds, curve.false_accepts * 100, color=ORANGE, label="false accepts")
        axes.axvline(calibration.threshold, color=INK, linestyle="--", label=f"threshold {calibration.threshold:.3f}")
        axes.set(xlabel="threshold (cosine)", ylabel="%", ylim=(0, 102))
        axes.legend(loc="lower left", fontsize=8)

    return _svg("What each threshold keeps and lets through", draw)


def _svg(title: str, draw: Callable[[Any], None], *, height: float = SIZE[1]) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], height), layout="constrained")
        draw(figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Title": title})
    text = file.getvalue()
    return text[text.index("<svg") :].replace("<svg ", '<svg role="img" ', 1).replace(INK, "currentColor")
