"""Filters, order and chips of a product list, all read from the URL's query string."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django import forms
from django.db.models import F, Q, QuerySet, Value
from django.db.models.functions import NullIf
from django.http import QueryDict
from django.utils.translation import gettext, gettext_lazy

from example_shop.models import Brand, Product
from example_shop.prices import format_price

SORTS = {
    "newest": gettext_lazy("Newest first"),
    "name": gettext_lazy("Name"),
    "price": gettext_lazy("Price, lowest first"),
    "-price": gettext_lazy("Price, highest first"),
}
PRICED = NullIf("price", Value(0))  # a price of 0 means that the source had none; it comes last in either order
ORDERS = {
    "newest": [F("pk").desc()],
    "name": [F("name").asc(), F("pk").asc()],
    "price": [PRICED.asc(nulls_last=True), F("pk").asc()],
    "-price": [PRICED.desc(nulls_last=True), F("pk").asc()],
}


@dataclass(frozen=True, slots=True)
class Chip:
    """An active filter, and the address of the list without it."""

    label: str
    address: str


class ListingForm(forms.Form):
    """The filters and the order of a product list. An invalid field shows an error and filters nothing."""

    brand = forms.MultipleChoiceField(
        label=gettext_lazy("Brand"), required=False, widget=forms.CheckboxSelectMultiple()
    )
    min_price = forms.DecimalField(label=gettext_lazy("From"), required=False, min_value=0, max_digits=10)
    max_price = forms.DecimalField(label=gettext_lazy("To"), required=False, min_value=0, max_digits=10)
    in_stock = forms.BooleanField(label=gettext_lazy("In stock only"), required=False)
    sort = forms.ChoiceField(label=gettext_lazy("Sort by"), required=False, choices=SORTS)

    def __init__(self, data: QueryDict, products: QuerySet[Product]) -> None:
        """Initialise the form with the brands of `products` as choices."""
        super().__init__(data, auto_id="by-%s", label_suffix="")
        found = Brand.objects.filter(products__in=products).distinct()
        self.brands = {brand.slug: brand for brand in found}
        self.fields["brand"].choices = [(brand.slug, brand.name) for brand in self.brands.values()]

    def clean(self) -> dict[str, Any]:
        values = super().clean()
        lowest, highest = values.get("min_price"), values.get("max_price")
        if lowest is not None and highest is not None and lowest > highest:
            self.add_error("max_price", gettext("The highest price is below the lowest one."))
        return values

    def narrow(self, products: QuerySet[Product]) -> QuerySet[Product]:
        """Return the products that match the filters, in the chosen order."""
        values = self.cleaned_data
        wanted = Q()
        if brands := values.get("brand"):
            wanted &= Q(brand__slug__in=brands)
        if (lowest := values.get("min_price")) is not None:
            wanted &= Q(price__gte=lowest)
        if (highest := values.get("max_price")) is not None:
            wanted &= Q(price__lte=highest, price__gt=0)
        if values.get("in_stock"):
            wanted &= Q(stock__gt=0)
        return products.filter(wanted).order_by(*ORDERS[values.get("sort") or "newest"])

    def chips(self) -> list[Chip]:
        """Return the active filters."""
        values = self.cleaned_data
        chips = [Chip(self.brands[slug].name, self.without("brand", slug)) for slug in values.get("brand", ())]
        if (lowest := values.get("min_price")) is not None:
            label = gettext("From %(price)s") % {"price": format_price(lowest)}
            chips.append(Chip(label, self.without("min_price")))
        if (highest := values.get("max_price")) is not None:
            label = gettext("Up to %(price)s") % {"price": format_price(highest)}
            chips.append(Chip(label, self.without("max_price")))
        if values.get("in_stock"):
            chips.append(Chip(gettext("In stock"), self.without("in_stock")))
        return chips

    def without(self, name: str, value: str | None = None) -> str:
        """Return the address of the first page without a parameter, or without one of its values."""
        data = self.data.copy()
        data.pop("page", None)
        data.setlist(name, [other for other in data.getlist(name) if value is not None and other != value])
        return f"?{data.urlencode()}"
