"""System checks: each wrong setting is reported with a hint on how to fix it."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from typing import Any

import pytest
from django.utils import timezone

from example_shop.models import Product
from visual_search.catalog import Catalog, Keyword, get_catalog
from visual_search.checks import api as api_checks
from visual_search.checks import index as index_checks
from visual_search.checks import queue as queue_checks
from visual_search.checks import settings as settings_checks
from visual_search.models import IndexMark


def ids(found: Any) -> list[str]:
    return [message.id for message in found]


def test_project_as_it_is__passes_all_checks(db: Any, starter_folder: Any) -> None:
    everything: list[Any] = [
        settings_checks.check_settings(),
        settings_checks.check_catalog(),
        queue_checks.check_queue(),
    ]
    assert everything == [[], [], []]


@pytest.mark.parametrize(
    ("values", "expected", "words"),
    [
        ({"CHEKPOINT": "x"}, "visual_search.E002", "CHECKPOINT"),
        ({"checkpoint": "x"}, "visual_search.E002", "CHECKPOINT"),
        ({"BATCH_SIZE": 0}, "visual_search.E003", "32"),
        ({"LEASE_SECONDS": "300"}, "visual_search.E003", "300"),
        ({"STORE": "edge"}, "visual_search.E004", "BACKEND"),
        ({"STORE": {"BACKEND": "no.such.Store"}}, "visual_search.E004", "visual_search.stores.edge"),
        ({"STORE": {"BACKEND": "visual_search.stores.qdrant.QdrantStore"}}, "visual_search.E004", "BACKEND"),
        ({"CHECKPOINT": "/nowhere"}, "visual_search.W007", "build_starter_checkpoint"),
        ({"QUERY_PREPARATION": "cut"}, "visual_search.E008", "cutout"),
    ],
)
def test_wrong_setting__is_named_with_a_hint(
    settings: Any, starter_folder: Any, values: Any, expected: str, words: str
) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | values
    (message,) = settings_checks.check_settings()
    assert message.id == expected
    assert words in message.hint


def test_background_model_that_is_not_here__is_named_before_it_is_needed(
    settings: Any, starter_folder: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    assert settings_checks.check_settings() == []
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"QUERY_PREPARATION": "crop"}
    (message,) = settings_checks.check_settings()
    assert (message.id, "fetch_background_model" in message.hint) == ("visual_search.W009", True)
    (tmp_path / "u2net.onnx").touch()
    assert settings_checks.check_settings() == []


@pytest.mark.parametrize(
    ("values", "expected", "words"),
    [
        ({"PERMISSION_CLASSES": "rest_framework.permissions.AllowAny"}, "visual_search.E041", "list"),
        ({"PERMISSION_CLASSES": ["no.such.Class"]}, "visual_search.E041", "no.such.Class"),
        ({"THROTTLE_CLASSES": [None]}, "visual_search.E041", "list"),
        ({"PRODUCT_SERIALIZER": "shop.NoSerializer"}, "visual_search.E041", "shop.NoSerializer"),
        ({"PRODUCT_SERIALIZER": 7}, "visual_search.E041", "dotted path"),
        ({"PHOTO_RATE": "often"}, "visual_search.E042", "often"),
        ({"PHOTO_RATE": "30/fortnight"}, "visual_search.E042", "fortnight"),
        ({"PHOTO_RATE": 30}, "visual_search.E042", "30"),
        ({"CACHE": "redis"}, "visual_search.E043", "redis"),
    ],
)
def test_wrong_setting_of_the_api__is_named(settings: Any, values: Any, expected: str, words: str) -> None:
    assert api_checks.check_api() == []
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | values
    (message,) = api_checks.check_api()
    assert message.id == expected
    assert words in message.msg


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("django.core.cache.backends.filebased.FileBasedCache", ["visual_search.W043"]),
        ("django.core.cache.backends.db.DatabaseCache", ["visual_search.W043"]),
        ("django.core.cache.backends.dummy.DummyCache", ["visual_search.W043"]),
        ("django.core.cache.backends.locmem.LocMemCache", []),
    ],
)
def test_cache_that_is_unfit_for_photos__is_named(settings: Any, tmp_path: Any, backend: str, expected: Any) -> None:
    settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": str(tmp_path)}}
    assert ids(api_checks.check_api()) == expected
    assert ids(api_checks.check_deployed_cache()) == (["visual_search.W044"] if "locmem" in backend else [])


def test_deployed_policies__name_trusted_addresses_and_asked_logins(settings: Any) -> None:
    settings.REST_FRAMEWORK = {"NUM_PROXIES": 1}
    assert api_checks.check_deployed_policies() == []
    asks = ["rest_framework.permissions.IsAuthenticated"]
    settings.REST_FRAMEWORK = {"DEFAULT_PERMISSION_CLASSES": asks}
    assert ids(api_checks.check_deployed_policies()) == ["visual_search.W045", "visual_search.I046"]
    allowed = ["rest_framework.permissions.AllowAny"]
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"PERMISSION_CLASSES": allowed}
    assert ids(api_checks.check_deployed_policies()) == ["visual_search.W045"]


def test_setting_that_is_no_dict__is_named(settings: Any) -> None:
    settings.VISUAL_SEARCH = "photo search"
    assert ids(settings_checks.check_settings()) == ["visual_search.E001"]


@pytest.mark.parametrize("path", ["", "no.such.Catalog", "example_shop.models.Product"])
def test_wrong_catalogue_setting__is_named(settings: Any, path: str) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CATALOG": path}
    assert ids(settings_checks.check_catalog()) == ["visual_search.E010"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model": "Product"}, "visual_search.E011"),
        ({"images": ""}, "visual_search.E013"),
        ({"images": "pictures"}, "visual_search.E013"),
        ({"images": "category"}, "visual_search.E013"),
        ({"filters": {"limit": Keyword("name")}}, "visual_search.E015"),
        ({"filters": {"min_size": Keyword("name")}}, "visual_search.E015"),
        ({"filters": {"_x": Keyword("name")}}, "visual_search.E015"),
        ({"filters": {"category": "category.slug"}}, "visual_search.E014"),
        ({"filters": {"category": Keyword("categroy.slug")}}, "visual_search.E017"),
        ({"filters": {"category": Keyword("category.slugg")}}, "visual_search.E017"),
        ({"related": ["nothing"]}, "visual_search.E017"),
        ({"text": "{title}"}, "visual_search.E017"),
        ({"queryset": lambda self: []}, "visual_search.E018"),
        ({"queryset": lambda self: Product.objects.all()[:3]}, "visual_search.E018"),
        ({"queryset": lambda self: Product.objects.filter(nonsense=1)}, "visual_search.E018"),
        ({"visible_to": lambda self, queryset, request: None}, "visual_search.E018"),
    ],
)
def test_wrong_catalogue__is_named(monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], expected: str) -> None:
    from visual_search.index import relations

    broken = type("Broken", (Catalog,), {"model": Product, "images": "images"} | values)()
    monkeypatch.setattr(settings_checks, "get_catalog", lambda: broken)
    monkeypatch.setattr(relations, "get_catalog", lambda: broken)
    relations.clear_cache()
    try:
        assert expected in ids(settings_checks.check_catalog())
    finally:
        relations.clear_cache()


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ({}, "visual_search.E021"),
        ({"ALT_CLUSTERS": {"embedding": {"retry": 600}}}, "visual_search.W022"),
        ({"ALT_CLUSTERS": {"embedding": {"timeout": 120, "retry": 130}}}, "visual_search.W023"),
        ({"ALT_CLUSTERS": {"embedding": {"timeout": 120, "retry": 600}}}, "visual_search.W024"),
    ],
)
def test_wrong_cluster__is_named(settings: Any, cluster: Any, expected: str) -> None:
    settings.Q_CLUSTER = {"name": "shop"} | cluster
    assert expected in ids(queue_checks.check_queue())


@pytest.mark.filterwarnings("ignore:Overriding setting DATABASES")
@pytest.mark.parametrize(
    ("shop", "embedding", "expected", "words"),
    [
        ({}, {"queue_limit": 4}, "visual_search.W064", "queue_limit"),
        ({}, {"queue_limit": 0}, "visual_search.W064", "queue_limit"),
        ({}, {"recycle": 500}, "visual_search.W065", "recycle"),
        ({}, {"scheduler": False}, "visual_search.W066", "scheduler"),
        ({"orm": "nowhere"}, {}, "visual_search.E061", "default"),
        ({"orm": "other"}, {}, "visual_search.W063", "migrate --database other"),
        ({}, {"orm": None, "redis": "redis://127.0.0.1"}, "visual_search.E062", "ALT_CLUSTERS"),
    ],
)
def test_wrong_queue_option__is_named_with_a_hint(
    settings: Any, shop: Any, embedding: Any, expected: str, words: str
) -> None:
    settings.DATABASES = settings.DATABASES | {"other": settings.DATABASES["default"]}
    alternatives = {"embedding": settings.Q_CLUSTER["ALT_CLUSTERS"]["embedding"] | embedding}
    settings.Q_CLUSTER = settings.Q_CLUSTER | shop | {"ALT_CLUSTERS": alternatives}
    (message,) = queue_checks.check_queue()
    assert message.id == expected
    assert words in message.hint


def test_cluster_without_a_queue_limit__is_reported_with_the_default_of_django_q2(settings: Any) -> None:
    cluster = dict(settings.Q_CLUSTER["ALT_CLUSTERS"]["embedding"])
    del cluster["queue_limit"]
    settings.Q_CLUSTER = settings.Q_CLUSTER | {"ALT_CLUSTERS": {"embedding": cluster | {"workers": 3}}}
    (message,) = queue_checks.check_queue()
    assert "is 9" in message.msg


def test_misspelt_name_of_a_cluster__is_named_where_it_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Q_CLUSTER_NAME", "embedding")
    assert queue_checks.check_queue() == []
    monkeypatch.setenv("Q_CLUSTER_NAME", "embeding")
    (message,) = queue_checks.check_queue()
    assert (message.id, "Q_CLUSTER_NAME=embedding" in message.hint) == ("visual_search.W067", True)


def test_name_of_a_cluster_without_alternatives__fails_with_the_error_that_the_check_predicts(settings: Any) -> None:
    settings.Q_CLUSTER = {"name": "shop"}
    (message,) = queue_checks.check_queue()
    assert "KeyError" in message.hint
    code = (
        "from django.conf import settings\n"
        "settings.configure(INSTALLED_APPS=['django_q'], Q_CLUSTER={'name': 'shop'})\n"
        "import django; django.setup()"
    )
    environment = os.environ | {"Q_CLUSTER_NAME": "embedding"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "KeyError: 'ALT_CLUSTERS'" in done.stderr


def test_redis_broker__informs_before_a_deployment_how_lost_tasks_are_replaced(settings: Any) -> None:
    assert queue_checks.check_deployed_queue() == []
    without = {key: value for key, value in settings.Q_CLUSTER.items() if key != "orm"}
    settings.Q_CLUSTER = without | {"redis": "redis://127.0.0.1:6379/0"}
    assert queue_checks.check_queue() == []
    (message,) = queue_checks.check_deployed_queue()
    assert (message.id, "sweep" in message.hint) == ("visual_search.I068", True)


def test_no_queue__is_a_warning_with_an_alternative(settings: Any) -> None:
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "django_q"]
    (message,) = queue_checks.check_queue()
    assert "--here" in message.hint


def test_marks_that_wait__are_a_warning_that_says_how_long(make_product: Any, settings: Any) -> None:
    make_product(1)
    assert "visual_search.W032" not in ids(index_checks.check_index(databases=["default"]))
    IndexMark.objects.update(marked_at=timezone.now() - datetime.timedelta(hours=3))
    (message,) = [m for m in index_checks.check_index(databases=["default"]) if m.id == "visual_search.W032"]
    assert "3 h" in message.msg
    assert "Q_CLUSTER_NAME=embedding" in message.hint


def test_other_checkpoint_than_the_index__is_a_warning(make_product: Any, index: Any, settings: Any) -> None:
    make_product(1)
    index.drain()
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CHECKPOINT": "another"}
    assert "visual_search.W031" in ids(index_checks.check_index(databases=["default"]))


def test_changed_filters__are_a_warning_until_payloads_are_rewritten(
    make_product: Any, index: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_product(1)
    index.drain()
    catalog = get_catalog()
    monkeypatch.setattr(type(catalog), "filters", dict(catalog.filters) | {"name": Keyword("name")})
    assert "visual_search.W033" in ids(index_checks.check_index(databases=["default"]))
    index.sweep()
    assert "visual_search.W033" not in ids(index_checks.check_index(databases=["default"]))


def test_many_images_in_the_embedded_store__are_a_warning_that_names_the_server(
    make_product: Any, index: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = make_product(1, images=2)
    index.drain()
    monkeypatch.setattr(index_checks, "EMBEDDED_IMAGES_MAX", 1)
    (message,) = [m for m in index_checks.check_index(databases=["default"]) if m.id == "visual_search.W036"]
    assert "2 images" in message.msg
    assert "QdrantStore" in message.hint
    product.images.last().delete()
    index.drain()  # tombstones are not counted as images
    assert "visual_search.W036" not in ids(index_checks.check_index(databases=["default"]))


def test_many_images_on_a_server__give_no_warning(
    make_product: Any, index: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_product(1, images=2)
    index.drain()
    monkeypatch.setattr(index_checks, "EMBEDDED_IMAGES_MAX", 1)
    server = {"BACKEND": "visual_search.stores.qdrant.QdrantStore", "OPTIONS": {"location": ":memory:"}}
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"STORE": server}
    assert "visual_search.W036" not in ids(index_checks.check_index(databases=["default"]))


def test_key_that_may_be_longer_than_the_tables_hold__is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Product._meta.pk, "max_length", 300)
    assert "visual_search.W019" in ids(settings_checks.check_catalog())
    monkeypatch.setattr(Product._meta.pk, "max_length", 255)
    assert "visual_search.W019" not in ids(settings_checks.check_catalog())
