"""Files of labelled queries: what they may contain, and which errors are reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from example_shop.catalog import ProductCatalog
from tests.drawings import photo_bytes
from visual_search.exceptions import ConfigurationError, InvalidLabels
from visual_search.quality.labelled import LabelledQuery, evenly_sampled, read_labelled

pytestmark = pytest.mark.django_db


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a CSV beside two photos, a.jpg and b.jpg."""
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        (tmp_path / name).write_bytes(photo_bytes(seed=seed))

    def write_csv(*lines: str, encoding: str = "utf-8") -> Path:
        path = tmp_path / "labels.csv"
        path.write_text("\n".join(lines), encoding=encoding)
        return path

    return write_csv


@pytest.fixture
def keys(make_product: Any) -> list[str]:
    """Keys of two products whose sku is sku-1 and sku-2."""
    return [str(make_product(seed).pk) for seed in (1, 2)]


def test_several_rows_of_a_photo__are_several_right_answers(write: Any, keys: list[str]) -> None:
    path = write("photo,product_id,note", "a.jpg,sku-1,x", "a.jpg,sku-2,y", "b.jpg,sku-2,z", "a.jpg,sku-1,again")
    labelled = read_labelled(path)
    assert labelled.problems == []
    assert labelled.queries == [
        LabelledQuery(path.parent / "a.jpg", None, tuple(keys), "a.jpg"),
        LabelledQuery(path.parent / "b.jpg", None, (keys[1],), "b.jpg"),
    ]
    assert labelled.queries[0].kind == "photo"


def test_texts__and_photos_with_texts__are_kinds_of_their_own(write: Any, keys: list[str]) -> None:
    path = write("photo,text,product_id", ',"red, large",sku-1', "a.jpg,in red,sku-2")
    first, second = read_labelled(path).queries
    assert (first.kind, first.text, first.photo) == ("text", "red, large", None)
    assert (second.kind, second.text) == ("mixed", "in red")


def test_byte_order_mark_and_spaces__do_not_matter(write: Any, keys: list[str]) -> None:
    path = write("photo , product_id", "a.jpg, sku-1", encoding="utf-8-sig")
    assert len(read_labelled(path).queries) == 1


def test_split__takes_its_rows_alone(write: Any, keys: list[str]) -> None:
    path = write("photo,product_id,split", "a.jpg,sku-1,train", "b.jpg,sku-2,val")
    assert [query.products for query in read_labelled(path, split="val").queries] == [(keys[1],)]


def test_unknown_split__names_those_there_are(write: Any, keys: list[str]) -> None:
    path = write("photo,product_id,split", "a.jpg,sku-1,train", "b.jpg,sku-2,val")
    with pytest.raises(InvalidLabels, match="'test'; its splits are 'train', 'val'"):
        read_labelled(path, split="test")


def test_split_of_a_file_without_the_column__says_so(write: Any, keys: list[str]) -> None:
    with pytest.raises(InvalidLabels, match="no column `split`"):
        read_labelled(write("photo,product_id", "a.jpg,sku-1"), split="val")


def test_missing_photos_unknown_products_and_empty_cells__are_listed(write: Any, keys: list[str]) -> None:
    path = write("photo,product_id", "a.jpg,sku-1", "a.jpg,sku-9", "gone.jpg,sku-1", "b.jpg,sku-8", "b.jpg,", ",sku-1")
    labelled = read_labelled(path)
    assert [query.products for query in labelled.queries] == [(keys[0],)]
    assert len(labelled.problems) == 5
    for part in ("'sku-9'", "gone.jpg: there is no such file", "'sku-8'", "line 6:", "line 7:"):
        assert any(part in problem for problem in labelled.problems), part


def test_unpublished_product__is_none_of_the_catalogue(write: Any, make_product: Any) -> None:
    make_product(5, is_published=False)
    assert read_labelled(write("photo,product_id", "a.jpg,sku-5")).queries == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["image,product_id", "a.jpg,sku-1"], "has the columns 'image', 'product_id'; expected"),
        (["photo;product_id", "a.jpg;sku-1"], "has the columns 'photo;product_id'; expected"),
        (["photo,sku", "a.jpg,sku-1"], "expected a CSV file"),
        ([""], "is empty; expected"),
        (["photo,product_id"], "no rows"),
        (["photo,product_id", 'a.jpg,"sku'], "is not a CSV file"),
    ],
)
def test_file_that_is_none__is_one_clear_line(write: Any, lines: list[str], said: str) -> None:
    with pytest.raises(InvalidLabels, match=said) as caught:
        read_labelled(write(*lines))
    assert "\n" not in str(caught.value)


def test_file_in_another_encoding__is_one_clear_line(write: Any) -> None:
    with pytest.raises(InvalidLabels, match="UTF-8"):
        read_labelled(write("text,product_id", "für dich,sku-1", encoding="latin-1"))


@pytest.mark.parametrize("name", ["gone.csv", "."])
def test_file_that_is_not_there__is_one_clear_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidLabels, match="can't be read"):
        read_labelled(tmp_path / name)


def test_primary_keys__are_the_ids_unless_the_catalogue_names_a_field(make_product: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(ProductCatalog, "product_id_field", "pk")
    product = make_product(1)
    catalog = ProductCatalog()
    assert catalog.keys_of([str(product.pk), f"0{product.pk}", "sku-1", "999"]) == {
        str(product.pk): str(product.pk),
        f"0{product.pk}": str(product.pk),
    }


def test_product_id_field_that_is_none__is_a_configuration_error(db: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(ProductCatalog, "product_id_field", "ean")
    with pytest.raises(ConfigurationError, match=r"ProductCatalog.product_id_field = 'ean' is no field of Product"):
        ProductCatalog().keys_of(["1"])


def test_evenly_sampled__takes_from_all_over(db: Any) -> None:
    queries = [LabelledQuery(None, str(place), ("1",)) for place in range(10)]
    assert [query.text for query in evenly_sampled(queries, 3)] == ["0", "3", "6"]
    assert evenly_sampled(queries, None) == evenly_sampled(queries, 99) == queries
