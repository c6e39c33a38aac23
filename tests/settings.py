"""The example shop's settings, with a database, files and checkpoint that only tests use."""

import os
from pathlib import Path

from example_shop.settings import *  # noqa: F403
from example_shop.settings import BASE_DIR, Q_CLUSTER, VISUAL_SEARCH

INSTALLED_APPS = [*INSTALLED_APPS, "tests.gadgets"]  # noqa: F405
DEBUG = False
LANGUAGES = [*LANGUAGES, ("ar", "Arabic")]  # noqa: F405  # read from right to left
SECRET_KEY = "only-for-tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
TEST_STATE_DIR = Path(os.environ.get("TEST_STATE_DIR", BASE_DIR / ".demo" / "tests"))
MEDIA_ROOT = TEST_STATE_DIR / "media"
VISUAL_SEARCH = VISUAL_SEARCH | {
    "CHECKPOINT": os.environ.get("CHECKPOINT", str(BASE_DIR / ".demo" / "starter")),
    "PHOTO_RATE": None,  # tests of the throttle set one
}

# Tests ignore the servers that the environment names; they start their own (tests/servers.py).
VISUAL_SEARCH.pop("STORE", None)
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
Q_CLUSTER = Q_CLUSTER | {"orm": "default"}
DATABASES = {"default": POSTGRES if os.environ.get("DATABASE") == "postgres" else SQLITE}  # noqa: F405
