from __future__ import annotations

import shutil
import subprocess
from decimal import Decimal
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from PIL import Image

from example_shop import vendure
from example_shop.models import Brand, Category, Product, ProductImage
from example_shop.sources import plain_text, short_id

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def media(settings, tmp_path):
    settings.MEDIA_ROOT = tmp_path / "media"
    return settings.MEDIA_ROOT


@pytest.fixture
def folder(tmp_path):
    """A source folder with two images."""
    folder = tmp_path / "source"
    draw(folder / "red.png", "red")
    draw(folder / "blue.png", "blue")
    return folder


def draw(path: Path, colour: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), colour).save(path)
    return path


def write_csv(folder: Path, *lines: str) -> Path:
    path = folder / "products.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def load(source, **options) -> str:
    """Return the command's output: its messages, then the counts."""
    stdout, stderr = StringIO(), StringIO()
    call_command("load_catalog", str(source), stdout=stdout, stderr=stderr, **options)
    return stderr.getvalue() + stdout.getvalue()


def stored_files(media: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in media.rglob("*") if path.is_file()}


FULL_HEADER = "id,name,category,brand,price,images,description"


class TestFolder:
    def test_folder__makes_a_product_of_each_image(self, folder):
        draw(folder / "Shoes" / "running-shoe_blue.jpg", "navy")

        assert "3 created, 0 updated, 0 unchanged, 0 skipped" in load(folder)

        shoe = Product.objects.get(sku="Shoes/running-shoe_blue.jpg")
        assert (shoe.name, shoe.category.name, shoe.slug) == ("Running shoe blue", "Shoes", "running-shoe-blue")
        assert shoe.in_stock
        assert Product.objects.get(name="Red").category.name == "Other"

    def test_folder__passes_over_what_is_hidden_or_no_image(self, folder):
        (folder / "notes.txt").write_text("not an image")
        draw(folder / ".thumbnails" / "red.png", "red")

        assert "2 created" in load(folder)

    def test_folder__without_images_is_refused(self, tmp_path):
        with pytest.raises(CommandError, match="holds no image"):
            load(tmp_path)

    def test_folder__equal_names_get_slugs_of_their_own(self, folder):
        draw(folder / "Shoes" / "red.png", "darkred")
        draw(folder / "Bags" / "red.png", "crimson")

        load(folder)

        slugs = Product.objects.filter(name="Red").values_list("slug", flat=True)
        assert sorted(slugs) == ["red", "red-redpng", "red-shoesredpng"]

    def test_limit__loads_the_first(self, folder):
        assert "1 created" in load(folder, limit=1)


class TestCsv:
    def test_csv__fills_every_field(self, folder):
        source = write_csv(
            folder, FULL_HEADER, '7,Red Shoe,Shoes,Acme,12.5,red.png|blue.png,"<p>Light &amp; red.</p><p>Soft.</p>"'
        )

        load(source)

        product = Product.objects.get(sku="7")
        assert (product.name, product.category.slug, product.brand.slug) == ("Red Shoe", "shoes", "acme")
        assert product.price == Decimal("12.50")
        assert product.description == "Light & red.\nSoft."
        assert [row.position for row in product.images.all()] == [0, 1]
        assert [Path(row.image.name).stem[:4] for row in product.images.all()] == ["red", "blue"]

    def test_csv__with_other_column_names_and_few_columns(self, folder):
        source = write_csv(folder, "product_id,name,department,image", "1,Apple,Fruit,red.png")

        output = load(source)

        assert "Columns ignored: department." in output
        assert Product.objects.get(sku="1").images.count() == 1

    def test_csv__with_semicolons_and_a_byte_order_mark(self, folder):
        path = folder / "products.csv"
        path.write_bytes("id;name;images\n1;Épée;red.png|blue.png".encode("utf-8-sig"))

        load(path)

        product = Product.objects.get(sku="1")
        assert (product.slug, product.images.count()) == ("epee", 2)

    def test_csv__without_an_id_is_known_by_its_name(self, folder):
        source = write_csv(folder, "name", "Red Shoe")
        load(source)
        assert "1 unchanged" in load(source)

    def test_csv__without_a_usable_column_is_refused(self, folder):
        with pytest.raises(CommandError, match="has the columns title, cost; at least one of id, name and images"):
            load(write_csv(folder, "title,cost", "Shoe,1"))

    def test_csv__that_is_not_text_is_refused(self, folder):
        with pytest.raises(CommandError, match="not text in UTF-8"):
            load(folder / "red.png")

    def test_csv__with_an_id_twice_loads_nothing(self, folder):
        with pytest.raises(CommandError, match=r"ids must be unique, but these are repeated: '1' \(2 times\)"):
            load(write_csv(folder, "id,name", "1,Shoe", "2,Hat", "1,Boot"))
        assert not Product.objects.exists()

    @pytest.mark.parametrize(
        ("row", "complaint"),
        [
            ("2,Hat,cheap", "Row 3: price 'cheap' is not a number"),
            ("2,Hat,-1", "Row 3: price '-1' is not a number"),
            ("2,Hat,NaN", "Row 3: price 'NaN' is not a number"),
            ("2,Hat,1,99", "Row 3: 4 cells for 3 columns"),
            (",,5", "Row 3: it has neither id, name nor image"),
            ("2,Hat,1.999", "2: price: Ensure that there are no more than 2 decimal places"),
            (f"2,{'x' * 201},1", "2: name: Ensure this value has at most 200 characters"),
        ],
    )
    def test_csv__a_wrong_row_is_named_and_the_others_are_loaded(self, folder, row, complaint):
        output = load(write_csv(folder, "id,name,price", "1,Shoe,5", row, "3,Bag,7"))

        assert complaint in output
        assert "2 created, 0 updated, 0 unchanged, 1 skipped" in output
        assert list(Product.objects.order_by("sku").values_list("sku", flat=True)) == ["1", "3"]

    @pytest.mark.parametrize("damage", ["missing", "no image", "truncated"])
    def test_csv__a_product_is_loaded_without_its_unreadable_image(self, folder, damage):
        if damage == "no image":
            (folder / "bad.png").write_text("not an image")
        elif damage == "truncated":
            noise = Image.effect_noise((64, 64), 50)
            noise.save(folder / "bad.png")
            (folder / "bad.png").write_bytes((folder / "bad.png").read_bytes()[:900])

        output = load(write_csv(folder, "id,images", "1,bad.png|red.png"))

        assert "bad.png' " + ("is missing" if damage == "missing" else "cannot be read") in output
        assert "1 created" in output
        assert [row.position for row in ProductImage.objects.all()] == [0]


class TestAgain:
    def test_load_again__writes_nothing(self, folder, media):
        source = write_csv(folder, FULL_HEADER, "1,Shoe,Shoes,Acme,12.50,red.png,Light.", "2,Hat,,,,blue.png,")
        load(source)
        before = stored_files(media)

        output = load(source)

        assert "0 created, 0 updated, 2 unchanged, 0 skipped" in output
        assert stored_files(media) == before

    def test_load_again__updates_what_changed_and_keeps_the_address(self, folder):
        load(write_csv(folder, "id,name,price", "1,Shoe,5", "2,Hat,6"))

        output = load(write_csv(folder, "id,name,price", "1,Red Shoe,4.50", "2,Hat,6"))

        product = Product.objects.get(sku="1")
        assert "0 created, 1 updated, 1 unchanged, 0 skipped" in output
        assert (product.name, product.price, product.slug) == ("Red Shoe", Decimal("4.50"), "shoe")

    def test_load_again__replaces_an_image_whose_bytes_changed(self, folder, media, django_capture_on_commit_callbacks):
        source = write_csv(folder, "id,images", "1,red.png")
        load(source)
        draw(folder / "red.png", "green")

        with django_capture_on_commit_callbacks(execute=True):
            output = load(source)

        assert "1 updated" in output
        row = ProductImage.objects.get()
        with Image.open(row.image) as image:
            assert image.getpixel((0, 0)) == (0, 128, 0)
        assert list(stored_files(media)) == [Path(row.image.name).name]

    def test_load_again__in_another_order_moves_rows_and_no_files(self, folder, media):
        load(write_csv(folder, "id,images", "1,red.png|blue.png"))
        before = stored_files(media)

        assert "1 updated" in load(write_csv(folder, "id,images", "1,blue.png|red.png"))

        assert [Path(row.image.name).stem for row in ProductImage.objects.all()] == ["blue", "red"]
        assert stored_files(media) == before

    def test_load_again__keeps_images_while_one_of_the_source_is_missing(self, folder):
        source = write_csv(folder, "id,images", "1,red.png|blue.png")
        load(source)
        (folder / "blue.png").unlink()

        assert "1 unchanged" in load(source)
        assert ProductImage.objects.count() == 2

    def test_load_again__keeps_what_the_source_does_not_speak_of(self, folder):
        load(write_csv(folder, FULL_HEADER, "1,Shoe,Shoes,Acme,12.50,red.png,Light."))

        assert "1 unchanged" in load(write_csv(folder, "id,name", "1,Shoe"))

        product = Product.objects.get()
        assert (product.category.name, product.brand.name, product.images.count()) == ("Shoes", "Acme", 1)

    def test_load_again__leaves_unpublished_products_unpublished(self, folder):
        load(write_csv(folder, "id,name", "1,Shoe"))
        Product.objects.update(is_published=False)

        load(write_csv(folder, "id,name", "1,Red Shoe"))

        assert not Product.objects.get(name="Red Shoe").is_published

    def test_categories__of_one_name_in_other_case_are_one(self, folder):
        load(write_csv(folder, "id,name,category,brand", "1,Shoe,Shoes,Acme", "2,Boot,shoes,ACME"))
        assert (Category.objects.count(), Brand.objects.count()) == (1, 1)


class TestVendure:
    @pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
    def test_vendure__loads_once_and_finds_nothing_new_then(self, settings, tmp_path):
        settings.STATE_DIR = tmp_path / "state"

        assert "54 created, 0 updated, 0 unchanged, 0 skipped" in load("vendure")
        assert "0 created, 0 updated, 54 unchanged, 0 skipped" in load("vendure")

        laptop = Product.objects.get(sku="laptop")
        assert (laptop.category.name, laptop.brand.name) == ("Computers", "Apple")
        assert (laptop.price, laptop.stock) == (Decimal("1299.00"), 100)
        assert ProductImage.objects.count() == 54
        assert [path.name for path in settings.STATE_DIR.iterdir()] == ["vendure"]

    def test_vendure__reads_facets_and_passes_over_variants(self, settings, tmp_path):
        settings.STATE_DIR = tmp_path
        folder = tmp_path / "vendure"
        draw(folder / "images" / "red.png", "red")
        write_csv(
            folder,
            "name  ,slug  ,description,assets ,facets ,sku ,price ,stockOnHand",
            "Laptop,laptop,Fast      ,red.png,category:Electronics|category:Computers|brand:Apple,L13,1299.00,100",
            "      ,      ,          ,       ,       ,L15 ,1399.00,100",
            "Cable ,cable ,          ,       ,       ,C1  ,2.00   ,0",
        )

        assert "2 created, 0 updated, 0 unchanged, 0 skipped" in load("vendure")

        laptop, cable = Product.objects.get(sku="laptop"), Product.objects.get(sku="cable")
        assert (laptop.category.name, laptop.brand.name, laptop.images.count()) == ("Computers", "Apple", 1)
        assert (cable.category.name, cable.brand, cable.in_stock) == ("Other", None, False)

    def test_vendure__without_npm_says_what_to_give_instead(self, settings, tmp_path, monkeypatch):
        settings.STATE_DIR = tmp_path
        monkeypatch.setenv("PATH", str(tmp_path))

        with pytest.raises(CommandError, match="npm is not installed. Give load_catalog a folder of images or a CSV"):
            load("vendure")

    def test_vendure__where_npm_fails_leaves_nothing_behind(self, settings, tmp_path, monkeypatch):
        settings.STATE_DIR = tmp_path / "state"
        npm = tmp_path / "npm"
        npm.write_text("#!/bin/sh\necho 'network is down' >&2\nexit 1\n")
        npm.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

        with pytest.raises(CommandError, match="npm could not fetch .*: network is down"):
            load("vendure")
        assert list(settings.STATE_DIR.iterdir()) == []

    def test_unpack__of_something_else_is_refused(self, tmp_path):
        packed = tmp_path / "other.tgz"
        (tmp_path / "package").mkdir()
        subprocess.run(["tar", "czf", packed, "-C", tmp_path, "package"], check=True)

        with pytest.raises(vendure.SourceError, match="holds no package/assets/products.csv"):
            vendure.unpack(packed, tmp_path)


def test_source__that_is_not_there_is_refused(tmp_path):
    with pytest.raises(
        CommandError, match="is neither a folder nor a file, nor one of the names 'vendure' and 'drawn'"
    ):
        load(tmp_path / "nowhere")


def test_limit__below_one_is_refused(folder):
    with pytest.raises(CommandError, match="0 is less than 1"):
        call_command("load_catalog", str(folder), "--limit=0")


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("Just text, 3 < 4 & more", "Just text, 3 < 4 & more"),
        ("<ul><li>One<li>Two</ul>After", "One\nTwo\nAfter"),
        ("a<br/>b", "a\nb"),
        ("<style>p {color: red}</style><b>Bold</b> &eacute;<script>alert(1)</script>", "Bold é"),
        ("", ""),
    ],
)
def test_plain_text__has_no_tags(html, text):
    assert plain_text(html) == text


def test_short_id__of_a_long_text_is_unique_and_fits():
    ids = {short_id("folder/" * 20 + name) for name in ("a.jpg", "b.jpg")}
    assert len(ids) == 2
    assert all(len(id) == 64 for id in ids)
