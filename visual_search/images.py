"""Turn any accepted file into an upright RGB image without metadata.

Two doors, one pipeline: `decode_photo` for what a shopper uploads, `open_product_image` for what the shop
stores. Nothing is decoded before the size in the file's header has been checked. Pure functions on PIL,
imported inside them: this module knows no Django model, no request and no setting.

Peak memory, measured at 49 megapixels: 16 bytes a pixel for WebP, 8 to 12 for the others, below 1 for a JPEG that is
decoded smaller (3 if it is progressive).
"""

from __future__ import annotations

import hashlib
import io
import re
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, cast

from visual_search.exceptions import ImageUnreadable, PhotoRejected

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

MIN_SIDE_PX = 8  # spacers and tracking pixels; no encoder tells products apart by fewer
MAX_ASPECT = 20  # a 6,250,000 x 8 image is 50 megapixels, but 39 gigapixels once its short side is 224

# PIL opens MPO, the phones' JPEG with several pictures, as JPEG.
PHOTO_FORMATS = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP", "GIF": "GIF", "BMP": "BMP", "AVIF": "AVIF"}
PRODUCT_FORMATS = {**PHOTO_FORMATS, "TIFF": "TIFF"}

SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG",
    "WebP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "AVIF": rb"....ftypavi[fs]",
    "TIFF": rb"II\*\0|MM\0\*",
    "HEIC": rb"....ftyp(hei|hev|mif1|msf1)",
    "SVG": rb"[^<]{0,3}\s*(<(\?xml|!--|!DOCTYPE svg)[^<]*)*<svg",
    "PDF": rb"%PDF-",
}
HEAD_BYTES = 1024  # an SVG may begin with comments

# What hostile files repeat: it costs them few bytes and us much time. 200 scans in a 200 KB JPEG of 49 megapixels kept
# a core busy for 7.6 s, 19 MB of PNG profiles for 44 s. A usual file has 1 to 10 scans and one profile. A scan's
# length must agree with its number of channels, so picture data and embedded videos don't match by chance.
REPEATS = {
    "JPEG": (re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)"), 64, "scans"),
    "PNG": (re.compile(rb"iCCP"), 8, "colour profiles"),
}

# What counts as white where the file does not say: the smallest of these that holds the highest value.
FULL_SCALES = {"I": (255, 65_535, 2**31 - 1), "F": (1.0, 255.0, 65_535.0)}


def decode_photo(data: bytes | BinaryIO, *, max_bytes: int, max_pixels: int, target_px: int | None = None) -> Image:
    """Return a shopper's upload as an upright RGB image without metadata.

    data: the file, or a stream that is read from where it stands, at most max_bytes + 1 of it.
    target_px: the shortest side that the caller needs. Larger photos are decoded smaller, never below it.
    Raises PhotoRejected with a stable code: photo_empty, photo_too_large, photo_too_many_pixels,
    photo_too_small, photo_unsupported or photo_damaged.
    """
    content = data if isinstance(data, bytes) else data.read(max_bytes + 1)
    if len(content) > max_bytes:
        limit = f"{max_bytes / 2**20:.3g} MB"
        raise PhotoRejected(f"This photo is too large. Use one of at most {limit}.", code="photo_too_large")
    try:
        return _decode(io.BytesIO(content), PHOTO_FORMATS, max_pixels=max_pixels, target_px=target_px)
    except _RefusalError as refusal:
        raise PhotoRejected(refusal.sentence, code=refusal.code) from refusal


def open_product_image(file: BinaryIO, *, max_pixels: int, target_px: int | None = None) -> Image:
    """Return one of the shop's own images as `decode_photo` does; TIFF is accepted too.

    file: seekable; read from its beginning and left open.
    Raises ImageUnreadable with the reason, for the shop's staff.
    """
    try:
        return _decode(file, PRODUCT_FORMATS, max_pixels=max_pixels, target_px=target_px)
    except _RefusalError as refusal:
        raise ImageUnreadable(refusal.reason) from refusal


def content_digest(data: bytes) -> str:
    """Return the SHA-256 of the file's bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


class _RefusalError(Exception):
    """Why a file is no image for us: a code, a sentence for a shopper, the reason for the shop's staff."""

    def __init__(self, code: str, sentence: str, *, reason: str) -> None:
        super().__init__(reason)
        self.code, self.sentence, self.reason = code, sentence, reason


def _decode(file: BinaryIO, formats: dict[str, str], *, max_pixels: int, target_px: int | None) -> Image:
    """Open, check, decode and convert; every way in which this fails is a refusal."""
    from PIL import Image

    file.seek(0)
    head = file.read(HEAD_BYTES)
    if not head:
        raise _RefusalError("photo_empty", "This photo is empty. Choose another one.", reason="empty file")
    found = next((name for name, start in SIGNATURES.items() if re.match(start, head, re.DOTALL)), None)
    if found in REPEATS:
        _check_repeats(head + file.read(), found)
    try:
        opened = Image.open(file, formats=list(formats))
        _check_size(opened.size, max_pixels)
        return _upright_rgb(opened, target_px)
    except _RefusalError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(str(error), max_pixels) from error
    # Broad, because PIL's plugins raise almost anything on hostile bytes: OSError, SyntaxError, EOFError, struct.error,
    # OverflowError, ZeroDivisionError, and MemoryError where a header lies.
    except Exception as error:
        raise _explain(error, found, formats) from error


def _check_repeats(content: bytes, kind: str) -> None:
    """Refuse a file that repeats what makes the decoder work."""
    piece, at_most, name = REPEATS[kind]
    found = len(piece.findall(content))
    if found > at_most:
        raise _damaged(f"damaged {kind}: {found} {name}; at most {at_most}")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Refuse by the size in the header, before anything is decoded."""
    width, height = size
    if width * height > max_pixels:
        raise _too_many_pixels(f"{width * height / 1e6:.3g} megapixels", max_pixels)
    if min(size) < MIN_SIDE_PX:
        raise _RefusalError(
            "photo_too_small",
            f"This photo is too small. Use one of at least {MIN_SIDE_PX} pixels on each side.",
            reason=f"{width} x {height} pixels; at least {MIN_SIDE_PX} on each side",
        )


def _too_many_pixels(found: str, max_pixels: int) -> _RefusalError:
    limit = f"{max_pixels / 1e6:.3g}"
    sentence = f"This photo has too many pixels. Use one of at most {limit} megapixels."
    return _RefusalError("photo_too_many_pixels", sentence, reason=f"{found}; at most {limit}")


def _damaged(reason: str) -> _RefusalError:
    return _RefusalError("photo_damaged", "This photo is damaged or incomplete. Choose another one.", reason=reason)


def _explain(error: Exception, found: str | None, formats: dict[str, str]) -> _RefusalError:
    """Tell a damaged file of an accepted format from one that was never accepted. found: what the signature says."""
    from PIL import UnidentifiedImageError, features

    names = [name for name in formats.values() if name != "AVIF" or features.check("avif")]
    if found in names:
        unidentified = isinstance(error, UnidentifiedImageError)  # its text is the address of an object
        detail = "its header can't be read" if unidentified else str(error) or type(error).__name__
        return _damaged(f"damaged {found}: {detail}")
    accepted = f"{', '.join(names[:-1])} or {names[-1]}"
    what = f"{found} files can't be searched with" if found else "This file is not a photo that we can read"
    reason = f"{found or 'not an image'}; accepted are {accepted}"
    return _RefusalError("photo_unsupported", f"{what}. Use a photo in {accepted}.", reason=reason)


def _upright_rgb(opened: Image, target_px: int | None) -> Image:
    """Decode and convert. Each step works on as few pixels as the ones before have left."""
    if target_px:
        opened.draft(None, (target_px, target_px))  # JPEG only: decodes at 1/2, 1/4 or 1/8, never below the target
    opened.load()
    turn, profile = _turn(opened), opened.info.get("icc_profile")
    image = _middle(_opaque(opened))
    if target_px and min(image.size) >= 2 * target_px:
        image = image.reduce(min(image.size) // target_px)
    image = _to_srgb(image, profile)
    if turn is not None:
        image = image.transpose(turn)
    image.info.clear()
    return image


def _turn(image: Image) -> Transpose | None:
    """Return the transposition that the EXIF block asks for; a broken block asks for none."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        return turns.get(image.getexif().get(0x0112, 1))
    except Exception:  # as broad as in _decode, and for its reason; here the picture itself is fine
        return None


def _opaque(image: Image) -> Image:
    """Return the image with 8 bits a channel on white: L, RGB or CMYK, the modes that have colour profiles."""
    from PIL.Image import new

    if image.mode.startswith(("I", "F")):
        return _eight_bits(image)
    if image.has_transparency_data:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        canvas = new("RGB", image.size, "white")
        canvas.paste(layer, mask=layer)
        return canvas
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _eight_bits(image: Image) -> Image:
    """Scale 16-bit, 32-bit and float greys; PIL's own conversion would clip them to white."""
    if image.mode.startswith("I;16"):
        full_scale: float = 65_535
        image = image.convert("I")
    else:
        _, highest = cast("tuple[float, float]", image.getextrema())  # one channel, one pair
        full_scale = next((scale for scale in FULL_SCALES[image.mode] if highest <= scale), highest)
    return image.point(lambda value: value * (255 / full_scale)).convert("L")


def _middle(image: Image) -> Image:
    """Cut the ends off a strip, so that resizing its short side later can't make it huge."""
    width, height = image.size
    longest = MAX_ASPECT * min(width, height)
    left, top = max(0, (width - longest + 1) // 2), max(0, (height - longest + 1) // 2)
    return image.crop((left, top, width - left, height - top)) if left or top else image


def _to_srgb(image: Image, profile: bytes | None) -> Image:
    """Return a new RGB image; an embedded profile that is broken or of another mode is ignored.

    Applying a profile, as phones with wide-gamut cameras embed one, takes 10 ms at 600 x 450 pixels.
    """
    from PIL import ImageCms

    if profile:
        with suppress(ImageCms.PyCMSError, ImportError, OSError, TypeError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                target = ImageCms.createProfile("sRGB")
                image = ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
    return image.convert("RGB")
