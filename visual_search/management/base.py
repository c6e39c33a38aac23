"""What the commands share: errors that end in a sentence, not in a traceback."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError, ProgrammingError, connections

from visual_search.catalog import get_catalog
from visual_search.exceptions import VisualSearchError
from visual_search.models import IndexMark


class IndexCommand(BaseCommand):
    """A command whose errors are for people."""

    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            return super().execute(*args, **options)
        except VisualSearchError as error:
            raise CommandError(str(error)) from error
        except (OperationalError, ProgrammingError) as error:
            if not _has_tables():
                raise CommandError("The index has no tables yet. Run `manage.py migrate`.") from error
            raise


def _has_tables() -> bool:
    try:
        return IndexMark._meta.db_table in connections[get_catalog().database].introspection.table_names()
    except (OperationalError, ProgrammingError):
        return True  # the database itself does not answer: that error says it better
