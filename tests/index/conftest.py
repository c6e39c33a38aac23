"""A small shop of three products with a real queue worker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drawings import photo_bytes
from tests.shops import Shop


@pytest.fixture
def shop(tmp_path: Path, starter_folder: Path) -> Iterator[Shop]:
    pictures = tmp_path / "pictures" / "Things"
    pictures.mkdir(parents=True)
    for seed in (1, 2, 3):
        (pictures / f"Thing {seed}.jpg").write_bytes(photo_bytes(seed=seed))
    made = Shop(tmp_path, starter_folder)
    made.manage("migrate", "--verbosity", "0")
    made.manage("load_catalog", str(tmp_path / "pictures"))
    made.start_worker()
    try:
        yield made
    finally:
        made.stop_all()
