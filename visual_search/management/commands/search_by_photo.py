"""Search by photo or text from the terminal."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from visual_search.catalog import get_catalog
from visual_search.exceptions import ConfigurationError
from visual_search.filters import Number, parameter_names, parse_filters
from visual_search.management.base import IndexCommand
from visual_search.search.photos import parse_crop, read_photo
from visual_search.search.query import SearchQuery, validate_query
from visual_search.search.results import SearchResults, search, warm_up
from visual_search.vision.images import MIN_SIDE_PX


class Command(IndexCommand):
    help = "Find products by a photo, a text or both, and print them with scores and milliseconds."

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("photo", nargs="?", metavar="PATH", help="A photo; optional with --text.")
        parser.add_argument("--text", help="A description of what to find; with a photo, of what should be different.")
        parser.add_argument(
            "--crop",
            metavar="L,T,R,B",
            default="",
            help="The part of the photo to use: left, top, right, bottom, from 0 to 1.",
        )
        parser.add_argument(
            "--like", action="append", default=[], metavar="KEY", help="A product that results should resemble."
        )
        parser.add_argument(
            "--unlike", action="append", default=[], metavar="KEY", help="A product that results should not resemble."
        )
        parser.add_argument("--photo-weight", type=float, default=1.0)
        parser.add_argument("--text-weight", type=float, default=1.0)
        parser.add_argument("--limit", type=int, default=10)
        parser.add_argument("--score-threshold", type=float)
        parser.add_argument(
            "--fallback",
            type=int,
            default=5,
            help="How many of the nearest products to show if none passes the score threshold (%(default)d).",
        )
        try:
            declared = get_catalog().filters
        except ConfigurationError:
            return  # the system checks, which run first, report the error
        for parameter in parameter_names(declared):
            is_number = isinstance(declared.get(parameter.partition("_")[2]), Number)
            many: dict[str, Any] = {} if is_number else {"action": "append"}
            with contextlib.suppress(
                argparse.ArgumentError
            ):  # a clash with a built-in option; a system check reports it
                parser.add_argument(
                    f"--{parameter.replace('_', '-')}", dest=f"filter_{parameter}", metavar="VALUE", **many
                )

    def handle(self, *args: Any, **options: Any) -> None:
        query = validate_query(self.read_query(options))
        for photo in query.photos:  # reject a bad photo before the encoder is loaded
            photo.decode(target_px=MIN_SIDE_PX)
        warm_up()
        self.print_table(search(query))

    def read_query(self, options: dict[str, Any]) -> SearchQuery:
        photos = []
        if options["photo"]:
            try:
                photos = [read_photo(Path(options["photo"]).read_bytes(), crop=parse_crop(options["crop"]))]
            except OSError as error:
                raise CommandError(f"{options['photo']} can't be read: {error.strerror}.") from error
        given = {name: value for name in parameter_names(get_catalog().filters) if (value := options[f"filter_{name}"])}
        values = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
        return SearchQuery(
            photos=photos,
            texts=[options["text"]] if options["text"] else [],
            like=options["like"],
            unlike=options["unlike"],
            photo_weight=options["photo_weight"],
            text_weight=options["text_weight"],
            filters=parse_filters(get_catalog().filters, values),
            limit=options["limit"],
            score_threshold=options["score_threshold"],
            fallback=options["fallback"],
        )

    def print_table(self, results: SearchResults) -> None:
        catalog = get_catalog()
        for photo in results.photos:
            if photo.fallback:
                self.stdout.write(f"The photo was used without preparation ({photo.fallback}).")
            elif photo.preparation != "none":
                self.stdout.write(f"The photo was prepared by {photo.preparation!r}.")
        if results.is_nothing_close:
            self.stdout.write("Nothing is close. The nearest products:")
        elif not results.hits:
            self.stdout.write("Nothing was found.")
        for place, hit in enumerate(results.hits or results.fallback, start=1):
            about = ", ".join(
                f"{name} {_short(value)}" for name, value in catalog.payload(hit.product).items() if value is not None
            )
            self.stdout.write(f"{place:>3}  {hit.score:6.3f}  {catalog.title(hit.product)[:48]:<48}  {about}")
        total = sum(results.timings_ms.values())
        stages = ", ".join(f"{stage} {ms:.1f}" for stage, ms in results.timings_ms.items() if ms >= 0.05)
        self.stdout.write(f"{total:.0f} ms ({stages})")


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2f}"
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)
