"""Measure how often the search finds the right products."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from visual_search.catalog import get_catalog
from visual_search.filters import Keyword
from visual_search.management.base import LabelledCommand
from visual_search.management.progress import Progress
from visual_search.quality import runs
from visual_search.quality.evaluation import Configuration, default_group, evaluate, open_configuration
from visual_search.quality.labelled import LabelledQueries
from visual_search.quality.plots import require_matplotlib
from visual_search.quality.report import write_report
from visual_search.quality.runs import Run
from visual_search.quality.tables import table
from visual_search.vision.preparation import STRATEGIES


class Command(LabelledCommand):
    help = "Measure the search with labelled photos or texts: hit rate, recall, MRR, nDCG, latency; compare two runs."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--by", metavar="FILTER", help="Group by this keyword filter; by default the first one declared."
        )
        parser.add_argument(
            "--strategy", choices=sorted(STRATEGIES), help="How photos are prepared; by default as in the settings."
        )
        parser.add_argument(
            "--compare",
            metavar="WITH",
            help="A strategy, the number of an index version, or the JSON of an earlier run.",
        )
        parser.add_argument(
            "--json", type=Path, metavar="FILE", help="Write the figures and the outcome of every query."
        )
        parser.add_argument("--report", type=Path, metavar="FILE", help="Write an HTML report in one file.")

    def handle(self, *args: Any, **options: Any) -> None:
        group_by = _checked_filter(options["by"])
        for file in filter(None, (options["json"], options["report"])):
            _check_writable(file)
        if options["report"]:
            require_matplotlib()
        labelled = self.read_labels(options)
        compared = options["compare"]
        is_measured = compared in STRATEGIES or (compared or "").isdecimal()
        base = runs.read_run(Path(compared)) if compared and not is_measured else None
        this = open_configuration(number=options["index_version"], strategy=options["strategy"])
        run = self.measure(this, labelled, group_by, options)
        if is_measured:
            other = open_configuration(
                number=this.version.pk if compared in STRATEGIES else int(compared),
                strategy=compared if compared in STRATEGIES else this.strategy,
            )
            base = self.measure(other, labelled, group_by, options)
        for line in table(run, base):
            self.stdout.write(line)
        if options["report"]:
            write_report(options["report"], run, base)
        if options["json"]:
            options["json"].write_text(runs.as_json(run, base), encoding="utf-8")

    def measure(
        self, configuration: Configuration, labelled: LabelledQueries, group_by: str | None, options: dict[str, Any]
    ) -> Run:
        about = runs.describe(configuration, labels=options["labels"], split=options["split"], group_by=group_by)
        with Progress(len(labelled.queries), "Searching", unit="query") as bar:
            outcomes, problems = evaluate(labelled, configuration, group_by=group_by, progress=bar.advance)
        return Run(about, outcomes, [*labelled.problems, *problems])


def _checked_filter(name: str | None) -> str | None:
    if name is None:
        return default_group()
    declared = [filter_name for filter_name, field in get_catalog().filters.items() if isinstance(field, Keyword)]
    if name not in declared:
        known = ", ".join(declared) or "none"
        raise CommandError(f"--by {name!r} is not a keyword filter of the catalogue. Its keyword filters: {known}.")
    return name


def _check_writable(file: Path) -> None:
    """Raise CommandError if the file can't be written. Call it before the work, not after."""
    if not file.parent.is_dir() or file.is_dir():
        raise CommandError(f"{str(file)!r} can't be written. Name a file in a folder that exists.")
