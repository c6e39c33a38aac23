from __future__ import annotations

from decimal import Decimal

from django.utils.formats import number_format
from django.utils.translation import gettext


def format_price(price: Decimal) -> str:
    """Return the price as the shopper's language writes it; nothing for 0, which means that the source had none."""
    if not price:
        return ""
    # Translators: where the currency stands; in German "%(amount)s $".
    return gettext("$%(amount)s") % {"amount": number_format(price, 2, force_grouping=True)}
