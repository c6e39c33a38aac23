"""Shoppers' photos: crop, token and digest."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from django.core import signing
from django.core.cache import cache
from hypothesis import given, settings, strategies
from PIL import Image

from tests import drawings
from tests.vision.test_images import difference
from visual_search.exceptions import InvalidQuery, PhotoRejected, Unavailable
from visual_search.search.photos import KEPT_PX, SALT, find_photo, keep_photo, parse_crop, read_photo
from visual_search.vision.images import MAX_ASPECT, MIN_SIDE_PX, Crop, decode_photo

SIZE = (640, 480)
PHOTOS = {turn: drawings.photo_bytes(SIZE, exif_orientation=turn, quality=95) for turn in range(1, 9)}
LARGE = drawings.photo_bytes((2400, 1800), quality=90)

shares = strategies.floats(0, 1, allow_nan=False)
crops = strategies.tuples(shares, shares, shares, shares).map(
    lambda edges: (*map(min, edges[:2], edges[2:]), *map(max, edges[:2], edges[2:]))
)


def decode(data: bytes, **options: Any) -> Image.Image:
    return decode_photo(data, **{"max_bytes": 20 * 2**20, "max_pixels": 50_000_000, **options})


@given(crop=crops, turn=strategies.sampled_from(range(1, 9)))
@settings(deadline=None, max_examples=150)
def test_crop__is_that_part_of_the_upright_photo(crop: Crop, turn: int) -> None:
    width, height = (crop[2] - crop[0]) * SIZE[0], (crop[3] - crop[1]) * SIZE[1]
    if min(width, height) < MIN_SIDE_PX:
        with pytest.raises(PhotoRejected) as caught:
            decode(PHOTOS[turn], crop=crop)
        assert caught.value.code == "crop_too_small"
        return
    part = decode(PHOTOS[turn], crop=crop)
    if max(width, height) > (MAX_ASPECT - 1) * min(width, height):
        return  # the ends of a strip are cut off
    assert abs(part.width - width) <= 2
    assert abs(part.height - height) <= 2
    # Compare with shifts by one pixel: a turned file rounds at its own edges.
    left, top = math.floor(crop[0] * SIZE[0]), math.floor(crop[1] * SIZE[1])
    shifted = [
        drawings.draw_photo(SIZE).crop((left + x, top + y, left + x + part.width, top + y + part.height))
        for x in (-1, 0, 1)
        for y in (-1, 0, 1)
    ]
    assert min(difference(part, wanted) for wanted in shifted) < 12  # the change that JPEG makes at a drawn edge


@given(crop=crops, target_px=strategies.integers(16, 900))
@settings(deadline=None, max_examples=60)
def test_crop_of_a_large_photo__keeps_the_pixels_that_the_encoder_wants(crop: Crop, target_px: int) -> None:
    shortest = min((crop[2] - crop[0]) * 2400, (crop[3] - crop[1]) * 1800)
    if shortest < MIN_SIDE_PX:
        return
    part = decode(LARGE, crop=crop, target_px=target_px)
    longest = max((crop[2] - crop[0]) * 2400, (crop[3] - crop[1]) * 1800)
    if longest <= 20 * shortest:  # the ends of a thinner strip are cut off
        assert min(part.size) >= min(target_px, int(shortest))


def test_whole_photo_as_a_crop__is_the_photo() -> None:
    assert decode(PHOTOS[6], crop=(0, 0, 1, 1)).tobytes() == decode(PHOTOS[6]).tobytes()


@pytest.mark.parametrize(
    "value", ["1,2", "a,b,c,d", "0,0,0,1", "0.5,0,0.5,1", "0.6,0,0.5,1", "-0.1,0,1,1", "0,0,1.1,1", "nan,0,1,1",
              "0,0,inf,1", "0,0,1,1,1", "9" * 10_000, "\0", "0;0;1;1", "0,0,1,"],
)  # fmt: skip
def test_crop_outside_the_photo__is_rejected(value: str) -> None:
    with pytest.raises(InvalidQuery) as caught:
        read_photo(b"", crop=parse_crop(value))
    assert caught.value.code == "invalid_crop"


@given(strategies.text(max_size=40))
def test_any_text_as_a_crop__is_parsed_or_rejected(value: str) -> None:
    try:
        crop = parse_crop(value)
        read_photo(b"", crop=crop)
    except InvalidQuery:
        return
    assert crop is None or 0 <= crop[0] < crop[2] <= 1


def test_digest__differs_by_bytes_and_by_crop() -> None:
    digests = [read_photo(data, crop=crop).digest for data in (b"a", b"b") for crop in (None, (0, 0, 1, 0.5))]
    assert len(set(digests)) == 4
    assert read_photo(b"a").digest == digests[0]


def test_kept_photo__is_found_by_its_token_without_its_metadata() -> None:
    exif = Image.Exif()
    exif[drawings.ORIENTATION_TAG] = 6
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 0.0)}  # where it was taken
    data = drawings.file_bytes(drawings.draw_photo(SIZE), "JPEG", exif=exif.tobytes(), comment=b"mine")
    kept = keep_photo(read_photo(data))
    assert (kept.width, kept.height, kept.seconds) == (480, 640, 600)
    found = find_photo(kept.token)
    opened = Image.open(io.BytesIO(found.data))
    assert (opened.size, opened.format) == ((480, 640), "JPEG")
    assert not opened.getexif()
    assert b"mine" not in found.data
    assert difference(found.decode(), decode(data)) < 6


def test_kept_photo__is_bounded_in_size() -> None:
    kept = keep_photo(read_photo(drawings.photo_bytes((4500, 3000))))
    assert (kept.width, kept.height) == (KEPT_PX, round(KEPT_PX * 2 / 3))
    assert find_photo(kept.token).decode().size == (kept.width, kept.height)


def test_kept_photo__can_be_cropped() -> None:
    token = keep_photo(read_photo(PHOTOS[1])).token
    assert find_photo(token, crop=(0.5, 0, 1, 1)).decode().size == (320, 480)


@pytest.mark.parametrize("token", ["", "nonsense", "a:b:c", "\0", "x" * 10_000, signing.dumps("name", salt="other")])
def test_forged_token__asks_for_the_photo_again(token: str) -> None:
    with pytest.raises(PhotoRejected) as caught:
        find_photo(token)
    assert caught.value.code == "photo_expired"


def test_lost_and_late_tokens__ask_for_the_photo_again(settings: Any) -> None:
    token = keep_photo(read_photo(PHOTOS[1])).token
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"PHOTO_TOKEN_SECONDS": -1}
    with pytest.raises(PhotoRejected, match="send it again"):
        find_photo(token)
    settings.VISUAL_SEARCH = settings.VISUAL_SEARCH | {"PHOTO_TOKEN_SECONDS": 600}
    find_photo(token)
    cache.clear()
    with pytest.raises(PhotoRejected, match="send it again"):
        find_photo(token)


def test_token__does_not_name_other_entries_of_the_cache() -> None:
    cache.set("secret", b"x")
    with pytest.raises(PhotoRejected):
        find_photo(signing.dumps("secret", salt=SALT))


def test_broken_photo__is_not_kept() -> None:
    with pytest.raises(PhotoRejected):
        keep_photo(read_photo(b"no photo"))


def test_cache_that_does_not_answer__is_a_503_for_tokens(settings: Any, tmp_path: Any) -> None:
    (tmp_path / "file").touch()
    settings.CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
            "LOCATION": tmp_path / "file" / "below",  # a folder that can't be created
        }
    }
    with pytest.raises(Unavailable):
        keep_photo(read_photo(PHOTOS[1]))
