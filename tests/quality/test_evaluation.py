"""The commands for evaluation, thresholds and made queries, with the real search and the real starter."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from qdrant_client import QdrantClient

from example_shop.models import Product
from tests.drawings import photo_bytes
from tests.tiny_checkpoints import tiny_clip
from visual_search.index import building
from visual_search.models import IndexVersion
from visual_search.quality.calibration import calibrate, threshold_at
from visual_search.quality.evaluation import Outcome
from visual_search.quality.labelled import LabelledQuery
from visual_search.search import SearchQuery, read_photo, search
from visual_search.search.results import threshold_of

pytestmark = pytest.mark.django_db


def run(*words: Any) -> str:
    out = io.StringIO()
    call_command(*map(str, words), stdout=out, stderr=out)
    return out.getvalue()


@pytest.fixture
def shop(make_product: Any, index: Any) -> list[Product]:
    products = [make_product(seed, category=("shoes", "hats")[seed % 2], images=2) for seed in range(1, 7)]
    index.drain()
    return products


@pytest.fixture
def labels(shop: list[Product], tmp_path: Path) -> Path:
    """The products' own main images as photos, two of them with wrong labels, and a broken photo."""
    lines = ["photo,product_id"]
    for seed in range(1, 7):
        (tmp_path / f"{seed}.jpg").write_bytes(photo_bytes(seed=seed * 100))
        lines.append(f"{seed}.jpg,sku-{seed if seed < 5 else 11 - seed}")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    path = tmp_path / "photos.csv"
    path.write_text("\n".join([*lines, "broken.jpg,sku-1", "gone.jpg,sku-1", "1.jpg,sku-99"]))
    return path


@pytest.fixture
def second_version(shop: list[Product], tmp_path: Path) -> IndexVersion:
    """An inactive version, made with a tiny checkpoint with random weights."""
    version = building.start_build(checkpoint=str(tiny_clip(tmp_path / "tiny")))
    building.build(version)
    return version


def test_evaluate__says_what_was_found_and_what_could_not_be_used(labels: Path, tmp_path: Path) -> None:
    said = run("evaluate_search", labels, "--json", tmp_path / "run.json")
    assert re.search(r"hit rate at 1 +66\.7", said)
    assert re.search(r"hit rate at 10 +100\.0", said)
    assert "6 photo queries for 6 products" in said
    for problem in ("broken.jpg: ", "gone.jpg: there is no such file", "'sku-99'"):
        assert problem in said
    kept = json.loads((tmp_path / "run.json").read_text())
    assert kept["figures"]["photo"]["hit_at_1"]["value"] == pytest.approx(4 / 6, abs=1e-4)
    assert set(kept["groups"]["photo"]) == {"shoes", "hats"}
    assert kept["latency_ms"]["photo"]["all"]["median"] > 0
    assert len(kept["queries"]) == 6


def test_texts_and_several_right_answers__have_figures_of_their_own(shop: Any, tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text,product_id\n" + "\n".join(f"a shoe,sku-{seed}" for seed in (1, 3, 5)) + "\na hat,sku-2")
    run("evaluate_search", path, "--json", tmp_path / "run.json")
    kept = json.loads((tmp_path / "run.json").read_text())
    assert list(kept["figures"]) == ["text"]
    shoe = next(row for row in kept["queries"] if row["text"] == "a shoe")
    assert len(shoe["places"]) == 3
    assert "recall at 5" in run("evaluate_search", path)


def test_compare_with_a_run_of_yesterday__is_paired(labels: Path, tmp_path: Path, second_version: Any) -> None:
    run("evaluate_search", labels, "--json", tmp_path / "run.json")
    said = run("evaluate_search", labels, "--index-version", second_version.pk, "--compare", tmp_path / "run.json")
    assert "gain in points (paired)" in said
    assert f"index version {second_version.pk} ({tmp_path / 'tiny'})" in said
    assert "6 queries are in both runs" in said


def test_compare_with_a_version__measures_both(labels: Path, second_version: Any, tmp_path: Path) -> None:
    run("evaluate_search", labels, "--compare", second_version.pk, "--json", tmp_path / "run.json")
    comparison = json.loads((tmp_path / "run.json").read_text())["comparison"]
    assert comparison["with"]["version"] == second_version.pk
    gain = comparison["kinds"]["photo"]["gains"]["hit_at_1"]["value"]
    assert gain == pytest.approx(4 / 6 - comparison["kinds"]["photo"]["base"]["hit_at_1"]["value"], abs=1e-4)


def test_other_version__leaves_what_shoppers_get_alone(labels: Path, second_version: Any) -> None:
    photo = read_photo((labels.parent / "1.jpg").read_bytes())
    before = [hit.score for hit in search(SearchQuery(photos=[photo])).hits]
    run("evaluate_search", labels, "--index-version", second_version.pk)
    assert [hit.score for hit in search(SearchQuery(photos=[photo])).hits] == before
    assert IndexVersion.objects.get(state="active").pk != second_version.pk


def test_other_version_in_a_shared_store__is_fed_before_it_is_measured(
    index: Any, make_product: Any, settings: Any, tmp_path: Path
) -> None:
    backend = {
        "BACKEND": "visual_search.stores.qdrant.QdrantStore",
        "OPTIONS": {"client": QdrantClient(":memory:")},
    }
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"STORE": backend}
    make_product(1)
    index.drain()
    version = building.start_build(checkpoint=str(tiny_clip(tmp_path / "tiny")))
    building.build(version)
    (tmp_path / "photo.jpg").write_bytes(photo_bytes(seed=100))
    (tmp_path / "photos.csv").write_text("photo,product_id\nphoto.jpg,sku-1")
    said = run("evaluate_search", tmp_path / "photos.csv", "--index-version", version.pk)
    assert re.search(r"hit rate at 1 +100\.0", said)


def test_report__is_one_file_with_pictures_and_plots(labels: Path, tmp_path: Path) -> None:
    Product.objects.filter(sku="sku-1").update(name="<b>$5 & more</b>")
    run("evaluate_search", labels, "--report", tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert html.count("<svg") >= 2
    assert "data:image/jpeg;base64," in html
    assert "&lt;b&gt;$5 &amp; more" in html
    assert "<b>$5" not in html
    assert not re.search(r'(src|href)="(?!data:|#)', html)


def test_evaluate_made_queries__does_not_find_them_by_themselves(shop: list[Product], tmp_path: Path) -> None:
    said = run("make_queries", tmp_path / "made", "--limit", 4)
    assert re.search(r"4  second image, held out", said)
    path = tmp_path / "made" / "queries.csv"
    said = run("evaluate_search", path, "--json", tmp_path / "run.json")
    assert "not photos of customers" in said
    queries = json.loads((tmp_path / "run.json").read_text())["queries"]
    for row in queries:
        by_image = {product: image for product, image, _ in row["found"]}
        product = Product.objects.get(pk=row["products"][0])
        assert by_image[row["products"][0]] == str(product.images.first().pk)
    assert all(score < 0.9999 for row in queries for *_, score in row["found"])


def test_made_queries__are_the_same_for_a_seed(shop: Any, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run("make_queries", tmp_path / name, "--limit", 1, "--seed", seed)
    photos = {name: [file.read_bytes() for file in sorted((tmp_path / name / "photos").iterdir())] for name in "abc"}
    assert photos["a"] == photos["b"]
    assert photos["a"][0] == photos["c"][0]
    assert photos["a"][1] != photos["c"][1]


def test_product_of_one_image_or_a_broken_one__is_said(make_product: Any, index: Any, tmp_path: Path) -> None:
    make_product(1)
    broken = make_product(2)
    Path(broken.images.get().image.path).write_bytes(b"")
    said = run("make_queries", tmp_path / "made")
    assert "1  phone-like variant of an image that is in the index" in said
    assert f"product {broken.pk}: " in said
    with pytest.raises(CommandError, match="already exists"):
        run("make_queries", tmp_path / "made")


def outcome(product: int, right: float | None, wrong: float, *, place: int = 1) -> Outcome:
    query = LabelledQuery(None, "x", (str(product),))
    return Outcome(query, (), () if right is None else (place,), right, wrong, "", {})


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2, 0.5])
def test_threshold__lets_through_no_more_than_the_rate(rate: float) -> None:
    import numpy as np

    wrong = np.random.default_rng(0).normal(0.4, 0.1, 400)
    threshold = threshold_at(wrong, rate)
    assert (wrong >= threshold).mean() <= rate
    assert (wrong >= threshold - 0.01).mean() > rate


def test_threshold_of_equal_scores__lets_none_through() -> None:
    import numpy as np

    assert threshold_at(np.full(100, 0.5), 0.05) > 0.5


def test_calibration__is_tried_on_products_it_has_not_seen() -> None:
    import numpy as np

    dice = np.random.default_rng(0)
    inside = [outcome(number % 50, 0.6 + dice.normal(0, 0.1), 0.3 + dice.normal(0, 0.1)) for number in range(500)]
    found = calibrate(inside, None, kind="photo", false_accept_rate=0.05)
    assert 0.4 < found.threshold < 0.52
    assert found.false_accepts.low <= 0.05 <= found.false_accepts.high
    assert 0.8 < found.kept.value < found.found.value == 1
    assert found.curve.kept[0] == found.curve.false_accepts[0] == 1


def test_right_products_beyond_the_first_page__are_none_to_keep() -> None:
    inside = [outcome(number, 0.6, 0.3, place=1 if number % 2 else 50) for number in range(40)]
    assert calibrate(inside, None, kind="photo", false_accept_rate=0.1).found.value == 0.5


def with_texts(tmp_path: Path, count: int = 24) -> Path:
    path = tmp_path / "texts.csv"
    path.write_text("text,product_id\n" + "\n".join(f"thing {n},sku-{n % 6 + 1}" for n in range(count)))
    return path


def test_calibrate__keeps_the_threshold_of_that_kind_alone(shop: Any, tmp_path: Path) -> None:
    path = with_texts(tmp_path)
    run("calibrate_threshold", path, "--dry-run")
    assert IndexVersion.objects.get().text_threshold is None
    said = run("calibrate_threshold", path, "--force", "--report", tmp_path / "curve.html")
    version = IndexVersion.objects.get()
    assert version.text_threshold is not None
    assert version.photo_threshold is None
    assert f"text_threshold {version.text_threshold:.4f}" in said
    assert "false accepts" in said
    assert "<svg" in (tmp_path / "curve.html").read_text()


def test_threshold_that_hides_most_right_products__is_kept_by_force_alone(shop: Any, tmp_path: Path) -> None:
    """The texts do not describe the products, so no score separates right from wrong."""
    path = with_texts(tmp_path)
    with pytest.raises(CommandError, match="hides more than half of the right products"):
        run("calibrate_threshold", path)
    assert IndexVersion.objects.get().text_threshold is None


def test_calibrate_with_photos_of_other_things__takes_those(labels: Path, tmp_path: Path) -> None:
    lines = ["photo,product_id"]
    (tmp_path / "other").mkdir()
    for seed in range(24):
        (tmp_path / f"i{seed}.jpg").write_bytes(photo_bytes(seed=(seed % 6 + 1) * 100))
        lines.append(f"i{seed}.jpg,sku-{seed % 6 + 1}")
        (tmp_path / "other" / f"{seed}.jpg").write_bytes(photo_bytes(seed=9000 + seed))
    (tmp_path / "other" / "notes.txt").write_text("no photo")
    labels.write_text("\n".join(lines))
    said = run("calibrate_threshold", labels, "--outside", tmp_path / "other", "--false-accept-rate", 0.1)
    assert "from 24 queries (photos of what the shop does not sell)" in said
    assert "notes.txt: " in said
    threshold = IndexVersion.objects.get().photo_threshold
    accepted = [
        bool(search(SearchQuery(photos=[read_photo(file.read_bytes())])).hits)
        for file in (tmp_path / "other").glob("*.jpg")
    ]
    assert threshold is not None
    assert sum(accepted) <= 2
    assert search(SearchQuery(photos=[read_photo((tmp_path / "i1.jpg").read_bytes())])).hits


def test_threshold_of_a_query__is_that_of_its_kind() -> None:
    version = IndexVersion(photo_threshold=0.4, text_threshold=0.1)
    photo = read_photo(b"x")
    assert threshold_of(SearchQuery(photos=[photo, photo]), version) == 0.4
    assert threshold_of(SearchQuery(texts=["a"]), version) == 0.1
    assert threshold_of(SearchQuery(photos=[photo], texts=["red"]), version) is None
    assert threshold_of(SearchQuery(like=["1"]), version) is None
    assert threshold_of(SearchQuery(photos=[photo], unlike=["1"]), version) is None
    assert threshold_of(SearchQuery(texts=["a"], score_threshold=0.0), version) == 0.0


def refused(words: Callable[[Path], list[Any]], said: str) -> Any:
    return pytest.param(words, said, id=said[:40])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        refused(lambda labels: ["evaluate_search", labels, "--by", "price"], "keyword filters: category, brand"),
        refused(lambda labels: ["evaluate_search", labels, "--index-version", 77], "There is no index version 77"),
        refused(lambda labels: ["evaluate_search", labels, "--compare", "x.json"], "can't be read"),
        refused(lambda labels: ["evaluate_search", labels, "--compare", labels], "was not written by `evaluate_search"),
        refused(lambda labels: ["evaluate_search", labels, "--json", "/nowhere/f"], "can't be written"),
        refused(lambda labels: ["evaluate_search", labels, "--split", "val"], "no column `split`"),
        refused(lambda labels: ["calibrate_threshold", labels], "at least 20 are needed"),
        refused(lambda labels: ["calibrate_threshold", labels, "--false-accept-rate", 5], "above 0 and below 1"),
        refused(lambda labels: ["calibrate_threshold", labels, "--outside", labels], "is not a folder"),
    ],
)
def test_wrong_words__are_one_clear_line(labels: Path, words: Callable[[Path], list[Any]], said: str) -> None:
    with pytest.raises(CommandError, match=said) as caught:
        run(*words(labels))
    assert "\n" not in str(caught.value)


def test_product_that_is_not_indexed__is_listed(labels: Path, make_product: Any) -> None:
    late = make_product(7)
    with labels.open("a") as file:
        file.write("\n2.jpg,sku-7\n3.jpg,sku-7")
    said = run("evaluate_search", labels)
    assert f"product {late.pk} is not in index version" in said
    assert "6 photo queries" in said


def test_not_one_usable_query__is_one_clear_line(shop: Any, tmp_path: Path) -> None:
    (tmp_path / "photos.csv").write_text("photo,product_id\ngone.jpg,sku-1")
    with pytest.raises(CommandError, match="No query is left to measure with. gone.jpg"):
        run("evaluate_search", tmp_path / "photos.csv")


def test_one_product_alone__is_said(labels: Path) -> None:
    labels.write_text("photo,product_id\n1.jpg,sku-1\n2.jpg,sku-1")
    assert "All queries look for one product" in run("evaluate_search", labels)


def test_without_an_index__the_error_names_what_to_do(make_product: Any, labels: Path) -> None:
    IndexVersion.objects.all().delete()
    with pytest.raises(CommandError, match="reindex_products"):
        run("evaluate_search", labels)
