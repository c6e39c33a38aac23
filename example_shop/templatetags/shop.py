from __future__ import annotations

from decimal import Decimal
from typing import Any

from django import template

from example_shop.prices import format_price
from example_shop.renditions import CARD_SIDE_PX, rendition_url, srcset

register = template.Library()


@register.inclusion_tag("example_shop/_picture.html")
def picture(name: str, sizes: str, *, alt: str = "", lazy: bool = True) -> dict[str, Any]:
    """Show the picture with this storage name, as small as the screen allows, or a placeholder if `name` is empty.

    sizes: the width of its square, in the syntax of the HTML attribute.
    """
    name = str(name or "")
    sources = {"src": rendition_url(name, CARD_SIDE_PX), "srcset": srcset(name)} if name else {}
    return {"sizes": sizes, "alt": alt, "lazy": lazy} | sources


@register.filter
def price(amount: Decimal) -> str:
    return format_price(amount)
