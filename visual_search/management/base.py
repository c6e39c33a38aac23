"""Base classes of the commands: errors end with a sentence, not with a traceback."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError, ProgrammingError, connections

from visual_search.catalog import get_catalog
from visual_search.exceptions import VisualSearchError
from visual_search.models import IndexMark
from visual_search.quality.labelled import LabelledQueries, evenly_sampled, read_labelled


class IndexCommand(BaseCommand):
    """A command that shows the package's errors as a CommandError."""

    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            return super().execute(*args, **options)
        except VisualSearchError as error:
            raise CommandError(str(error)) from error
        except (OperationalError, ProgrammingError) as error:
            if not _has_tables():
                raise CommandError("The index has no tables yet. Run `manage.py migrate`.") from error
            raise


class LabelledCommand(IndexCommand):
    """A command that reads a file of labelled queries."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "labels",
            metavar="PHOTOS.csv",
            type=Path,
            help="A CSV file with the columns photo,product_id or text,product_id.",
        )
        parser.add_argument("--split", help="Use only rows with this value in the column `split`.")
        parser.add_argument("--limit", type=int, metavar="N", help="Use only N queries, spread evenly over the file.")
        parser.add_argument(
            "--index-version", type=int, metavar="N", help="The index version; by default the active one."
        )

    def read_labels(self, options: dict[str, Any]) -> LabelledQueries:
        """Return the queries that the options select, and the rows that can't be used. Raises InvalidLabels."""
        labelled = read_labelled(options["labels"], split=options["split"])
        return LabelledQueries(evenly_sampled(labelled.queries, options["limit"]), labelled.problems)


def _has_tables() -> bool:
    try:
        return IndexMark._meta.db_table in connections[get_catalog().database].introspection.table_names()
    except (OperationalError, ProgrammingError):
        return True  # the database does not answer: its own error is clearer
