from __future__ import annotations

from decimal import Decimal

from django.utils.formats import number_format
from django.utils.translation import gettext


def format_price(price: Decimal) -> str:
    """Format the price for the active language; return "" for 0, which means that the source had no price."""
    if not price:
        return ""
    # Translators: where the currency stands; in German "%(amount)s $".
    return gettext("$%(amount)s") % {"amount": number_format(price, 2, force_grouping=True)}
