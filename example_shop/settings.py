"""Settings of the example shop: SQLite, files in the project's folder, the starter checkpoint.

The environment variables PGHOST, REDIS_URL and QDRANT_URL select servers instead; see deploy/docker-compose.yml.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

BASE_DIR = Path(__file__).resolve().parent.parent
STATE_DIR = Path(os.environ.get("SHOP_STATE_DIR", BASE_DIR / ".demo"))  # database, uploads, checkpoint
STATE_DIR.mkdir(parents=True, exist_ok=True)

SECRET_KEY = os.environ.get("SECRET_KEY", "only-for-the-example-shop-on-127.0.0.1")
DEBUG = os.environ.get("DEBUG", "1") == "1"
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "[::1]", *filter(None, os.environ.get("ALLOWED_HOSTS", "").split(","))]
REDIS_URL = os.environ.get("REDIS_URL")  # for the queue and the cache
QDRANT_URL = os.environ.get("QDRANT_URL")

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "django_q",
    "visual_search",
    "example_shop",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "example_shop.urls"
WSGI_APPLICATION = "example_shop.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        # Searched before the apps' own folders, so that the shop's templates override those of visual_search.
        "DIRS": [BASE_DIR / "example_shop" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.template.context_processors.i18n",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
SQLITE = {
    "ENGINE": "django.db.backends.sqlite3",
    "NAME": STATE_DIR / "shop.sqlite3",
    "OPTIONS": {
        # Web and worker write at the same time: readers don't block, and a writer waits for the lock.
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    },
}
# libpq itself reads PGHOST, PGPORT, PGUSER and PGPASSWORD.
POSTGRES = {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ.get("PGDATABASE", "shop")}
DATABASES = {"default": POSTGRES if "PGHOST" in os.environ else SQLITE}
if REDIS_URL:
    CACHES = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": REDIS_URL}}
LANGUAGE_CODE = "en"
LANGUAGES = [("en", "English"), ("de", "Deutsch")]
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "static/"
STATIC_ROOT = STATE_DIR / "static"
MEDIA_URL = "media/"
MEDIA_ROOT = STATE_DIR / "media"

VISUAL_SEARCH: dict[str, Any] = {
    "CATALOG": "example_shop.catalog.ProductCatalog",
    "CHECKPOINT": os.environ.get("CHECKPOINT", str(STATE_DIR / "starter")),
}
if QDRANT_URL:
    VISUAL_SEARCH["STORE"] = {
        "BACKEND": "visual_search.stores.qdrant.QdrantStore",
        "OPTIONS": {"url": QDRANT_URL, "api_key": os.environ.get("QDRANT_API_KEY")},
    }
REST_FRAMEWORK = {"DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema"}
SPECTACULAR_SETTINGS = {
    "TITLE": "Example shop",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
}
Q_CLUSTER = {
    "name": "shop",
    **({"redis": REDIS_URL} if REDIS_URL else {"orm": "default"}),
    "timeout": 120,
    "retry": 600,
    "ALT_CLUSTERS": {
        # One worker, so one model in memory. The index keeps track of retries itself, so the queue must not retry.
        "embedding": {
            "workers": 1,
            "queue_limit": 1,
            "timeout": 120,
            "retry": 600,
            "max_attempts": 1,
            "ack_failures": True,
            "recycle": 100_000,
            "poll": 0.2,
        },
    },
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {"visual_search": {"handlers": ["console"], "level": "INFO"}},
}
