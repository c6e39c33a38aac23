"""The context of the storefront's templates: the form, its filters and the results.

Every parameter of a search is in the query string of the search page, a photo as its token. So reloading, going back
and sharing work with and without JavaScript.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.http import QueryDict
from django.utils.translation import gettext, ngettext

from visual_search.catalog import get_catalog
from visual_search.filters import parameter_names
from visual_search.search.query import MAX_EXAMPLES
from visual_search.search.results import visible_products
from visual_search.storefront.addresses import address_of, page_size, replace_parameters
from visual_search.storefront.filters import ChosenFilter, FilterGroup, chosen_filters, filter_groups
from visual_search.web import messages

if TYPE_CHECKING:
    from django.http import HttpRequest

    from visual_search.catalog import CatalogImage
    from visual_search.search.results import ProductHit, SearchResults


@dataclass(slots=True)
class Storefront:
    """Everything that the widget shows. data: the known, non-empty parameters of the search.

    hits: from `hit_card`. error: {"code", "detail"}.
    """

    data: QueryDict
    groups: list[FilterGroup] = field(default_factory=list)
    chosen: list[ChosenFilter] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    hits: list[dict[str, Any]] = field(default_factory=list)
    is_nothing_close: bool = False
    was_searched: bool = False
    next: str = ""
    previous: str = ""
    error: Mapping[str, str] | None = None

    @property
    def text(self) -> str:
        return str(self.data.get("text") or self.data.get("q", ""))

    @property
    def token(self) -> str:
        return str(self.data.get("token", ""))

    @property
    def crop(self) -> str:
        return str(self.data.get("crop", ""))

    @property
    def like(self) -> list[str]:
        return self.data.getlist("like")

    @property
    def address(self) -> str:
        """The address that shows this search again."""
        return address_of(self.data)

    @property
    def address_without_filters(self) -> str:
        return address_of(self.data, **dict.fromkeys(parameter_names(get_catalog().filters)))

    @property
    def announcement(self) -> str:
        """What a screen reader announces when the results arrive."""
        if not self.hits:
            return gettext("No products found.")
        if self.is_nothing_close:
            return gettext("Nothing close was found. The nearest products are shown.")
        return ngettext("%(count)s product found.", "%(count)s products found.", len(self.hits)) % {
            "count": len(self.hits)
        }

    def show_error(self, code: str) -> None:
        """Show the sentence for an error. Keeps what was entered, except an expired photo."""
        self.error = {"code": code, "detail": messages.sentence(code)}
        if code == "photo_expired":
            self.data = replace_parameters(self.data, token=None, crop=None)

    def show_results(self, results: SearchResults) -> None:
        """Show a page of results, with links to the pages around it."""
        self.was_searched = True
        self.is_nothing_close = results.is_nothing_close
        self.hits = [hit_card(hit) for hit in results.hits or results.fallback]
        offset, limit = int(self.data.get("offset") or 0), page_size(self.data)
        if results.next_offset is not None:
            self.next = address_of(self.data, offset=str(results.next_offset))
        if offset:
            self.previous = address_of(self.data, offset=str(max(0, offset - limit)) if offset > limit else None)

    def load_filters_and_examples(self, request: HttpRequest) -> None:
        """Load what the page shows beside the results: the filters, and the products in `like`."""
        self.groups = filter_groups(self.data)
        self.chosen = list(chosen_filters(self.data, self.groups))
        if keys := [key for key in self.like if "\0" not in key][:MAX_EXAMPLES]:
            rows = {str(row.pk): row for row in visible_products(keys, request)}
            self.examples = [product_card(rows[key]) for key in keys if key in rows]


def hit_card(hit: ProductHit) -> dict[str, Any]:
    """Return a hit as context for `_hit.html`."""
    return product_card(hit.product, hit.image)


def product_card(product: Any, image: CatalogImage | None = None) -> dict[str, Any]:
    """Return a product as context for `_hit.html`. image: one of its images; None shows the main image."""
    catalog = get_catalog()
    image = image or next(iter(catalog.images_of(product)), None)
    return {
        "product": product,
        "title": catalog.title(product),
        "subtitle": catalog.subtitle(product),
        "url": catalog.url(product),
        "image": image.file if image else None,
        "image_url": catalog.thumbnail(image.file) if image else "",
    }
