"""`{% load visual_search %}`: search by photo on any page of the shop (docs/widget.md)."""

from __future__ import annotations

import logging
from typing import Any

from django import template
from django.http import HttpRequest, QueryDict
from django.template import Context

from visual_search.catalog import get_catalog
from visual_search.conf import get_settings
from visual_search.exceptions import VisualSearchError
from visual_search.filters import parameter_names
from visual_search.search.results import SIMILAR_LIMIT
from visual_search.search.results import similar_products as find_similar
from visual_search.storefront.addresses import address_of, page_address
from visual_search.storefront.filters import parameter_text
from visual_search.storefront.state import Storefront, hit_card
from visual_search.web import messages

logger = logging.getLogger(__name__)

register = template.Library()

PLACEMENTS = ("page", "button")


@register.inclusion_tag("visual_search/widget.html", takes_context=True)
def visual_search_widget(context: Context, placement: str = "page", **filters: Any) -> dict[str, Any]:
    """Show the search by photo: form, crop, filters and results. placement="button" shows a link to it.

    filters: initial values of declared filters, such as `category="shoes"` or `max_price=50`.
    """
    if placement not in PLACEMENTS:
        raise template.TemplateSyntaxError(f"placement must be one of {', '.join(PLACEMENTS)}, not {placement!r}.")
    preset = read_filters(filters)
    store = context.get("visual_search")
    if placement == "button" or not isinstance(store, Storefront):
        store = Storefront(preset)
        if placement == "page":
            store.load_filters_and_examples(get_request(context))
    return {
        "store": store,
        "placement": placement,
        "search_address": page_address("search"),
        "address": address_of(preset),
        "results_address": page_address("results"),
        "max_bytes": get_settings().MAX_UPLOAD_BYTES,
        "max_text": get_settings().MAX_TEXT_LENGTH,
        "minutes": round(get_settings().PHOTO_TOKEN_SECONDS / 60),
        "sentences": {code: messages.sentence(code) for code in messages.SENTENCES},
    }


@register.inclusion_tag("visual_search/similar.html", takes_context=True)
def similar_products(context: Context, product: Any, limit: int = SIMILAR_LIMIT) -> dict[str, Any]:
    """Show the products that look most like `product`; nothing if there are none or the search fails.

    Loads no encoder. Search errors are logged and never break the page.
    """
    try:
        hits = find_similar(product, request=context.get("request"), limit=limit).hits
    except VisualSearchError as error:
        logger.info("No similar products for %s: %s", getattr(product, "pk", product), error)
        hits = []
    return {"hits": [hit_card(hit) for hit in hits], "product": product}


@register.inclusion_tag("visual_search/link.html")
def photo_search_link(product: Any) -> dict[str, Any]:
    """Show a link to a search for products like this one, which filters and words can refine."""
    data = QueryDict(mutable=True)
    data["like"] = str(getattr(product, "pk", product))
    return {"address": address_of(data), "title": get_catalog().title(product)}


def read_filters(filters: dict[str, Any]) -> QueryDict:
    """Return the tag's filters as parameters, without None and "". Raises TemplateSyntaxError for unknown filters."""
    known = parameter_names(get_catalog().filters)
    data = QueryDict(mutable=True)
    for name, value in filters.items():
        if name not in known:
            raise template.TemplateSyntaxError(f"There is no filter {name!r}. Filters: {', '.join(known)}.")
        values = value if isinstance(value, list | tuple | set) else [value]
        if texts := [parameter_text(item) for item in values if item not in (None, "")]:
            data.setlist(name, texts)
    return data


def get_request(context: Context) -> HttpRequest:
    """Return the request, which CSRF protection and `visible_to` need."""
    request = context.get("request")
    if not isinstance(request, HttpRequest):
        raise template.TemplateSyntaxError(
            "{% visual_search_widget %} needs the request: add django.template.context_processors.request "
            "to the context processors, and render with a request."
        )
    return request
