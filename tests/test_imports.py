"""The direction of imports, and what starting Django may not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "visual_search"
HEAVY = ["torch", "transformers", "rembg", "onnxruntime", "qdrant_client", "qdrant_edge", "faiss", "matplotlib"]

# From the edges inwards: a module may import from its own layer and from those below (docs/architecture.md).
EDGES = (
    "api views storefront templatetags urls admin management checks index_checks queue_checks apps test signals tasks"
)
LAYERS = [
    set(EDGES.split()),
    {"training"},
    {"status", "verifying", "quality"},
    {"facets"},
    {"building", "search", "sharing", "sweeping"},
    {"query", "serving"},
    {"indexing", "repairing"},
    {"claims", "feed", "marks"},
    {"queue", "versions", "leases"},
    {"components", "photos", "relations"},
    {"models", "catalog", "filters", "conf", "messages"},
    {"images", "encoders", "checkpoints", "starter", "stores", "preparation"},
    {"background", "signatures"},
    {"exceptions"},
]


def layer_of(module: str) -> int:
    return next(place for place, names in enumerate(LAYERS) if module in names)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield (imported module of the package, whether it is for type checkers alone)."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "visual_search":
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            yield from ((name, id(node) in typing_only) for name in names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("visual_search."):
                    yield alias.name.split(".")[1], id(node) in typing_only


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        if "migrations" not in parts and parts != ("__init__.py",):
            found.append((parts[0].removesuffix(".py"), path))
    return found


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: getattr(value, "stem", value))
def test_module__imports_inwards_alone(module: str, path: Path) -> None:
    for imported, is_typing_only in imports(path):
        if not is_typing_only and imported != module:
            assert layer_of(imported) >= layer_of(module), f"{module} imports {imported}"


@pytest.mark.parametrize(
    "inner", ["images", "signatures", "preparation", "background", "encoders", "checkpoints", "starter", "stores"]
)
def test_inner_module__knows_no_django_and_no_setting(inner: str) -> None:
    for module, path in modules():
        if module == inner:
            names = {
                n.name
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Import)
                for n in node.names
            }
            froms = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
            assert not [name for name in names | froms if name and name.split(".")[0] in ("django", "rest_framework")]


def test_only_queue_py__names_django_q() -> None:
    users = {path.name for _, path in modules() if "import" in path.read_text() and "from django_q" in path.read_text()}
    assert users == {"queue.py"}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


SETUP = "import os, sys; os.environ['DJANGO_SETTINGS_MODULE'] = 'tests.settings'; import django; django.setup()\n"


def test_setup_check_and_urls__load_nothing_heavy() -> None:
    code = SETUP + "from django.core.management import call_command; call_command('check', verbosity=0)\n"
    loaded = run(code + f"print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_web_process_without_a_search__loads_nothing_heavy() -> None:
    code = SETUP + (
        "from django.test import Client; from django.conf import settings\n"
        "settings.ALLOWED_HOSTS = ['testserver']\n"
        "from django.test.utils import setup_test_environment\n"
        "from django.db import connection; connection.creation.create_test_db(verbosity=0, autoclobber=True)\n"
        "assert Client().get('/').status_code == 200\n"
        "assert Client().get('/search-by-photo/').status_code == 200\n"
        "assert Client().get('/api/visual-search/v1/health/').status_code == 503\n"
    )
    loaded = run(code + f"print([name for name in {HEAVY} if name in sys.modules])")
    assert loaded.splitlines()[-1] == "[]"


def test_setup__needs_django_and_drf_alone() -> None:
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"numpy", "PIL", "tqdm", "django_q", "torch", "transformers", "qdrant_edge"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "rest_framework", "visual_search"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    VISUAL_SEARCH={"CATALOG": "nothing.yet"},
    USE_TZ=True,
)
import django; django.setup()
from django.core.management import call_command
import visual_search.urls, visual_search.api.urls
call_command("migrate", verbosity=0, skip_checks=True)
print("fine")
"""
    assert run(code).strip() == "fine"
