"""System checks of VISUAL_SEARCH and the catalogue: report errors before they can break a save or a search."""

from __future__ import annotations

import difflib
import importlib.util
import os
import string
from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning
from django.db import models
from django.utils.module_loading import import_string

from visual_search import conf
from visual_search.catalog import Catalog, find_relation, get_catalog
from visual_search.exceptions import ConfigurationError
from visual_search.filters import Field
from visual_search.index import relations
from visual_search.index.marks import KEY_LENGTH
from visual_search.models import IndexMark
from visual_search.vision.background import find_u2net
from visual_search.vision.preparation import STRATEGIES

RESERVED_FILTERS = (
    "q",
    "text",
    "limit",
    "offset",
    "photo",
    "token",
    "crop",
    "fallback",
    "product",
    "like",
    "unlike",
    "like_weight",
    "unlike_weight",
    "photo_weight",
    "text_weight",
    "score_threshold",
    "format",
    # options of every management command
    "version",
    "verbosity",
    "settings",
    "pythonpath",
    "traceback",
)
POSITIVE = (
    "BATCH_SIZE",
    "ENCODE_CONCURRENCY",
    "ENCODE_WAIT_SECONDS",
    "BACKGROUND_SECONDS",
    "MAX_PHOTOS",
    "PHOTO_TOKEN_SECONDS",
    "DRAIN_SECONDS",
    "READ_SECONDS",
    "LEASE_SECONDS",
    "MAX_ATTEMPTS",
    "BACKOFF_SECONDS",
    "MARK_AGE_SECONDS",
    "SWEEP_SECONDS",
    "TOMBSTONE_DAYS",
    "MAX_UPLOAD_BYTES",
    "MAX_PHOTO_PIXELS",
    "MAX_LIMIT",
    "MAX_TEXT_LENGTH",
    "DEFAULT_LIMIT",
)


def check_settings(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Check the keys, values and requirements of VISUAL_SEARCH."""
    written = getattr(django_settings, conf.SETTING, None)
    if not isinstance(written, dict):
        hint = 'VISUAL_SEARCH = {"CATALOG": "shop.catalog.ProductCatalog"}'
        return [Error("The VISUAL_SEARCH setting is missing or not a dict.", hint=hint, id="visual_search.E001")]
    return [
        *_unknown_keys(written),
        *_wrong_numbers(),
        *_wrong_preparation(),
        *_wrong_store(),
        *_missing_requirements(),
    ]


def _unknown_keys(written: dict[str, Any]) -> Iterator[CheckMessage]:
    for key in written:
        if key not in conf.known_keys():
            near = difflib.get_close_matches(str(key).upper(), conf.known_keys(), n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Keys: {', '.join(conf.known_keys())}."
            yield Error(f"VISUAL_SEARCH has no key {key!r}.", hint=hint, id="visual_search.E002")


def _wrong_numbers() -> Iterator[CheckMessage]:
    settings, defaults = conf.get_settings(), conf.Settings()
    for key in POSITIVE:
        value, default = getattr(settings, key), getattr(defaults, key)
        kind: Any = int if isinstance(default, int) and not key.endswith(("SECONDS", "DAYS")) else (int, float)
        if isinstance(value, bool) or not isinstance(value, kind) or value <= 0:
            expected = "a whole number above 0" if kind is int else "a number above 0"
            message = f'VISUAL_SEARCH["{key}"] is {value!r}; expected {expected}.'
            yield Error(message, hint=f"The default is {default!r}.", id="visual_search.E003")
    threshold = settings.SCORE_THRESHOLD
    if threshold is not None and not (isinstance(threshold, int | float) and -1 <= threshold <= 1):
        message = f'VISUAL_SEARCH["SCORE_THRESHOLD"] is {threshold!r}; expected a cosine from -1 to 1, or None.'
        yield Error(message, id="visual_search.E003")
    if not isinstance(settings.CHECKPOINT, str):
        message = f'VISUAL_SEARCH["CHECKPOINT"] is {settings.CHECKPOINT!r}; expected a hub name or a folder.'
        yield Error(message, id="visual_search.E003")


def _wrong_preparation() -> Iterator[CheckMessage]:
    settings = conf.get_settings()
    wanted = {key: getattr(settings, key) for key in ("QUERY_PREPARATION", "GALLERY_PREPARATION")}
    for key, value in wanted.items():
        if value not in STRATEGIES:
            hint = f"Use one of: {', '.join(map(repr, STRATEGIES))}."
            yield Error(f'VISUAL_SEARCH["{key}"] is {value!r}.', hint=hint, id="visual_search.E008")
    if not set(wanted.values()) & (set(STRATEGIES) - {"none"}):
        return
    for package in ("rembg", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            message = f"Background removal needs {package}, which is not installed."
            hint = 'pip install "django-visual-search[background]"'
            yield Warning(message, hint=hint, id="visual_search.W009")
    if settings.BACKGROUND_MODEL == "u2net" and find_u2net() is None:
        hint = "`manage.py fetch_background_model` downloads it; otherwise rembg does so at the first photo."
        yield Warning("The background model u2net is not on this machine.", hint=hint, id="visual_search.W009")


def _wrong_store() -> Iterator[CheckMessage]:
    store = conf.get_settings().STORE
    hint = '{"BACKEND": "visual_search.stores.edge.EdgeStore", "OPTIONS": {}}'
    if not isinstance(store, dict) or "BACKEND" not in store or set(store) - {"BACKEND", "OPTIONS"}:
        yield Error(f'VISUAL_SEARCH["STORE"] is {store!r}.', hint=f"Example: {hint}", id="visual_search.E004")
        return
    try:  # making a store opens nothing
        import_string(store["BACKEND"])(name="check", dim=1, fields={}, **store.get("OPTIONS", {}))
    except (ImportError, TypeError, ConfigurationError) as error:
        yield Error(f'VISUAL_SEARCH["STORE"] can\'t be used: {error}', hint=hint, id="visual_search.E004")


def _missing_requirements() -> Iterator[CheckMessage]:
    """Report missing requirements as warnings: a machine that neither indexes nor searches needs none of them."""
    if not apps.is_installed("rest_framework"):
        hint = 'Add "rest_framework" to INSTALLED_APPS.'
        yield Warning("The API needs Django REST framework.", hint=hint, id="visual_search.W005")
    for package in ("torch", "transformers", "numpy", "PIL"):
        if importlib.util.find_spec(package) is None:
            hint = 'pip install "django-visual-search[encoder]"'
            yield Warning(f"The encoder needs {package}, which is not installed.", hint=hint, id="visual_search.W006")
    checkpoint = str(conf.get_settings().CHECKPOINT)
    if checkpoint.startswith(("/", ".", "~")) and not os.path.isdir(checkpoint):
        hint = "Use a hub name or a folder; `manage.py build_starter_checkpoint FOLDER` makes one without the hub."
        yield Warning(f"There is no checkpoint in {checkpoint!r}.", hint=hint, id="visual_search.W007")


def check_catalog(app_configs: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """Check the catalogue: its import, model, images, filters, querysets and database."""
    try:
        catalog = get_catalog()
    except ConfigurationError as error:
        return [Error(str(error), id="visual_search.E010")]
    return [
        *_wrong_model(catalog),
        *_wrong_filters(catalog),
        *_unknown_paths(catalog),
        *_wrong_querysets(catalog),
        *_other_database(catalog),
    ]


def _wrong_model(catalog: Catalog) -> Iterator[CheckMessage]:
    name = type(catalog).__name__
    model = getattr(catalog, "model", None)
    if not (isinstance(model, type) and issubclass(model, models.Model)):
        yield Error(f"{name}.model is {model!r}; expected a model class.", id="visual_search.E011")
        return
    if model._meta.pk.__class__.__name__ == "CompositePrimaryKey":
        yield Error(
            f"{name}.model has a composite primary key.",
            hint="Index a model with a single-field key.",
            id="visual_search.E012",
        )
    if (getattr(model._meta.pk, "max_length", None) or 0) > KEY_LENGTH:
        yield Warning(
            f"The key of {model.__name__} may have more than {KEY_LENGTH} characters; such products are not indexed.",
            hint=f"Limit it to {KEY_LENGTH}, or leave it if no key is that long.",
            id="visual_search.W019",
        )
    if not getattr(catalog, "images", ""):
        yield Error(f"{name}.images is missing.", hint='Example: images = "image"', id="visual_search.E013")
        return
    try:
        catalog.image_field()
        relations.relations()
    except Exception as error:  # report any error of the catalogue here
        text = str(error) if isinstance(error, ConfigurationError) else f"{name}.images = {catalog.images!r}: {error}"
        yield Error(text, id="visual_search.E013")


def _wrong_filters(catalog: Catalog) -> Iterator[CheckMessage]:
    for name, field in catalog.filters.items():
        if not isinstance(field, Field):
            yield Error(
                f"The filter {name!r} is {field!r}; expected a Keyword, Number or Boolean.",
                hint='Example: "category": Keyword("category.slug")',
                id="visual_search.E014",
            )
        if name in RESERVED_FILTERS or name.startswith(("min_", "max_", "_")) or not name.isidentifier():
            hint = f"Reserved: {', '.join(RESERVED_FILTERS)}, min_…, max_… and names with a leading underscore."
            yield Error(f"A filter can't be named {name!r}.", hint=hint, id="visual_search.E015")


def _unknown_paths(catalog: Catalog) -> Iterator[CheckMessage]:
    """Check that the paths in filters, `related` and `text` exist; a typo would fail every product."""
    model = getattr(catalog, "model", None)
    if not isinstance(model, type):
        return
    placeholders = [name.split(".")[0].split("[")[0] for _, name, *_ in string.Formatter().parse(catalog.text) if name]
    paths = [(f"filter {name!r}", field.path) for name, field in catalog.filters.items() if isinstance(field, Field)]
    for what, path in [*paths, *(("related", path) for path in catalog.related), *(("text", p) for p in placeholders)]:
        at: Any = model
        for step in path.split("."):
            if not hasattr(at, step):
                near = difflib.get_close_matches(step, dir(at), n=1)
                hint = f"Did you mean {near[0]!r}?" if near else None
                yield Error(f"{what}: {at.__name__} has no {step!r}.", hint=hint, id="visual_search.E017")
                break
            relation = find_relation(at, step)
            if relation is None or not isinstance(relation.related_model, type):
                break  # a field, a property or a method: what follows can't be checked
            at = relation.related_model


def _wrong_querysets(catalog: Catalog) -> Iterator[CheckMessage]:
    """Check queryset() and visible_to(). Both return lazy querysets, so this runs no query."""
    name, model = type(catalog).__name__, getattr(catalog, "model", None)
    if not isinstance(model, type):
        return
    try:
        found: Any = catalog.queryset()
        sources = {"queryset()": found, "visible_to()": catalog.visible_to(found, None)}
    except Exception as error:  # the shop's code
        yield Error(f"{name}.queryset() or visible_to(…, None) raises {error!r}.", id="visual_search.E018")
        return
    for what, rows in sources.items():
        if not isinstance(rows, models.QuerySet) or not issubclass(rows.model, model) or rows.query.is_sliced:
            expected = f"expected an unsliced queryset of {model.__name__}"
            yield Error(f"{name}.{what} returns {type(rows).__name__}; {expected}.", id="visual_search.E018")


def _other_database(catalog: Catalog) -> Iterator[CheckMessage]:
    from django.db import router

    if not isinstance(getattr(catalog, "model", None), type):
        return
    index_database, product_database = router.db_for_write(IndexMark), catalog.database
    if index_database != product_database:
        yield Error(
            f"Products are written to {product_database!r}, the index to {index_database!r}: a mark must commit with "
            "its product.",
            hint=f"Have your database router send the app visual_search to {product_database!r}.",
            id="visual_search.E016",
        )
