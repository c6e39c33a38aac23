"""Check that the deployment files agree with the code. Nothing runs them here, so the tests read them."""

from __future__ import annotations

import configparser
import logging
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests import ROOT
from tests.conftest import own_environment
from visual_search.search.results import why_not_ready

DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())


def settings_of_the_shop(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", f"from example_shop import settings\n{code}"]
    done = subprocess.run(command, cwd=ROOT, env=own_environment(**environment), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_sizing_tables__are_what_the_script_prints() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "benchmarks.sizing"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert printed.strip() in (ROOT / "docs" / "deployment.md").read_text()


def test_compose__names_services_volumes_and_files_that_there_are(compose: Any) -> None:
    services = compose["services"]
    assert {"web", "worker", "migrate", "postgres", "redis", "qdrant"} <= set(services)
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services), name
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).is_file(), (name, volume)
        if build := service.get("build"):
            assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    for name in ("web", "worker", "postgres", "redis"):
        assert services[name]["healthcheck"]["test"], name
    waited_for = {name for service in services.values() if isinstance(service.get("depends_on"), dict)
                  for name, how in service["depends_on"].items() if how["condition"] == "service_healthy"}  # fmt: skip
    assert all("healthcheck" in services[name] for name in waited_for)


def test_compose__sets_what_the_shop_reads(compose: Any) -> None:
    text = (ROOT / "example_shop" / "settings.py").read_text()
    by_others = {"PGUSER", "PGPASSWORD", "OMP_NUM_THREADS", "WEB_CONCURRENCY", "Q_CLUSTER_NAME"}  # libpq, torch, …
    for name in ("web", "worker", "migrate"):
        unread = {key for key in compose["services"][name]["environment"] if f'"{key}"' not in text}
        assert unread <= by_others, name
    assert (
        compose["services"]["web"]["environment"]["SECRET_KEY"]
        == compose["services"]["worker"]["environment"]["SECRET_KEY"]
    )
    assert compose["services"]["worker"]["environment"]["Q_CLUSTER_NAME"] == "embedding"
    for key in ("REDIS_URL", "QDRANT_URL"):
        host = compose["services"]["web"]["environment"][key].split("//")[1].split(":")[0]
        assert host in compose["services"]


def test_shop_with_servers_in_its_environment__uses_them_and_passes_the_checks() -> None:
    servers = {"PGHOST": "db", "REDIS_URL": "redis://cache:6379/0", "QDRANT_URL": "http://vectors:6333"}
    code = (
        "import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'example_shop.settings'\n"
        "print(settings.DATABASES['default']['ENGINE'], settings.CACHES['default']['LOCATION'])\n"
        "print(settings.Q_CLUSTER.get('orm'), settings.Q_CLUSTER['redis'])\n"
        "print(settings.VISUAL_SEARCH['STORE']['OPTIONS'])\n"
        "import django; django.setup()\n"
        "from visual_search.checks import queue, settings\n"
        "print([*settings.check_settings(), *queue.check_queue()])"
    )
    lines = settings_of_the_shop(code, CHECKPOINT="hub/name", QDRANT_API_KEY="k", **servers).splitlines()
    assert lines == [
        "django.db.backends.postgresql redis://cache:6379/0",
        "None redis://cache:6379/0",
        "{'url': 'http://vectors:6333', 'api_key': 'k'}",
        "[]",
    ]


def test_shop_without_servers__stays_as_it_is() -> None:
    code = (
        "print(settings.DATABASES['default']['ENGINE'], settings.Q_CLUSTER['orm'], 'STORE' in settings.VISUAL_SEARCH)"
    )
    assert settings_of_the_shop(code) == "django.db.backends.sqlite3 default False"


def test_dockerfile__copies_files_and_installs_extras_that_there_are() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    for words in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        for source in words.split()[:-1]:
            assert (ROOT / source).exists(), source
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (wanted,) = re.findall(r'"\.\[([a-z,]+)\]"', text)
    assert set(wanted.split(",")) <= set(extras)


@pytest.mark.parametrize("name", ["web", "worker"])
def test_unit__stops_as_the_program_wants_it(name: str) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys are in upper and lower case
    unit.read(DEPLOY / f"visual-search-{name}.service")
    service = unit["Service"]
    assert (service["KillMode"], service["Restart"]) == ("mixed", "always")
    if name == "worker":
        timeout = int(settings_of_the_shop("print(settings.Q_CLUSTER['ALT_CLUSTERS']['embedding']['timeout'])"))
        assert int(service["TimeoutStopSec"]) > timeout
        assert service["Environment"] == "Q_CLUSTER_NAME=embedding"


def test_gunicorn__warms_each_process_up_after_its_fork(db: Any, starter_folder: Path) -> None:
    configuration = runpy.run_path(str(DEPLOY / "gunicorn.conf.py"))
    assert configuration["preload_app"] is False
    configuration["post_worker_init"](SimpleNamespace(log=logging.getLogger("gunicorn")))
    assert why_not_ready() == ""


def test_gunicorn__serves_a_shop_whose_checkpoint_is_missing(
    db: Any, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CHECKPOINT": "/nowhere"}
    configuration = runpy.run_path(str(DEPLOY / "gunicorn.conf.py"))
    configuration["post_worker_init"](SimpleNamespace(log=logging.getLogger("gunicorn")))
    assert "/nowhere" in caplog.text
    assert why_not_ready() != ""


def test_links_of_the_document__lead_to_files() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "docs" / "deployment.md").read_text()):
        assert (ROOT / "docs" / link).resolve().exists(), link
