"""Every sentence that shoppers and staff read is translated into German, and the compiled catalogue is up to date."""

from __future__ import annotations

import gettext
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.conftest import skip_or_fail

CATALOG = Path("locale/de/LC_MESSAGES")


def run(*command: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(params=["visual_search", "example_shop"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the app with freshly collected messages."""
    if not shutil.which("xgettext"):
        skip_or_fail("gettext", "xgettext is not installed (Debian: gettext)")
    copy = tmp_path / request.param
    shutil.copytree(ROOT / request.param, copy, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-P", "-m", "django", "makemessages", "--locale", "de", "--no-obsolete", folder=copy)
    return copy


def test_german__is_complete(app: Path) -> None:
    untranslated = run("msgattrib", "--untranslated", "--no-wrap", str(CATALOG / "django.po"), folder=app)
    fuzzy = run("msgattrib", "--only-fuzzy", "--no-wrap", str(CATALOG / "django.po"), folder=app)
    assert [
        line for line in (untranslated + fuzzy).splitlines() if line.startswith("msgid ") and line != 'msgid ""'
    ] == []


def test_compiled_messages__are_those_of_the_source(app: Path) -> None:
    committed = ROOT / app.name / CATALOG
    run("msgfmt", "-o", str(app / "fresh.mo"), str(committed / "django.po"), folder=app)
    with (app / "fresh.mo").open("rb") as fresh, (committed / "django.mo").open("rb") as kept:
        assert messages(gettext.GNUTranslations(fresh)) == messages(gettext.GNUTranslations(kept))


def messages(translations: gettext.GNUTranslations) -> object:
    catalog: dict[object, str] = translations._catalog  # type: ignore[attr-defined]
    return {source: text for source, text in catalog.items() if source}
