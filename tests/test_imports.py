"""The package's structure: which subpackage may import which, which names are public, what start-up may not load."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

PACKAGE = ROOT / "visual_search"
HEAVY = ["torch", "transformers", "rembg", "onnxruntime", "qdrant_client", "qdrant_edge", "faiss", "matplotlib"]

# From the outermost layer inwards. A subpackage or module may import only from the lines below its own
# (docs/architecture.md).
LAYERS = [
    "apps urls test",
    "admin tasks management templatetags",
    "training",
    "quality",
    "checks api storefront",
    "web",
    "search",
    "index",
    "components",
    "catalog models",
    "filters conf",
    "vision stores",
    "exceptions",
]
# The same for the modules inside a subpackage.
INNER_LAYERS = {
    "vision": ["encoder", "checkpoints", "starter preparation images", "background signatures"],
    "stores": ["qdrant", "edge collection", "shard tuning", "connection mapping", "base process"],
    "index": [
        "signals",
        "sharing building verify",
        "drain sweep",
        "embedding",
        "plans",
        "repair finish expansion",
        "status marks feed claims reading",
        "queue versions leases relations",
    ],
    "search": ["facets results", "query", "serving photos"],
    "web": ["answers", "parameters throttles messages"],
    "api": ["urls", "views schema", "serializers throttles"],
    "storefront": ["views", "state", "filters", "addresses"],
    "checks": ["settings queue index api"],
    "quality": [
        "report",
        "tables",
        "plots runs",
        "calibration figures queries sheets",
        "evaluation",
        "labelled metrics variants",
    ],
    "training": ["fine_tuning", "data trainer", "output splits memory weights comparison batches losses"],
}
# All names that a shop imports or puts into its settings (docs/architecture.md). Others may move without notice.
PUBLIC = {
    "admin": ["reindex_selected_products"],
    "api.throttles": ["PhotoThrottle"],
    "api.urls": ["urlpatterns"],
    "catalog": ["Boolean", "Catalog", "Keyword", "Number"],
    "exceptions": ["BadRequest", "ConfigurationError", "ImageUnreadable", "Unavailable", "VisualSearchError"],
    "index": ["IndexStatus", "mark_dirty", "read_status"],
    "quality.variants": ["phone_like"],
    "search": ["ProductHit", "SearchQuery", "SearchResults", "read_photo", "search", "similar_products", "warm_up"],
    "stores.edge": ["EdgeStore"],
    "stores.qdrant": ["QdrantStore"],
    "tasks": ["drain", "sweep"],
    "test": ["IndexNow"],
    "urls": ["urlpatterns"],
    "vision": ["open_product_image"],
}


def module_of(path: Path) -> str:
    """Return the dotted name inside the package; an `__init__` has the name of its subpackage."""
    parts = [part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts]
    return ".".join(part for part in parts if part != "__init__")


MODULES = {
    name: path for path in sorted(PACKAGE.rglob("*.py")) if "migrations" not in path.parts and (name := module_of(path))
}


def imports(path: Path) -> Iterator[str]:
    """Yield the package's modules that a file imports, except under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "visual_search":
            package = node.module.removeprefix("visual_search").removeprefix(".")
            for alias in node.names:
                name = f"{package}.{alias.name}".removeprefix(".")
                yield name if name in MODULES else package
        elif isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] for a in node.names if a.name.startswith("visual_search."))


def line_of(name: str, lines: list[str]) -> int:
    return next(number for number, line in enumerate(lines) if name in line.split())


def parts_of(module: str) -> tuple[str, str]:
    """Return the top-level subpackage or module, and the module inside it (empty for the top level itself)."""
    top, _, rest = module.partition(".")
    return top, rest.partition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_module__imports_only_inner_layers(module: str) -> None:
    top, inner = parts_of(module)
    for imported in imports(MODULES[module]):
        other, part = parts_of(imported)
        if other != top:
            assert line_of(other, LAYERS) > line_of(top, LAYERS), f"{module} imports {imported}"
        elif inner and part and inner != part and top in INNER_LAYERS:
            lines = INNER_LAYERS[top]
            assert line_of(part, lines) > line_of(inner, lines), f"{module} imports {imported}"


def test_layers__name_each_subpackage_and_module_exactly_once() -> None:
    assert sorted(" ".join(LAYERS).split()) == sorted({parts_of(module)[0] for module in MODULES})
    for top, lines in INNER_LAYERS.items():
        inner = {part for module in MODULES if parts_of(module)[0] == top and (part := parts_of(module)[1])}
        assert sorted(" ".join(lines).split()) == sorted(inner), top


def test_package__has_few_modules_outside_its_subpackages() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 13


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names__exist(module: str) -> None:
    found = importlib.import_module(f"visual_search.{module}")
    assert [name for name in PUBLIC[module] if not hasattr(found, name)] == []


def test_example_shop__uses_only_public_names() -> None:
    for path in (ROOT / "example_shop").rglob("*.py"):
        for imported in imports(path):
            assert imported in PUBLIC, f"{path.name} imports visual_search.{imported}"


def test_public_names__are_in_the_docs() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert [module for module in PUBLIC if f"`visual_search.{module}`" not in text] == []


def test_vision_and_stores__need_no_django() -> None:
    inner = [f"visual_search.{name}" for name in MODULES if parts_of(name)[0] in ("vision", "stores")]
    code = f"""
import importlib, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"django", "rest_framework"}}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
for name in {inner}:
    importlib.import_module(name)
print("fine")
"""
    assert run(code).strip() == "fine"


def test_only_queue_py__imports_django_q() -> None:
    users = {module for module, path in MODULES.items() if "from django_q" in path.read_text()}
    assert users == {"index.queue"}


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


def test_setup__needs_only_django_and_drf() -> None:
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
