"""The decoding of every file that a shopper or a shop can provide."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat, features

from tests import ROOT, drawings
from visual_search.exceptions import ImageUnreadable, PhotoRejected
from visual_search.vision import images
from visual_search.vision.images import MAX_ASPECT, content_digest, decode_photo, open_product_image
from visual_search.vision.signatures import REPEAT_LIMITS

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")
PHOTO_FORMATS = ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", pytest.param("AVIF", marks=needs_avif)]


def decode(data: Any, **limits: Any) -> Image.Image:
    return decode_photo(data, **{"max_bytes": 20 * 2**20, "max_pixels": 50_000_000, **limits})


def open_product(data: bytes, **limits: Any) -> Image.Image:
    return open_product_image(io.BytesIO(data), **{"max_pixels": 50_000_000, **limits})


def rejection(data: Any, **limits: Any) -> PhotoRejected:
    with pytest.raises(PhotoRejected) as caught:
        decode(data, **limits)
    return caught.value


def difference(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference of two images' channels, 0 to 255."""
    assert one.size == other.size
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3


def assert_colour(image: Image.Image, at: tuple[int, int], wanted: tuple[int, int, int], *, within: int = 6) -> None:
    found = image.getpixel(at)
    assert isinstance(found, tuple)
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= within, f"{found} is not {wanted}"


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# Formats


@pytest.mark.parametrize("format", PHOTO_FORMATS)
def test_decode_photo__accepted_format_shows_the_picture(format: str) -> None:
    image = decode(drawings.photo_bytes((320, 240), format=format, seed=3))
    assert image.mode == "RGB"
    assert difference(image, drawings.draw_photo((320, 240), seed=3)) < 8


def test_decode_photo__phone_file_of_two_pictures_shows_the_first() -> None:
    second = Image.new("RGB", (320, 240), "blue")
    data = drawings.photo_bytes((320, 240), format="MPO", save_all=True, append_images=[second])
    assert difference(decode(data), drawings.draw_photo((320, 240))) < 8


def test_decode_photo__reads_a_stream() -> None:
    assert decode(io.BytesIO(drawings.photo_bytes((320, 240)))).size == (320, 240)


@pytest.mark.parametrize("junk", [b"\0" * 1000, b"\0\0\0\x18ftypmp42" + bytes(5000), b"SEFT" * 9])
def test_decode_photo__what_phones_append_is_ignored(junk: bytes) -> None:
    assert difference(decode(drawings.photo_bytes((320, 240)) + junk), drawings.draw_photo((320, 240))) < 8


@pytest.mark.parametrize("kind", sorted(drawings.TWO_FORMATS))
def test_decode_photo__polyglot_is_rejected(kind: str) -> None:
    assert rejection(drawings.TWO_FORMATS[kind]()).code == "photo_ambiguous"


def test_decode_photo__several_jpegs_in_one_file_are_the_first_of_them() -> None:
    data = drawings.photo_bytes((320, 240)) + drawings.photo_bytes((320, 240), seed=1)  # as in MPO
    assert difference(decode(data), drawings.draw_photo((320, 240))) < 8


def test_decode_photo__is_a_plain_image_of_its_own() -> None:
    assert type(decode(drawings.photo_bytes())) is Image.Image


# Colours


def test_decode_photo__cmyk_red_stays_red() -> None:
    data = drawings.plain_bytes((0, 255, 255, 0), mode="CMYK", format="JPEG", quality=95)
    assert_colour(decode(data), (16, 12), RED)


@pytest.mark.parametrize(
    "values", [(0x8080,), (0x8080,) * 3, (0x8080, 0x8080, 0x8080, 0xFFFF)], ids=["L", "RGB", "RGBA"]
)
def test_decode_photo__sixteen_bits_keep_mid_grey(values: tuple[int, ...]) -> None:
    assert_colour(decode(drawings.deep_png(values)), (16, 12), (128, 128, 128), within=0)


def test_decode_photo__sixteen_bits_with_a_transparent_grey_keep_the_others() -> None:
    row = b"\0" + b"\x40\x40" * 32
    key = drawings.png_chunk(b"tRNS", b"\xff\xff")
    rows = zlib.compress(row * 32)
    data = drawings.png_bytes((32, 32), bits=16, colour_type=0, rows=rows, chunks=key)
    assert_colour(decode(data), (16, 12), (64, 64, 64), within=0)


def test_decode_photo__sixteen_bits_with_a_transparent_colour_keep_the_others() -> None:
    row = b"\0" + b"\x80\x80\0\0\0\0" * 32
    key = drawings.png_chunk(b"tRNS", b"\xff\xff\xff\xff\xff\xff")
    rows = zlib.compress(row * 32)
    data = drawings.png_bytes((32, 32), bits=16, colour_type=2, rows=rows, chunks=key)
    assert_colour(decode(data), (16, 12), (128, 0, 0), within=0)


@pytest.mark.parametrize("draw", [drawings.rgba_png_with_hole, drawings.palette_png_with_hole])
def test_decode_photo__transparent_becomes_white(draw: Any) -> None:
    image = decode(draw())
    assert_colour(image, (4, 12), RED, within=0)
    assert_colour(image, (28, 12), WHITE, within=0)


def test_decode_photo__half_transparent_grey_is_mixed_with_white() -> None:
    assert_colour(decode(drawings.plain_bytes((0, 128), mode="LA")), (4, 4), (127, 127, 127), within=1)


def test_decode_photo__palette_keeps_its_colours() -> None:
    assert_colour(decode(drawings.file_bytes(Image.new("RGB", (32, 24), RED).quantize(4), "PNG")), (4, 4), RED)


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (1, 255)])
def test_decode_photo__one_bit_is_black_or_white(value: int, grey: int) -> None:
    assert_colour(decode(drawings.plain_bytes(value, mode="1")), (4, 4), (grey,) * 3, within=0)


@pytest.mark.parametrize("format", ["GIF", "WEBP"])
def test_decode_photo__animation_shows_its_first_frame(format: str) -> None:
    assert_colour(decode(drawings.animation(format)), (16, 12), RED)


def test_decode_photo__embedded_profile_is_applied() -> None:
    data = drawings.plain_bytes(RED, icc_profile=drawings.swapped_profile())
    assert_colour(decode(data), (4, 4), BLUE)


@pytest.mark.parametrize("profile", [b"no profile at all", drawings.swapped_profile()[:200]], ids=["junk", "truncated"])
def test_decode_photo__broken_profile_is_ignored(profile: bytes) -> None:
    assert_colour(decode(drawings.plain_bytes(RED, icc_profile=profile)), (4, 4), RED, within=0)


def test_decode_photo__profile_of_another_mode_is_ignored() -> None:
    data = drawings.plain_bytes(128, mode="L", icc_profile=drawings.swapped_profile())
    assert_colour(decode(data), (4, 4), (128, 128, 128), within=0)


# Orientation and metadata


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("target_px", [None, 120])
def test_decode_photo__exif_orientation_is_upright(orientation: int, target_px: int | None) -> None:
    data = drawings.photo_bytes((640, 480), exif_orientation=orientation)
    upright = drawings.draw_photo((640, 480))
    image = decode(data, target_px=target_px)
    assert image.size == ((160, 120) if target_px else (640, 480))
    assert difference(image, upright.resize(image.size, Image.Resampling.BOX)) < 8


def test_decode_photo__exif_orientation_moves_the_marked_corner() -> None:
    stored = Image.new("RGB", (64, 32), "blue")
    stored.paste("red", (0, 0, 16, 16))  # top left; orientation 6 shows it rotated clockwise, at the top right
    image = decode(drawings.file_bytes(stored, "PNG", exif=drawings.exif_block(6)))
    assert image.size == (32, 64)
    assert_colour(image, (30, 2), RED)
    assert_colour(image, (2, 2), BLUE)


@pytest.mark.parametrize("format", ["PNG", "WEBP", pytest.param("AVIF", marks=needs_avif)])
def test_decode_photo__exif_orientation_counts_in_every_format(format: str) -> None:
    image = decode(drawings.photo_bytes((320, 240), format=format, exif_orientation=6))
    assert difference(image, drawings.draw_photo((320, 240))) < 8


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0MM\0*",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\xff\xff\xff\xff\xff" * 5,
        drawings.exif_block(77),
        drawings.exif_block(6)[:-14],
        b"Exif\0\0" + b"junk" * 50,
    ],
)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore:(Corrupt EXIF|Truncated File|Tag data)")
def test_decode_photo__broken_exif_leaves_the_photo_as_it_is(exif: bytes, format: str) -> None:
    image = decode(drawings.photo_bytes((320, 240), format=format, exif=exif))
    assert difference(image, drawings.draw_photo((320, 240))) < 8


@pytest.mark.parametrize("orientation", [1, 6])
def test_decode_photo__keeps_no_metadata(orientation: int) -> None:
    profile = drawings.swapped_profile()
    image = decode(drawings.photo_bytes(exif_orientation=orientation, icc_profile=profile, comment=b"at home"))
    assert image.info == {}
    assert dict(image.getexif()) == {}
    written = drawings.file_bytes(image, "JPEG")
    assert b"camera" not in written
    assert b"at home" not in written
    assert b"ICC_PROFILE" not in written


# Sizes


@pytest.mark.parametrize("target_px", [30, 100, 224, 239, 240, 241, 480, 960])
@pytest.mark.parametrize("format", ["JPEG", "MPO", "PNG", "WEBP"])
def test_decode_photo__shortest_side_is_never_below_the_target(format: str, target_px: int) -> None:
    shortest = min(decode(drawings.photo_bytes((1001, 481), format=format), target_px=target_px).size)
    assert min(target_px, 481) <= shortest
    assert shortest < 2 * target_px + 1 or shortest == 481


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_decode_photo__reduced_photo_shows_the_same_picture(format: str) -> None:
    image = decode(drawings.photo_bytes((1280, 960), format=format), target_px=120)
    assert difference(image, drawings.draw_photo((1280, 960)).resize(image.size, Image.Resampling.BOX)) < 6


def test_decode_photo__strip_keeps_its_middle() -> None:
    strip = Image.new("RGB", (10_000, 10), "blue")
    strip.paste("red", (4_950, 0, 5_050, 10))
    image = decode(drawings.file_bytes(strip, "PNG"))
    assert image.size == (10 * MAX_ASPECT, 10)
    assert_colour(image, (100, 5), RED)


@pytest.mark.parametrize("size", [(5, 10_000), (10_001, 8), (9, 10_001)])
def test_decode_photo__extreme_strip_is_cut_or_rejected(size: tuple[int, int]) -> None:
    data = drawings.plain_bytes(RED, size=size)
    if min(size) < 8:
        assert rejection(data).code == "photo_too_small"
    else:
        assert max(decode(data, target_px=224).size) <= MAX_ASPECT * min(size)


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_decode_photo__below_eight_pixels_is_too_small(size: tuple[int, int]) -> None:
    error = rejection(drawings.plain_bytes(RED, size=size))
    assert (error.code, str(error)) == (
        "photo_too_small",
        "This photo is too small. Use one of at least 8 pixels on each side.",
    )


def test_decode_photo__eight_pixels_are_enough() -> None:
    assert decode(drawings.plain_bytes(RED, size=(8, 8)), target_px=224).size == (8, 8)


# Rejections


@pytest.mark.parametrize("data", [b"", io.BytesIO()])
def test_decode_photo__zero_bytes_are_empty(data: Any) -> None:
    assert rejection(data).code == "photo_empty"


def test_decode_photo__too_many_bytes_names_the_limit() -> None:
    error = rejection(bytes(3 * 2**20 + 1), max_bytes=3 * 2**20)
    assert (error.code, str(error)) == ("photo_too_large", "This photo is too large. Use one of at most 3 MB.")


def test_decode_photo__exactly_the_limit_is_accepted() -> None:
    data = drawings.photo_bytes((64, 64))
    assert decode(data, max_bytes=len(data)).size == (64, 64)


def test_decode_photo__reads_one_byte_more_than_the_limit_of_a_stream() -> None:
    stream = io.BytesIO(bytes(10_000))
    assert rejection(stream, max_bytes=1_000).code == "photo_too_large"
    assert stream.tell() == 1_001


@pytest.mark.parametrize("orientation", [None, 6])
def test_decode_photo__heic_is_decoded_where_its_package_is(orientation: int | None) -> None:
    pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    data = drawings.heic_bytes((320, 240), orientation=orientation)
    image = decode(data)
    assert difference(image, drawings.draw_photo((320, 240))) < 8
    assert not image.info


def test_decode_photo__heic_is_rejected_by_name_where_its_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # simulates a missing package
    images._has_heif.cache_clear()
    try:
        error = rejection(drawings.heic_header())
    finally:
        images._has_heif.cache_clear()
    assert error.code == "photo_unsupported"
    assert str(error).startswith("HEIC files are not supported. Use a photo in JPEG")
    assert "HEIC" not in str(error).partition("Use")[2]


def test_decode_photo__broken_heic_is_damaged() -> None:
    pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    assert rejection(drawings.heic_header()).code == "photo_damaged"


@pytest.mark.parametrize("kind", drawings.NOT_IMAGES)
def test_decode_photo__not_a_photo_names_the_accepted_formats(kind: str) -> None:
    error = rejection(drawings.NOT_IMAGES[kind])
    assert error.code == "photo_unsupported"
    assert "JPEG, PNG, WebP, GIF, BMP" in str(error)


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_decode_photo__known_but_unsupported_format_is_named(kind: str) -> None:
    assert str(rejection(drawings.NOT_IMAGES[kind])).startswith(f"{kind.upper()} files are not supported.")


@pytest.mark.parametrize("format", ["TIFF", "PPM", "ICO", "TGA", "JPEG2000", "PCX", "EPS"])
def test_decode_photo__format_outside_the_list_is_unsupported(format: str) -> None:
    assert rejection(drawings.photo_bytes((64, 64), format=format)).code == "photo_unsupported"


@pytest.mark.parametrize("share", [0.01, 0.2, 0.6, 0.95])
@pytest.mark.parametrize("format", PHOTO_FORMATS)
def test_decode_photo__truncated_is_damaged(format: str, share: float) -> None:
    data = drawings.photo_bytes((320, 240), format=format)
    assert rejection(data[: max(16, round(share * len(data)))]).code == "photo_damaged"


def test_decode_photo__text_chunk_bomb_is_damaged() -> None:
    assert rejection(drawings.text_bomb_png()).code == "photo_damaged"


def test_decode_photo__repeated_jpeg_scans_are_damaged() -> None:
    _, at_most, _ = REPEAT_LIMITS["JPEG"]
    assert rejection(drawings.scan_bomb_jpeg(at_most)).code == "photo_damaged"


def test_decode_photo__repeated_png_profiles_are_damaged() -> None:
    _, at_most, _ = REPEAT_LIMITS["PNG"]
    assert rejection(drawings.profile_bomb_png(at_most + 1)).code == "photo_damaged"


def test_decode_photo__progressive_jpeg_is_accepted() -> None:
    assert difference(decode(drawings.photo_bytes(progressive=True)), drawings.draw_photo()) < 8


def test_decode_photo__rejection_keeps_the_cause_for_the_log() -> None:
    error = rejection(drawings.photo_bytes()[:2_000])
    assert "truncated" in str(error.__cause__)


@pytest.mark.parametrize("side_px", [7_500, 10_000, 20_000], ids=["PIL allows it", "PIL warns", "PIL refuses"])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decode_photo__bomb_has_too_many_pixels(side_px: int) -> None:
    error = rejection(drawings.bomb_png(side_px))
    assert error.code == "photo_too_many_pixels"
    assert str(error) == "This photo has too many pixels. Use one of at most 50 megapixels."


@pytest.mark.filterwarnings("error")
def test_decode_photo__bomb_warning_turned_into_an_error_does_not_leak() -> None:
    assert rejection(drawings.bomb_png(10_000)).code == "photo_too_many_pixels"


def test_bomb_png__is_small_on_disk() -> None:
    assert len(drawings.bomb_png(10_000)) < 13_000


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc to read a process's memory from")
def test_decode_photo__bomb_is_rejected_before_it_is_decoded() -> None:
    # The control: with a generous limit, the same bomb does not fit into memory.
    printed = run_python("""
import resource
from PIL import Image
from tests import drawings
from visual_search.exceptions import PhotoRejected
from visual_search.vision.images import decode_photo

def outcome(data, max_pixels):
    try:
        return decode_photo(data, max_bytes=10**6, max_pixels=max_pixels).size
    except PhotoRejected as error:
        return error.code

bomb = drawings.bomb_png(9_000)
decode_photo(drawings.plain_bytes("red"), max_bytes=10**6, max_pixels=10**6)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 40 * 2**20,) * 2)
print(outcome(bomb, 50_000_000), outcome(bomb, 100_000_000))
""")
    assert printed == "photo_too_many_pixels photo_damaged"


@pytest.mark.filterwarnings("ignore")  # PIL warns about odd blocks; only exceptions matter here
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_decode_photo__mutated_file_is_an_image_or_rejected(format: str) -> None:
    dice = random.Random(2025)
    orientation = None if format in ("GIF", "BMP") else 6
    valid = drawings.photo_bytes((96, 64), format=format, exif_orientation=orientation)
    for _ in range(300):
        mode_or_code = outcome(mutate(valid, dice), target_px=dice.choice([None, 16]))
        assert mode_or_code in ("RGB", "photo_damaged", "photo_unsupported", "photo_too_small", "photo_too_many_pixels")


def outcome(data: bytes, **limits: Any) -> str:
    """Return the mode of the image, or the code of the rejection."""
    try:
        return decode(data, **limits).mode
    except PhotoRejected as error:
        return error.code


def mutate(data: bytes, dice: random.Random) -> bytes:
    """Overwrite, remove or repeat a few bytes, more often near the beginning, where the structure is."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 8)):
        reach = len(changed) if dice.random() < 0.4 else min(len(changed), 200)
        at, length = dice.randrange(reach), dice.randint(1, 12)
        kind = dice.random()
        if kind < 0.7:
            changed[at : at + length] = dice.choice([dice.randbytes(length), bytes(length), b"\xff" * length])
        elif kind < 0.85:
            del changed[at : at + length]
        else:
            changed[at:at] = changed[at : at + 20 * length]
    return bytes(changed[: dice.randrange(1, len(changed))] if dice.random() < 0.1 else changed)


# The shop's own images


def test_open_product_image__shows_the_picture() -> None:
    assert difference(open_product(drawings.photo_bytes(exif_orientation=8)), drawings.draw_photo()) < 8


def test_open_product_image__tiff_is_accepted_and_turned_once() -> None:
    image = open_product(drawings.photo_bytes((320, 240), format="TIFF", exif_orientation=6))
    assert difference(image, drawings.draw_photo((320, 240))) < 1


@pytest.mark.parametrize(
    ("mode", "value", "grey"), [("F", 0.5, 127), ("F", 128.0, 128), ("I", 0x8080, 128), ("I", 128, 128)]
)
def test_open_product_image__deep_tiff_keeps_mid_grey(mode: str, value: float, grey: int) -> None:
    full_scale = {0.5: 1.0, 0x8080: 0xFFFF}.get(value, 255)
    image = Image.new(mode, (32, 24), value)
    image.paste(full_scale, (0, 0, 1, 1))
    assert_colour(open_product(drawings.file_bytes(image, "TIFF")), (16, 12), (grey,) * 3, within=1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e30])
def test_open_product_image__odd_floats_do_not_crash(value: float) -> None:
    assert open_product(drawings.plain_bytes(value, mode="F", format="TIFF")).size == (32, 24)


def test_open_product_image__reads_from_the_beginning_and_leaves_the_file_open() -> None:
    file = io.BytesIO(drawings.photo_bytes((64, 64)))
    file.seek(500)
    assert open_product_image(file, max_pixels=10_000).size == (64, 64)
    assert not file.closed


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (drawings.NOT_IMAGES["text"], "not an image; accepted formats are JPEG"),
        (drawings.NOT_IMAGES["pdf"], "PDF; accepted formats are JPEG"),
        (drawings.photo_bytes()[:2_000], "damaged JPEG: image file is truncated"),
        (drawings.photo_bytes(format="PNG")[:2_000], "damaged PNG: image file is truncated"),
        (drawings.photo_bytes(format="GIF")[:10], "damaged GIF: its header can't be read"),
        (drawings.scan_bomb_jpeg(100), "damaged JPEG: 110 scans; at most 64"),
        (drawings.bomb_png(7_500), "56.2 megapixels; at most 50"),
        (drawings.plain_bytes(RED, size=(1, 1)), "1 x 1 pixels; at least 8 on each side"),
    ],
    ids=["empty", "text", "pdf", "jpeg", "png", "header", "scans", "bomb", "tiny"],
)
def test_open_product_image__unreadable_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(ImageUnreadable) as caught:
        open_product(data)
    assert str(caught.value).startswith(reason)
    assert caught.value.code == "image_unreadable"


# The rest


def test_content_digest__is_the_sha256_of_the_bytes() -> None:
    assert content_digest(b"photo") == hashlib.sha256(b"photo").hexdigest()


def test_images__importing_it_imports_neither_pil_nor_numpy() -> None:
    printed = run_python(
        "import sys, visual_search.vision.images\nprint({'PIL', 'numpy', 'django'} & set(sys.modules))"
    )
    assert printed == "set()"


def test_photo_bytes__same_seed_same_bytes_other_seed_other_picture() -> None:
    assert drawings.photo_bytes(seed=1) == drawings.photo_bytes(seed=1)
    pictures = [drawings.draw_photo(seed=seed) for seed in range(6)]
    pairs = [(a, b) for i, a in enumerate(pictures) for b in pictures[:i]]
    assert min(difference(a, b) for a, b in pairs) > 15
