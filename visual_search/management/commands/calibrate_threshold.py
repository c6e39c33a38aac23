"""Choose the score below which a product is not shown."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from visual_search.catalog import get_catalog
from visual_search.exceptions import BadRequest
from visual_search.management.base import LabelledCommand
from visual_search.management.progress import Progress
from visual_search.models import IndexVersion
from visual_search.quality.calibration import Calibration, calibrate
from visual_search.quality.evaluation import Configuration, Outcome, evaluate, open_configuration, run_query
from visual_search.quality.figures import by_kind
from visual_search.quality.labelled import LabelledQuery
from visual_search.quality.plots import require_matplotlib
from visual_search.quality.report import write_calibration
from visual_search.quality.tables import percent

KINDS = ("photo", "text")  # kinds of query for which an index version has a threshold
POINTS_SHOWN = 11


class Command(LabelledCommand):
    help = (
        "Choose score thresholds for photos and texts by a rate of false accepts, and save them with the index version."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--outside",
            type=Path,
            metavar="FOLDER",
            help="Photos of what the shop does not sell. By default each query's own products are left out.",
        )
        parser.add_argument("--false-accept-rate", type=float, default=0.05, metavar="SHARE", help="By default 0.05.")
        parser.add_argument("--dry-run", action="store_true", help="Show the thresholds, but do not save them.")
        parser.add_argument(
            "--force", action="store_true", help="Save even a threshold that hides most right products."
        )
        parser.add_argument("--report", type=Path, metavar="FILE", help="Write the trade-off curves to one HTML file.")

    def handle(self, *args: Any, **options: Any) -> None:
        rate = options["false_accept_rate"]
        if not 0 < rate < 1:
            raise CommandError(f"--false-accept-rate is {rate}; it must be above 0 and below 1, such as 0.05.")
        if options["report"]:
            require_matplotlib()
        labelled = self.read_labels(options)
        outside_queries = _photos_in(options["outside"]) if options["outside"] else []
        configuration = open_configuration(number=options["index_version"])
        with Progress(len(labelled.queries) + len(outside_queries), "Searching", unit="query") as bar:
            outcomes, problems = evaluate(labelled, configuration, progress=bar.advance)
            outside, outside_problems = _run_queries(outside_queries, configuration, bar)
        for problem in [*labelled.problems, *problems, *outside_problems][:20]:
            self.stderr.write(f"  {problem}")
        inside = by_kind(outcomes)
        calibrations = [
            calibrate(
                inside[kind],
                outside if kind == "photo" and outside_queries else None,
                kind=kind,
                false_accept_rate=rate,
            )
            for kind in KINDS
            if kind in inside
        ]
        if not calibrations:
            raise CommandError("All queries of the file combine a photo with a text; such queries have no threshold.")
        self.stdout.write(str(configuration))
        for calibration in calibrations:
            self.print_calibration(calibration)
        if options["report"]:
            write_calibration(options["report"], str(configuration), calibrations)
        harmful = [one.kind for one in calibrations if one.hides_too_much]
        if harmful and not (options["force"] or options["dry_run"]):
            raise CommandError(
                f"Nothing was saved: the {' and '.join(harmful)} threshold hides more than half of the right products. "
                "Allow more false accepts, fine-tune the checkpoint first, or save it with --force."
            )
        self.save(configuration.version, calibrations, is_dry_run=options["dry_run"])

    def print_calibration(self, one: Calibration) -> None:
        source = "each query's own products left out" if one.is_left_out else "photos of what the shop does not sell"
        self.stdout.write(
            f"\n{one.kind}: threshold {one.threshold:.4f} for {one.false_accept_rate:.1%} false accepts, from "
            f"{one.outside} queries ({source})"
        )
        self.stdout.write("On products that the threshold was not chosen from, in percent, 95 % intervals:")
        self.stdout.write(f"  false accepts                       {percent(one.false_accepts)}")
        self.stdout.write(f"  right product in the first ten      {percent(one.found)}")
        self.stdout.write(f"  the same, and above the threshold   {percent(one.kept)}")
        self.stdout.write("  threshold   right kept   false accepts")
        curve = one.curve
        step = (len(curve.thresholds) - 1) // (POINTS_SHOWN - 1)
        for row in range(0, len(curve.thresholds), step):
            self.stdout.write(
                f"  {curve.thresholds[row]:9.3f}   {curve.kept[row]:10.1%}   {curve.false_accepts[row]:13.1%}"
            )

    def save(self, version: IndexVersion, calibrations: list[Calibration], *, is_dry_run: bool) -> None:
        values = {f"{one.kind}_threshold": one.threshold for one in calibrations}
        thresholds = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        if is_dry_run:
            self.stdout.write(
                f"\nNothing was saved; without --dry-run index version {version.pk} would have {thresholds}."
            )
            return
        IndexVersion.objects.using(get_catalog().database).filter(pk=version.pk).update(**values)
        self.stdout.write(self.style.SUCCESS(f"\nSaved with index version {version.pk}: {thresholds}."))


def _photos_in(folder: Path) -> list[LabelledQuery]:
    if not folder.is_dir():
        raise CommandError(f"--outside {str(folder)!r} is not a folder; name a folder of photos.")
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    if not files:
        raise CommandError(f"--outside {str(folder)!r} is empty; name a folder of photos.")
    return [LabelledQuery(file, None, (), str(file.relative_to(folder))) for file in files]


def _run_queries(
    queries: list[LabelledQuery], configuration: Configuration, bar: Progress
) -> tuple[list[Outcome], list[str]]:
    outcomes, problems = [], []
    for query in queries:
        try:
            outcomes.append(run_query(query, configuration))
        except (BadRequest, OSError) as error:
            problems.append(f"{query.name}: {error}")
        bar.advance()
    return outcomes, problems
