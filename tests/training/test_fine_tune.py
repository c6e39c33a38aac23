"""`fine_tune` from labelled photos to a live checkpoint, bad input and interruptions included."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.management import CommandError, call_command

from example_shop.catalog import ProductCatalog
from example_shop.models import Product, ProductImage
from tests.conftest import own_environment
from tests.drawings import draw_photo, photo_bytes
from tests.tiny_checkpoints import tiny_clip, tiny_siglip
from visual_search.exceptions import InvalidLabels
from visual_search.index import building
from visual_search.models import IndexVersion
from visual_search.quality.variants import phone_like
from visual_search.search import SearchQuery, read_photo, search
from visual_search.training import data
from visual_search.training.output import REPORT, state_path
from visual_search.vision.encoder import TransformersEncoder

NAMES = ("red shoe", "green bag", "red bag", "green shoe")
QUICK = ("--epochs", "1", "--batch", "8")


class CatalogWithoutText(ProductCatalog):
    text = ""


@pytest.fixture
def products(make_product: Callable[..., Product]) -> list[Product]:
    return [make_product(number, name=name) for number, name in enumerate(NAMES, start=1)]


@pytest.fixture
def labels(products: list[Product], tmp_path: Path) -> Path:
    """Four photos of each product, in a file for evaluate_search."""
    return write_labels(tmp_path / "photos", [product.sku for product in products])


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return tiny_clip(tmp_path / "clip")


def write_labels(folder: Path, skus: Sequence[str], *, each: int = 4) -> Path:
    folder.mkdir()
    rows = []
    for sku in skus:
        picture = draw_photo((96, 96), seed=int(sku.split("-")[-1]) * 100)
        for number in range(each):
            name = f"{sku}_{number}.jpg"
            phone_like(picture, np.random.default_rng(number), strength=0.5).save(folder / name)
            rows.append((name, sku, "train" if number else "val"))
    return write_csv(folder / "photos.csv", rows)


def write_csv(path: Path, rows: Sequence[Sequence[str]], columns: str = "photo,product_id,split") -> Path:
    with path.open("w", newline="") as lines:
        csv.writer(lines).writerows([columns.split(","), *rows])
    return path


def fine_tune(out: Path, *options: Any) -> str:
    """Run the command in this process, in which other tests may have left their models."""
    said = StringIO()
    call_command("fine_tune", str(out), "--memory-gb", "64", *map(str, options), stdout=said, stderr=said)
    return said.getvalue()


def embed(folder: Path) -> tuple[str, Any, Any]:
    encoder = TransformersEncoder(folder)
    return encoder.fingerprint, encoder.embed_images([draw_photo()]), encoder.embed_texts(["a red shoe"])


@pytest.mark.parametrize("make", [tiny_clip, tiny_siglip], ids=["clip", "siglip"])
def test_fine_tune__writes_a_folder_that_the_checkpoint_setting_takes(
    make: Callable[[Path], Path], labels: Path, tmp_path: Path
) -> None:
    base, out = make(tmp_path / "base"), tmp_path / "out"
    said = fine_tune(out, "--base", base, "--photos", labels, "--lr", "1e-3", "--text-margin", "100", *QUICK)
    (old, old_image, old_text), (new, new_image, new_text) = embed(base), embed(out)
    assert old != new
    assert not np.allclose(old_image, new_image, atol=1e-4)
    assert (old_text == new_text).all()  # the text side is frozen
    report = json.loads((out / REPORT).read_text())
    assert report["fingerprint"] == new
    assert report["base_fingerprint"] == old
    assert len(report["products"]["learned"]) == 4
    assert f"fingerprint {new}" in said
    assert "text, learned products" in said
    assert not state_path(out).parent.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "media", "out", "photos"]


def test_same_seed__same_checkpoint__another_seed_another(labels: Path, clip: Path, tmp_path: Path) -> None:
    options = ("--base", clip, "--photos", labels, "--text-margin", "100", *QUICK)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fine_tune(tmp_path / name, *options, "--seed", seed)
    first, again, other = (embed(tmp_path / name)[0] for name in "abc")
    assert first == again != other


def test_fine_tuned_starter__goes_live_and_back(
    starter_folder: Path, labels: Path, index: Any, products: list[Product], tmp_path: Path
) -> None:
    index.drain()
    first = IndexVersion.objects.get()
    said = fine_tune(tmp_path / "out", "--photos", labels, "--split", "train", "--report-split", "val", *QUICK)
    assert f"From {starter_folder}: 12 photos" in said  # the active version's checkpoint
    assert "photos, learned products" in said
    call_command("build_version", checkpoint=str(tmp_path / "out"), stdout=StringIO())
    second = IndexVersion.objects.get(state=IndexVersion.State.BUILDING)
    call_command("switch_version", str(second.pk), stdout=StringIO())
    photo = read_photo((labels.parent / f"{products[0].sku}_0.jpg").read_bytes())
    assert search(SearchQuery(photos=[photo])).hits[0].product == products[0]
    with pytest.raises(CommandError, match=f"Index version {second.pk} .active. uses the checkpoint"):
        fine_tune(tmp_path / "out", "--photos", labels, "--force", *QUICK)
    building.roll_back()
    assert IndexVersion.objects.get(state=IndexVersion.State.ACTIVE) == first


def test_without_photos__learns_from_the_catalogue_and_says_so(
    products: list[Product], clip: Path, tmp_path: Path
) -> None:
    said = fine_tune(tmp_path / "out", "--base", clip, "--epochs", 1, "--batch", 512, "--text-margin", 100)
    assert "There are no labelled photos: the training uses phone-like variants of the catalogue's own pictures" in said
    assert "variants, learned products" in said
    assert (tmp_path / "out" / "config.json").exists()


def test_split__is_train_where_the_file_has_it(labels: Path, clip: Path, tmp_path: Path) -> None:
    said = fine_tune(tmp_path / "out", "--base", clip, "--photos", labels, "--text-margin", "100", *QUICK)
    assert "12 photos" in said  # of 16, of which 4 are `val`
    assert re.search(r"photos, learned products +4 ", said)


def test_report_split__of_what_is_learned_from__is_refused(labels: Path, clip: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        with pytest.raises(CommandError, match=f"--report-split '{split}' would evaluate with .* trained on"):
            fine_tune(tmp_path / "out", "--photos", labels, "--split", split, "--report-split", split)


def test_products_set_aside__say_when_to_stop(make_product: Callable[..., Product], clip: Path, tmp_path: Path) -> None:
    products = [make_product(number, name=f"{NAMES[number % 4]} {number}") for number in range(1, 13)]
    labels = write_labels(tmp_path / "photos", [product.sku for product in products])
    options = ("--products-held-out", "sku-1", "sku-2", "--products-stopping", "sku-3", "--text-margin", "100")
    said = fine_tune(
        tmp_path / "out", "--base", clip, "--photos", labels, *options, "--epochs", 9, "--batch", 8, "--lr", "0.9"
    )
    assert "9 products to learn, 1 for early stopping, 2 held out" in said
    assert "Before: stopping products: hit@10" in said
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    scores = [epoch["mrr"] for epoch in report["epochs"]]
    assert report["best_epoch"] == scores.index(max(scores)) + 1
    assert len(scores) == min(9, report["best_epoch"] + 2)
    assert re.search(r"photos, held-out products +8 ", said)
    assert set(report["products"]["held_out"]) == {str(product.pk) for product in products[:2]}


def test_head_only__moves_what_stands_above_the_blocks_alone(labels: Path, clip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    fine_tune(
        tmp_path / "out",
        "--base",
        clip,
        "--photos",
        labels,
        "--head-only",
        "--text-margin",
        "100",
        "--lr",
        "1e-3",
        *QUICK,
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (clip, tmp_path / "out"))
    moved = {name for name, weight in before.items() if not weight.equal(after[name])}
    assert moved == {
        "visual_projection.weight", "vision_model.post_layernorm.weight", "vision_model.post_layernorm.bias"
    }  # fmt: skip


def test_text_that_lost__writes_nothing_unless_forced(labels: Path, clip: Path, tmp_path: Path) -> None:
    options = (
        "--base",
        clip,
        "--photos",
        labels,
        *QUICK,
        "--text-margin",
        "-101",
    )  # it would have to gain 101 points
    with pytest.raises(CommandError, match="Nothing was written, because text search got worse") as failed:
        fine_tune(tmp_path / "out", *options)
    assert failed.value.returncode == 1
    assert not (tmp_path / "out").exists()
    said = fine_tune(tmp_path / "out", *options, "--resume", "--force")
    assert "Resuming after epoch 1." in said
    assert "Text search got worse: text, " in said
    assert embed(tmp_path / "out")[0] in said


def test_folder_that_is_there__is_not_replaced_unless_it_was_fine_tuned_and_forced(
    labels: Path, clip: Path, tmp_path: Path
) -> None:
    options = ("--base", clip, "--photos", labels, "--text-margin", "100", *QUICK)
    with pytest.raises(CommandError, match="holds no fine-tuned checkpoint"):
        fine_tune(clip, *options, "--force")
    fine_tune(tmp_path / "out", *options)
    first = embed(tmp_path / "out")[0]
    with pytest.raises(CommandError, match="or add --force"):
        fine_tune(tmp_path / "out", *options)
    fine_tune(tmp_path / "out", *options, "--force", "--seed", 1)
    assert embed(tmp_path / "out")[0] != first


def test_folder_that_can_not_be_made__says_so_before_the_work(labels: Path, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="can't be written: .*Name another folder"):
        fine_tune(tmp_path / "file" / "out", "--base", clip, "--photos", labels)


def test_resume__of_another_training__is_refused(labels: Path, clip: Path, tmp_path: Path) -> None:
    options = ("--base", clip, "--photos", labels, "--text-margin", "-101", *QUICK)
    with pytest.raises(CommandError):
        fine_tune(tmp_path / "out", *options)
    with pytest.raises(CommandError, match="used other photos, products, captions or options"):
        fine_tune(tmp_path / "out", *options, "--resume", "--lr", "1e-5")
    state_path(tmp_path / "out").write_bytes(b"half")
    with pytest.raises(CommandError, match="can't be read.*Leave out --resume"):
        fine_tune(tmp_path / "out", *options, "--resume")


def test_leftovers_of_a_killed_write__are_cleared_away(labels: Path, clip: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.0123.writing"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    fine_tune(tmp_path / "out", "--base", clip, "--photos", labels, "--text-margin", "100", *QUICK)
    assert not left.exists()
    assert embed(tmp_path / "out")


# Bad input


def test_photos_that_are_missing_or_broken__are_listed_and_left_out(labels: Path, clip: Path, tmp_path: Path) -> None:
    (labels.parent / "sku-1_1.jpg").unlink()
    (labels.parent / "sku-1_2.jpg").write_bytes(b"no picture")
    (labels.parent / "sku-2_1.jpg").write_bytes(photo_bytes()[:500])
    said = fine_tune(tmp_path / "out", "--base", clip, "--photos", labels, "--text-margin", "100", *QUICK)
    assert "left out: sku-1_1.jpg" in said
    assert "sku-1_2.jpg: " in said
    assert "sku-2_1.jpg: This photo is damaged" in said
    assert "9 photos" in said


def test_broken_catalogue_picture__is_listed_and_left_out(
    labels: Path, products: list[Product], clip: Path, tmp_path: Path
) -> None:
    Path(products[0].images.get().image.path).write_bytes(b"no picture")
    said = fine_tune(tmp_path / "out", "--base", clip, "--photos", labels, "--text-margin", "100", *QUICK)
    assert f"left out: product {products[0].pk}, " in said
    assert "3 products to learn" in said


def test_unknown_products__are_listed(labels: Path, clip: Path, tmp_path: Path) -> None:
    rows = [(f"sku-{n}_{m}.jpg", f"sku-{n}" if n < 4 else "gone", "") for n in range(1, 5) for m in range(4)]
    write_csv(labels, rows)
    said = fine_tune(tmp_path / "out", "--base", clip, "--photos", labels, "--text-margin", "100", *QUICK)
    assert "'gone'" in said
    assert "12 photos, 3 products to learn" in said


def test_no_usable_photo__says_why(labels: Path, clip: Path, tmp_path: Path) -> None:
    write_csv(labels, [("nowhere.jpg", "sku-1", "")])
    with pytest.raises(CommandError, match=r"None of the photos can be used. The first problem: nowhere.jpg"):
        fine_tune(tmp_path / "out", "--base", clip, "--photos", labels)


def test_file_without_the_columns__says_which_are_wanted(labels: Path, clip: Path, tmp_path: Path) -> None:
    write_csv(labels, [("a.jpg", "1")], columns="file,sku")
    with pytest.raises(CommandError, match="has the columns 'file', 'sku'; expected") as failed:
        fine_tune(tmp_path / "out", "--base", clip, "--photos", labels)
    assert isinstance(failed.value.__cause__, InvalidLabels)


def test_one_product_only__can_not_be_learned(labels: Path, clip: Path, tmp_path: Path) -> None:
    write_csv(labels, [(f"sku-1_{n}.jpg", "sku-1", "") for n in range(4)])
    with pytest.raises(CommandError, match="1 of 1 products are left to learn;"):
        fine_tune(tmp_path / "out", "--base", clip, "--photos", labels)


def test_one_caption_for_all__is_not_learned_from(labels: Path, clip: Path, tmp_path: Path) -> None:
    Product.objects.update(name="Thing", description="")
    said = fine_tune(tmp_path / "out", "--base", clip, "--photos", labels, *QUICK)
    assert "All products have the same caption, 'Thing.'" in said
    assert "text, " not in said


def test_catalogue_without_text__learns_from_pictures_alone(
    labels: Path, clip: Path, tmp_path: Path, settings: Any
) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"CATALOG": "tests.training.test_fine_tune.CatalogWithoutText"}
    said = fine_tune(tmp_path / "out", "--base", clip, "--photos", labels, *QUICK)
    assert "The catalogue has no text (Catalog.text)" in said
    assert (tmp_path / "out" / "config.json").exists()


def test_fewer_photos_than_a_batch__make_one_batch(labels: Path, clip: Path, tmp_path: Path) -> None:
    said = fine_tune(
        tmp_path / "out", "--base", clip, "--photos", labels, "--epochs", 1, "--batch", 64, "--text-margin", 100
    )
    assert "12 photos are fewer than a batch of 64: they make one batch." in said


def test_more_than_is_held_in_memory__is_drawn_from_and_said(
    labels: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "PHOTOS_MAX", 6)
    monkeypatch.setattr(data, "GALLERY_MAX", 3)
    write_csv(labels, [(f"sku-{n}_{m}.jpg", f"sku-{n}", "") for n in (1, 2) for m in range(4)])
    said = fine_tune(tmp_path / "out", "--base", clip, "--photos", labels, "--text-margin", "100", *QUICK)
    assert "Of 4 products, 3 are read: those with photos, and others" in said
    assert "Of 8 photos, 6 are used" in said
    assert "6 photos, 2 products to learn" in said


def test_no_picture_at_all__says_so(products: list[Product], clip: Path, tmp_path: Path) -> None:
    ProductImage.objects.all().delete()
    with pytest.raises(CommandError, match="No product of the catalogue has a picture"):
        fine_tune(tmp_path / "out", "--base", clip)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--products-held-out", "sku-9"], "The catalogue has no product with the id 'sku-9'"),
        (["--epochs", "0"], "--epochs must be 1 or more"),
        (["--split", "gone"], "has no rows of the split 'gone'"),
        (["--base", "/nowhere"], "There is no checkpoint folder"),
    ],
)
def test_wrong_option__says_what_is_wrong(
    options: list[str], said: str, labels: Path, clip: Path, tmp_path: Path
) -> None:
    with pytest.raises(CommandError, match=said):
        fine_tune(tmp_path / "out", "--base", clip, "--photos", labels, *options)


def test_damaged_weights__say_so_and_write_nothing(labels: Path, clip: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(clip / "model.safetensors")
    weights["visual_projection.weight"].fill_(float("nan"))
    save_file(weights, clip / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CommandError, match="embeddings that are not finite"):
        fine_tune(tmp_path / "out", "--base", clip, "--photos", labels, *QUICK)
    assert not (tmp_path / "out").exists()


# Interrupted, in a process of its own


class OwnShop:
    """The example shop in a process of its own, with a file for a database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.options = ["--base", str(tiny_clip(folder / "clip")), "--text-margin", "100"]
        self.options += ["--photos", str(write_labels(folder / "photos", [f"sku-{n}" for n in range(1, 7)], each=30))]
        self.options += ["--batch", "8", "--epochs", "5"]
        self.environment = own_environment(SHOP_STATE_DIR=str(folder / "state"), CHECKPOINT=str(folder / "clip"))
        rows = [(f"sku-{n}", NAMES[n % 4] + str(n), f"{n}.jpg") for n in range(1, 7)]
        for number in range(1, 7):
            (folder / f"{number}.jpg").write_bytes(photo_bytes((96, 96), seed=number * 100))
        self.manage("migrate", "-v0")
        self.manage("load_catalog", str(write_csv(folder / "products.csv", rows, "product_id,name,image")))

    def manage(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "manage.py", *words], env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, out: Path, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "manage.py", "fine_tune", str(out), *self.options, *options],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def own_shop(tmp_path: Path) -> OwnShop:
    (tmp_path / "state").mkdir()
    return OwnShop(tmp_path)


def wait_for_epoch(process: subprocess.Popen[str], out: Path, *, later_than: float = 0) -> float:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if state_path(out).exists() and (at := state_path(out).stat().st_mtime) > later_than:
            return at
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    pytest.fail("No epoch was finished in two minutes.")


def test_interrupt_and_kill__leave_no_checkpoint__and_resuming_gives_the_same_one(own_shop: OwnShop) -> None:
    straight, out = own_shop.folder / "straight", own_shop.folder / "out"
    own_shop.manage("fine_tune", str(straight), *own_shop.options)

    process = own_shop.start(out)
    at = wait_for_epoch(process, out)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted: no checkpoint was written." in errors
    assert "Traceback" not in errors
    assert not out.exists()

    process = own_shop.start(out, "--resume")
    wait_for_epoch(process, out, later_than=at)
    process.kill()
    process.wait()
    assert not out.exists()

    assert "Resuming after epoch" in own_shop.manage("fine_tune", str(out), *own_shop.options, "--resume")
    assert embed(out)[0] == embed(straight)[0]
    assert not [path for path in own_shop.folder.iterdir() if path.name.startswith(".out")]
