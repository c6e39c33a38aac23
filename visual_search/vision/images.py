"""Turn any accepted file into an upright RGB image without metadata.

Two entry points share one pipeline: `decode_photo` for a shopper's upload, `open_product_image` for the shop's own
files. The size in the file's header is checked before anything is decoded. Pure functions on PIL, which they import
themselves: this module uses no Django model, request or setting.

HEIC, the iPhone's format, is accepted if the package pillow-heif is installed.

Peak memory, measured at 49 megapixels: 16 bytes per pixel for WebP, 8 to 12 for the others, below 1 for a JPEG that is
decoded at reduced size (3 if it is progressive).
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, BinaryIO, cast

from visual_search.exceptions import ImageUnreadable, PhotoRejected
from visual_search.vision.signatures import HEAD_BYTES, REPEAT_LIMITS, excess_repeats, is_polyglot, signature_of

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

Crop = tuple[float, float, float, float]
"""Left, top, right and bottom of a region, as fractions of the upright image's width and height: 0 to 1."""

MIN_SIDE_PX = 8  # below it are spacers and tracking pixels, which no encoder can distinguish
MAX_ASPECT = 20  # a 6,250,000 x 8 image has 50 megapixels, but 39 gigapixels once its short side is scaled to 224

# Keys are the format names of PIL (HEIF: of pillow-heif), values are the names for people.
# PIL opens MPO, the phones' JPEG with several pictures, as JPEG.
PHOTO_FORMATS = {
    "JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP", "GIF": "GIF", "BMP": "BMP", "AVIF": "AVIF", "HEIF": "HEIC",
}  # fmt: skip
PRODUCT_FORMATS = {**PHOTO_FORMATS, "TIFF": "TIFF"}
JPEG_QUALITY = 90  # makes no difference to an encoder

# The value of white in formats that don't define it: the smallest of these that is not below the highest pixel value.
FULL_SCALES = {"I": (255, 65_535, 2**31 - 1), "F": (1.0, 255.0, 65_535.0)}


def decode_photo(
    data: bytes | BinaryIO,
    *,
    max_bytes: int,
    max_pixels: int,
    target_px: int | None = None,
    crop: Crop | None = None,
) -> Image:
    """Return a shopper's upload as an upright RGB image without metadata.

    data: the file, or a stream, read from its current position, at most max_bytes + 1 bytes.
    target_px: the shortest side that the caller needs. Larger photos are decoded at reduced size, never below it.
    crop: the region of the upright photo to return; target_px then applies to that region.
    Raises PhotoRejected with a stable code: photo_empty, photo_too_large, photo_too_many_pixels,
    photo_too_small, photo_unsupported, photo_ambiguous, photo_damaged or crop_too_small.
    """
    content = data if isinstance(data, bytes) else data.read(max_bytes + 1)
    if len(content) > max_bytes:
        limit = f"{max_bytes / 2**20:.3g} MB"
        raise PhotoRejected(f"This photo is too large. Use one of at most {limit}.", code="photo_too_large")
    try:
        _reject_polyglot(content)
        return _decode(io.BytesIO(content), PHOTO_FORMATS, max_pixels=max_pixels, target_px=target_px, crop=crop)
    except _RejectionError as rejection:
        raise PhotoRejected(rejection.sentence, code=rejection.code) from rejection


def encode_jpeg(image: Image, *, longest_px: int) -> bytes:
    """Return an RGB image as a JPEG without metadata, with its longest side at most `longest_px`."""
    resized = image.copy()
    resized.thumbnail((longest_px, longest_px))
    resized.info.clear()
    file = io.BytesIO()
    resized.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def accepted_formats(formats: dict[str, str] = PHOTO_FORMATS) -> list[str]:
    """Return the human-readable names of the formats that this machine can decode."""
    from PIL import features

    missing = {name for name, can_decode in (("AVIF", features.check("avif")), ("HEIC", _has_heif())) if not can_decode}
    return [name for name in formats.values() if name not in missing]


def open_product_image(file: BinaryIO, *, max_pixels: int, target_px: int | None = None) -> Image:
    """Return one of the shop's own images, decoded as in `decode_photo`. TIFF is accepted too.

    file: seekable; read from its beginning and left open.
    Raises ImageUnreadable with a reason for the shop's staff.
    """
    try:
        return _decode(file, PRODUCT_FORMATS, max_pixels=max_pixels, target_px=target_px)
    except _RejectionError as rejection:
        raise ImageUnreadable(rejection.reason) from rejection


def content_digest(data: bytes) -> str:
    """Return the SHA-256 of the file's bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


class _RejectionError(Exception):
    """Why a file is rejected: a code, a sentence for the shopper, a reason for the shop's staff."""

    def __init__(self, code: str, sentence: str, *, reason: str) -> None:
        super().__init__(reason)
        self.code, self.sentence, self.reason = code, sentence, reason


def _reject_polyglot(content: bytes) -> None:
    """Reject a photo that is also a file of another format."""
    found = signature_of(content)
    if found is not None and found in PHOTO_FORMATS.values() and is_polyglot(content, found):
        raise _RejectionError(
            "photo_ambiguous",
            "This file is a photo and something else at the same time. Take a new photo, or save this one again.",
            reason=f"{found} and another format in one file",
        )


@cache
def _has_heif() -> bool:
    """Return whether HEIC can be decoded. The first call registers it with PIL."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)
    return True


def _decode(
    file: BinaryIO, formats: dict[str, str], *, max_pixels: int, target_px: int | None, crop: Crop | None = None
) -> Image:
    """Open, check, decode and convert the file. Every failure raises _RejectionError."""
    from PIL import Image

    file.seek(0)
    head = file.read(HEAD_BYTES)
    if not head:
        raise _RejectionError("photo_empty", "This photo is empty. Choose another one.", reason="empty file")
    found = signature_of(head)
    if found == "HEIC" and not _has_heif():
        raise _unsupported(found, formats)
    if found in REPEAT_LIMITS and (excess := excess_repeats(head + file.read(), found)):
        raise _damaged(f"damaged {found}: {excess}")
    try:
        opened = Image.open(file, formats=[name for name in formats if name != "HEIF" or found == "HEIC"])
        _check_size(opened.size, max_pixels)
        return _upright_rgb(opened, target_px, crop)
    except _RejectionError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(str(error), max_pixels) from error
    # Broad, because PIL's plugins raise almost anything on hostile bytes: OSError, SyntaxError, EOFError, struct.error,
    # OverflowError, ZeroDivisionError, and MemoryError for a false header.
    except Exception as error:
        raise _classify_error(error, found, formats) from error


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Reject an image by the size in its header, before anything is decoded."""
    width, height = size
    if width * height > max_pixels:
        raise _too_many_pixels(f"{width * height / 1e6:.3g} megapixels", max_pixels)
    if min(size) < MIN_SIDE_PX:
        raise _RejectionError(
            "photo_too_small",
            f"This photo is too small. Use one of at least {MIN_SIDE_PX} pixels on each side.",
            reason=f"{width} x {height} pixels; at least {MIN_SIDE_PX} on each side",
        )


def _too_many_pixels(found: str, max_pixels: int) -> _RejectionError:
    limit = f"{max_pixels / 1e6:.3g}"
    sentence = f"This photo has too many pixels. Use one of at most {limit} megapixels."
    return _RejectionError("photo_too_many_pixels", sentence, reason=f"{found}; at most {limit}")


def _damaged(reason: str) -> _RejectionError:
    return _RejectionError("photo_damaged", "This photo is damaged or incomplete. Choose another one.", reason=reason)


def _classify_error(error: Exception, found: str | None, formats: dict[str, str]) -> _RejectionError:
    """Return the rejection of a damaged file or an unsupported format. found: the format by its signature."""
    from PIL import UnidentifiedImageError

    if found in accepted_formats(formats):
        unidentified = isinstance(error, UnidentifiedImageError)  # its message is an object's address
        detail = "its header can't be read" if unidentified else str(error) or type(error).__name__
        return _damaged(f"damaged {found}: {detail}")
    return _unsupported(found, formats)


def _unsupported(found: str | None, formats: dict[str, str]) -> _RejectionError:
    names = accepted_formats(formats)
    accepted = f"{', '.join(names[:-1])} or {names[-1]}"
    what = f"{found} files are not supported" if found else "This file is not a photo that we can read"
    reason = f"{found or 'not an image'}; accepted formats are {accepted}"
    return _RejectionError("photo_unsupported", f"{what}. Use a photo in {accepted}.", reason=reason)


def _upright_rgb(opened: Image, target_px: int | None, crop: Crop | None) -> Image:
    """Decode and convert the image. Each step processes only the pixels that the previous ones left."""
    transposition = None if opened.format == "TIFF" else _exif_transposition(opened)  # PIL transposes TIFF on load
    profile = opened.info.get("icc_profile")
    box = _stored_box(opened.size, crop or (0.0, 0.0, 1.0, 1.0), transposition)
    shortest = min(box[2] - box[0], box[3] - box[1])
    if shortest < MIN_SIDE_PX:
        raise _RejectionError(
            "crop_too_small",
            "This part of the photo is too small. Choose a larger one.",
            reason=f"{shortest:.1f} pixels; at least {MIN_SIDE_PX} on each side",
        )
    full = opened.size
    if target_px and target_px < shortest:
        # JPEG only: decodes at 1/2, 1/4 or 1/8, so that the cropped region stays above the target.
        opened.draft(None, (math.ceil(full[0] * target_px / shortest), math.ceil(full[1] * target_px / shortest)))
    opened.load()
    scale = opened.width / full[0], opened.height / full[1]
    region = opened if crop is None else opened.crop(_scale_box(box, scale, opened.size))
    image = _crop_strip(_flatten(region))
    if target_px and min(image.size) >= 2 * target_px:
        image = image.reduce(min(image.size) // target_px)
    image = _to_srgb(image, profile)
    if transposition is not None:
        image = image.transpose(transposition)
    image.info.clear()
    return image


def _stored_box(
    size: tuple[int, int], crop: Crop, transposition: Transpose | None
) -> tuple[float, float, float, float]:
    """Return the crop in pixels of the image as stored in the file, before it is transposed."""
    from PIL.Image import Transpose

    left, top, right, bottom = crop
    if transposition in (Transpose.TRANSPOSE, Transpose.TRANSVERSE, Transpose.ROTATE_90, Transpose.ROTATE_270):
        left, top, right, bottom = top, left, bottom, right
    if transposition in (Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.ROTATE_90, Transpose.TRANSVERSE):
        left, right = 1 - right, 1 - left
    if transposition in (Transpose.FLIP_TOP_BOTTOM, Transpose.ROTATE_180, Transpose.ROTATE_270, Transpose.TRANSVERSE):
        top, bottom = 1 - bottom, 1 - top
    width, height = size
    return left * width, top * height, right * width, bottom * height


def _scale_box(
    box: tuple[float, float, float, float], scale: tuple[float, float], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the box in whole pixels of an image decoded at reduced size, rounded outwards."""
    left, top = math.floor(box[0] * scale[0]), math.floor(box[1] * scale[1])
    right, bottom = math.ceil(box[2] * scale[0]), math.ceil(box[3] * scale[1])
    return max(0, left), max(0, top), min(size[0], right), min(size[1], bottom)


def _exif_transposition(image: Image) -> Transpose | None:
    """Return the transposition that the EXIF orientation requires, or None, as for a broken EXIF block."""
    from PIL.Image import Transpose

    transpositions = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        return transpositions.get(image.getexif().get(0x0112, 1))
    except Exception:  # as broad as in _decode, for the same reason; the picture itself is fine
        return None


def _flatten(image: Image) -> Image:
    """Return the image on white with 8 bits per channel: L, RGB or CMYK, the modes that have colour profiles."""
    from PIL.Image import new

    if image.mode.startswith(("I", "F")):
        return _to_eight_bits(image)
    if image.has_transparency_data:
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        canvas = new("RGB", image.size, "white")
        canvas.paste(layer, mask=layer)
        return canvas
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _to_eight_bits(image: Image) -> Image:
    """Scale 16-bit, 32-bit and float greys to 8 bits. PIL's own conversion would clip them to white."""
    if image.mode.startswith("I;16"):
        full_scale: float = 65_535
        image = image.convert("I")
    else:
        _, highest = cast("tuple[float, float]", image.getextrema())  # one channel, one pair
        full_scale = next((scale for scale in FULL_SCALES[image.mode] if highest <= scale), highest)
    return image.point(lambda value: value * (255 / full_scale)).convert("L")


def _crop_strip(image: Image) -> Image:
    """Cut the ends off a strip, so that scaling its short side later can't make it huge."""
    width, height = image.size
    longest = MAX_ASPECT * min(width, height)
    left, top = max(0, (width - longest + 1) // 2), max(0, (height - longest + 1) // 2)
    return image.crop((left, top, width - left, height - top)) if left or top else image


def _to_srgb(image: Image, profile: bytes | None) -> Image:
    """Return a new RGB image in sRGB. An embedded profile that is broken or for another mode is ignored.

    Applying a profile, such as those of wide-gamut phone cameras, takes 10 ms at 600 x 450 pixels.
    """
    from PIL import ImageCms

    if profile:
        with suppress(ImageCms.PyCMSError, ImportError, OSError, TypeError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                target = ImageCms.createProfile("sRGB")
                image = ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
    return image.convert("RGB")
