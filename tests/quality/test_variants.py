"""Phone-like variants: reproducible, of the same size, and still showing the same object."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.drawings import draw_photo
from visual_search.quality.variants import drawn_ground, packshot_mask, phone_like, seen_askew, with_clutter


def packshot(colour: str = "red", ground: str = "white") -> Image.Image:
    image = Image.new("RGB", (200, 160), ground)
    ImageDraw.Draw(image).ellipse((50, 30, 150, 130), fill=colour)
    return image


def test_phone_like__same_dice_same_variant_other_dice_another() -> None:
    image = draw_photo()
    first, second, other = (phone_like(image, np.random.default_rng(seed)).tobytes() for seed in (1, 1, 2))
    assert first == second != other


@pytest.mark.parametrize("size", [(8, 8), (9, 300), (640, 480)])
def test_phone_like__keeps_the_size(size: tuple[int, int]) -> None:
    for seed in range(20):
        variant = phone_like(draw_photo().resize(size), np.random.default_rng(seed), grounds=[draw_photo(seed=1)])
        assert (variant.size, variant.mode) == (size, "RGB")


def test_strength__less_changes_less() -> None:
    image = draw_photo((256, 256))
    changes = [
        np.mean([difference(image, phone_like(image, np.random.default_rng(n), strength=strength)) for n in range(20)])
        for strength in (0.1, 0.5, 1.0)
    ]
    assert changes == sorted(changes)
    assert changes[0] < 0.6 * changes[2]


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


@pytest.mark.parametrize("ground", ["white", "black", "green"])
def test_packshot_mask__is_the_object(ground: str) -> None:
    mask = np.asarray(packshot(ground=ground) and packshot_mask(packshot(ground=ground))) > 128
    assert mask[80, 100]
    assert not mask[5, 5]
    assert mask.mean() == pytest.approx(np.pi * 50**2 / (200 * 160), rel=0.05)


def test_packshot_mask__keeps_what_is_ground_coloured_inside_the_object() -> None:
    image = packshot()
    ImageDraw.Draw(image).ellipse((90, 70, 110, 90), fill="white")
    mask = packshot_mask(image)
    assert mask is not None
    assert mask.getpixel((100, 80)) == 255


@pytest.mark.parametrize("image", [draw_photo(), Image.new("RGB", (64, 64), "white")], ids=["photo", "blank"])
def test_packshot_mask__of_no_packshot__is_none(image: Image.Image) -> None:
    assert packshot_mask(image) is None


def test_phone_like__of_a_packshot__stands_on_another_ground() -> None:
    corners = [
        phone_like(packshot(), np.random.default_rng(seed), grounds=[Image.new("RGB", (9, 9), "blue")]).getpixel((2, 2))
        for seed in range(40)
    ]
    white = [corner for corner in corners if min(corner) > 200]  # type: ignore[type-var, arg-type]
    assert len(white) < 20


def test_given_mask__is_taken() -> None:
    image = draw_photo((128, 128))
    nothing, everything = Image.new("L", image.size, 0), Image.new("L", image.size, 255)
    gone, kept = (
        np.mean([difference(image, phone_like(image, np.random.default_rng(n), strength=0.1, mask=mask))
                 for n in range(10)])
        for mask in (nothing, everything)
    )  # fmt: skip
    assert gone > 2 * kept


def test_seen_askew__shows_the_ground_only_outside_the_picture() -> None:
    red, blue = Image.new("RGB", (100, 100), "red"), Image.new("RGB", (100, 100), "blue")
    shares = [red_share(seen_askew(red, blue, np.random.default_rng(seed))) for seed in range(60)]
    assert min(shares) > 0.3
    assert max(shares) > 0.95


def red_share(image: Image.Image) -> Any:
    return (np.asarray(image)[..., 0] > 128).mean()


def test_clutter__reaches_in_from_the_edge_and_spares_the_middle() -> None:
    image = Image.new("RGB", (200, 200), (1, 2, 3))
    cluttered = [np.asarray(with_clutter(image, np.random.default_rng(seed))) for seed in range(20)]
    assert all((picture != (1, 2, 3)).any() for picture in cluttered)
    assert all((picture[90:110, 90:110] == (1, 2, 3)).all() for picture in cluttered)


def test_drawn_ground__has_the_size_that_was_asked_for() -> None:
    assert drawn_ground((33, 21), np.random.default_rng(0)).size == (33, 21)
