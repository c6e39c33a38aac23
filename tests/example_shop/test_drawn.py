from __future__ import annotations

import io
from pathlib import Path

import pytest
from django.core.management import call_command
from PIL import Image, ImageStat

from example_shop.drawn.canvas import SIZE_PX, Canvas
from example_shop.drawn.pictures import phone_photo, read_drawn
from example_shop.drawn.products import KINDS, products
from example_shop.models import Product
from visual_search.search import SearchQuery, read_photo, search

OBJECT = (0.05, 0.28, 0.72, 0.85)  # where a phone photo has the product
FIRST = 8  # of the drawn products; drawing all of them takes 20 s


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


def test_products__have_ids_and_names_of_their_own() -> None:
    found = list(products())
    assert len({product.id for product in found}) == len({product.name for product in found}) == len(found)
    assert len(found) == sum(len(kind.looks) for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_kind__is_drawn_inside_its_picture_and_in_its_colour(kind) -> None:
    """A drawing beyond the edge, or without its colour, would be wrong in every look."""
    one, other = (canvas_of(kind, colour) for colour in ((200, 40, 40), (40, 60, 200)))
    alpha = one.finished().getchannel("A")
    assert 0.04 < ImageStat.Stat(alpha).mean[0] / 255 < 0.6
    assert alpha.getbbox()[0] > 0
    assert alpha.getbbox()[2] < SIZE_PX
    red, blue = (ImageStat.Stat(canvas.finished(), alpha).mean for canvas in (one, other))
    assert red[0] > blue[0] or kind.name in ("rubber plant", "cactus")
    assert red[2] < blue[2]


def canvas_of(kind, colour) -> Canvas:
    canvas = Canvas()
    kind.draw(canvas, colour, (230, 225, 215))
    return canvas


def test_read_drawn__draws_once_and_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    first = next(read_drawn(folder))
    before = [path.read_bytes() for path in first.images]
    written_at = [path.stat().st_mtime_ns for path in first.images]

    assert next(read_drawn(folder)) == first
    assert [path.stat().st_mtime_ns for path in first.images] == written_at
    assert [path.read_bytes() for path in next(read_drawn(tmp_path)).images] == before
    for path in first.images:
        assert Image.open(path).size == (SIZE_PX, SIZE_PX)
        assert path.stat().st_size < 150_000


@pytest.mark.django_db
def test_load_catalog__of_drawn_products_can_be_searched_by_a_phone_photo(index, settings, folder: Path) -> None:
    settings.STATE_DIR = folder
    call_command("load_catalog", "drawn", limit=FIRST, verbosity=0)
    index.drain()
    drawn = list(products())[:FIRST]

    for at in (0, 3, 5):
        file = io.BytesIO()
        phone_photo(drawn[at], beside=drawn[at - 1]).save(file, "JPEG", quality=85)
        hits = search(SearchQuery(photos=[read_photo(file.getvalue(), crop=OBJECT)])).hits
        assert hits[0].product == Product.objects.get(sku=drawn[at].id)
