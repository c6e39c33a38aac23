"""The shop's catalogue: which products are indexed, by which images, with which filters, and who may see them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.core.signals import setting_changed
from django.db import router
from django.db.models import FileField, ImageField
from django.utils.module_loading import import_string

from visual_search.conf import SETTING, get_settings
from visual_search.exceptions import ConfigurationError
from visual_search.filters import Boolean, Field, Keyword, Number

if TYPE_CHECKING:
    from django.db.models import Model, QuerySet
    from django.db.models.fields.files import FieldFile
    from django.http import HttpRequest

    from visual_search.stores.base import FieldKind, PayloadValue

__all__ = ["Boolean", "Catalog", "CatalogImage", "Keyword", "Number", "get_catalog"]

VALUES_PER_QUERY = 500  # below the 999 parameters that older versions of SQLite accept


@dataclass(frozen=True, slots=True)
class CatalogImage:
    """One image of a product. key: stable within the product; identity: changes whenever the image does."""

    key: str
    identity: str
    is_main: bool
    file: FieldFile

    @property
    def name(self) -> str:
        """Return the file's name in its storage."""
        return self.file.name or ""

    def read(self) -> bytes:
        """Return the file's bytes from its storage. Raises what that storage raises."""
        with self.file.storage.open(self.name, "rb") as opened:
            return bytes(opened.read())


class Catalog:
    """Describe the shop's products to the search. Subclass it and set VISUAL_SEARCH["CATALOG"] to its dotted path."""

    model: ClassVar[type[Model]]
    """The product model. Its primary key may be an integer, a UUID or a string."""
    images: ClassVar[str]
    """The name of an ImageField, or of a relation to rows that have one; the first row is the main image."""
    text: ClassVar[str] = ""
    """A format string over the product's attributes: its caption for fine-tuning a checkpoint."""
    product_id_field: ClassVar[str] = "pk"
    """The unique field that the column `product_id` of files refers to, such as "sku"."""
    filters: ClassVar[Mapping[str, Field]] = {}
    """What shoppers may filter by. The relations on these paths are watched for changes."""
    related: ClassVar[Iterable[str]] = ()
    """Further relations from the product, dotted, whose rows affect the values of its filters."""

    def queryset(self) -> QuerySet[Any]:
        """Return the products to index; prefetch what images and filters read."""
        return self.model._default_manager.all()

    def visible_to(self, queryset: QuerySet[Any], request: HttpRequest | None) -> QuerySet[Any]:
        """Return the part of `queryset` that this request may see. request: None outside a web request."""
        return queryset

    def image_version(self, image: FieldFile) -> str:
        """Return what distinguishes images that have the same storage name.

        Override it for storages that overwrite files under the same name. It is called for every image that is
        compared, so read a column of the row (`image.instance`), not the storage.
        """
        return ""

    def caption(self, product: Any) -> str:
        """Return a description of the product in words."""
        return self.text.format_map(_Attributes(product)) if self.text else str(product)

    def title(self, product: Any) -> str:
        """Return the product's title in results."""
        return str(product)

    def url(self, product: Any) -> str:
        """Return the URL of the product's page, or an empty string."""
        get_absolute_url = getattr(product, "get_absolute_url", None)
        return str(get_absolute_url()) if callable(get_absolute_url) else ""

    def subtitle(self, product: Any) -> str:
        """Return the line beneath the title in results, such as the price; empty for none."""
        return ""

    def thumbnail(self, image: FieldFile) -> str:
        """Return the URL of the image that result cards show. Override it if the shop makes small renditions."""
        return str(image.url)

    def filter_label(self, name: str) -> str:
        """Return a filter's label for shoppers, such as "Price"; for a boolean, what is true: "In stock"."""
        return name.replace("_", " ").capitalize()

    def value_labels(self, name: str, values: Collection[str]) -> Mapping[str, str]:
        """Return the labels of a keyword filter's values. A value without a label is shown as it is."""
        return {}

    def images_of(self, product: Any) -> list[CatalogImage]:
        """Return the product's images, the main one first. Rows without a file are skipped."""
        source = getattr(product, self.images)
        if hasattr(source, "all"):
            name = self.image_field().name
            rows = source.all()
            # The model's ordering first: `ordered` builds each product's query, which a prefetch makes unnecessary.
            is_ordered = rows.model._meta.ordering or rows.ordered
            in_order = rows if is_ordered else sorted(rows, key=lambda row: row.pk)
            files = [(str(row.pk), getattr(row, name)) for row in in_order]
        else:
            files = [(self.images, source)]
        return [
            CatalogImage(
                key, f"{file.name}@{version}" if (version := self.image_version(file)) else file.name, not at, file
            )
            for at, (key, file) in enumerate((key, file) for key, file in files if file)
        ]

    def payload(self, product: Any) -> dict[str, PayloadValue]:
        """Return the values of the declared filters."""
        return {name: field.read(product) for name, field in self.filters.items()}

    def field_kinds(self) -> dict[str, FieldKind]:
        """Return the kind of each declared filter, as stores expect it."""
        return {name: field.kind for name, field in self.filters.items()}

    def image_field(self) -> Any:
        """Return the ImageField (or FileField) that `images` leads to. Raises ConfigurationError if there is none."""
        name = f"{type(self).__name__}.images = {self.images!r}"
        found = find_relation(self.model, self.images)
        if found is None:
            own = next((field for field in self.model._meta.fields if field.name == self.images), None)
            if isinstance(own, FileField):
                return own
            raise ConfigurationError(f"{name} is neither an ImageField nor a relation to rows that have one.")
        if not (found.one_to_many or found.many_to_many):
            raise ConfigurationError(f"{name} leads to a single row; expected a relation to many, or an ImageField.")
        fields = [field for field in found.related_model._meta.fields if isinstance(field, FileField)]
        if not fields:
            raise ConfigurationError(f"{name} leads to {found.related_model.__name__}, which has no ImageField.")
        return next((field for field in fields if isinstance(field, ImageField)), fields[0])

    def valid_keys(self, keys: Iterable[str]) -> list[str]:
        """Return the keys that are valid for the model's primary key: the index may be older than the model."""
        return [key for key in keys if self._is_key(key)]

    def keys_of(self, product_ids: Iterable[str]) -> dict[str, str]:
        """Return the products' keys by these values of `product_id_field`; unknown values are left out.

        Raises ConfigurationError if the product has no such field.
        """
        name = self.product_id_field
        try:
            field = self.model._meta.pk if name == "pk" else self.model._meta.get_field(name)
        except FieldDoesNotExist as error:
            where = f"{type(self).__name__}.product_id_field = {name!r}"
            raise ConfigurationError(f"{where} is no field of {self.model.__name__}.") from error
        values = {text: value for text in product_ids if (value := _convert(field, text)) is not None}
        found: dict[Any, str] = {}
        wanted = list(values.values())
        for start in range(0, len(wanted), VALUES_PER_QUERY):
            condition = {f"{name}__in": wanted[start : start + VALUES_PER_QUERY]}
            rows = self.queryset().using(self.database).filter(**condition).order_by()
            found |= {value: str(pk) for value, pk in rows.values_list(name, "pk")}
        return {text: found[value] for text, value in values.items() if value in found}

    def _is_key(self, key: str) -> bool:
        return _convert(self.model._meta.pk, key) is not None

    @property
    def database(self) -> str:
        """The alias of the database that holds both products and index."""
        return router.db_for_write(self.model)


def _convert(field: Any, text: str) -> Any:
    """Return the text converted to the field's type, or None if it is not a valid value."""
    try:
        return field.to_python(text)
    except ValidationError:
        return None


def find_relation(model: type[Model], attribute: str) -> Any:
    """Return the relation behind an attribute, or None. Reverse relations have other names in lookups."""
    for related in model._meta.related_objects:
        if related.get_accessor_name() == attribute:
            return related
    fields = (*model._meta.fields, *model._meta.many_to_many, *model._meta.private_fields)
    return next((field for field in fields if field.name == attribute and field.is_relation), None)


@cache
def get_catalog() -> Catalog:
    """Return the project's catalogue. Raises ConfigurationError if the CATALOG setting is missing or wrong."""
    path = get_settings().CATALOG
    if not path or not isinstance(path, str):
        raise ConfigurationError(
            'VISUAL_SEARCH["CATALOG"] must name your Catalog class, such as "shop.catalog.ProductCatalog".'
        )
    try:
        catalog = import_string(path)()
    except ImportError as error:
        raise ConfigurationError(f'VISUAL_SEARCH["CATALOG"] = {path!r} could not be imported: {error}') from error
    if not isinstance(catalog, Catalog):
        raise ConfigurationError(f"{path!r} is not a subclass of visual_search.catalog.Catalog.")
    return catalog


class _Attributes(dict[str, Any]):
    """A mapping that lets a format string such as "{name}. {description}" read attributes of a product."""

    def __init__(self, product: Any) -> None:
        self.product = product

    def __missing__(self, name: str) -> Any:
        return getattr(self.product, name)


def _clear_cache(*, setting: str, **kwargs: Any) -> None:
    if setting == SETTING:
        get_catalog.cache_clear()


setting_changed.connect(_clear_cache, dispatch_uid="visual_search.catalog")
