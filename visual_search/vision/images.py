"""Turn any accepted file into an upright RGB image without metadata.

Two doors, one pipeline: `decode_photo` for what a shopper uploads, `open_product_image` for what the shop
stores. Nothing is decoded before the size in the file's header has been checked. Pure functions on PIL,
imported inside them: this module knows no Django model, no request and no setting.

HEIC, the iPhone's own format, is accepted where the package pillow-heif is installed.

Peak memory, measured at 49 megapixels: 16 bytes a pixel for WebP, 8 to 12 for the others, below 1 for a JPEG that is
decoded smaller (3 if it is progressive).
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
from visual_search.vision.signatures import HEAD_BYTES, REPEATS, is_two_formats, signature_of, too_many_repeats

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

Crop = tuple[float, float, float, float]
"""Left, top, right and bottom of a part, as shares of the upright image's width and height: 0 to 1."""

MIN_SIDE_PX = 8  # spacers and tracking pixels; no encoder tells products apart by fewer
MAX_ASPECT = 20  # a 6,250,000 x 8 image is 50 megapixels, but 39 gigapixels once its short side is 224

# PIL opens MPO, the phones' JPEG with several pictures, as JPEG.
# The keys are PIL's names, HEIF that of pillow-heif; the values are what people call them.
PHOTO_FORMATS = {
    "JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP", "GIF": "GIF", "BMP": "BMP", "AVIF": "AVIF", "HEIF": "HEIC",
}  # fmt: skip
PRODUCT_FORMATS = {**PHOTO_FORMATS, "TIFF": "TIFF"}
KEPT_QUALITY = 90  # of a photo that is kept for a while: no difference to an encoder

# What counts as white where the file does not say: the smallest of these that holds the highest value.
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

    data: the file, or a stream that is read from where it stands, at most max_bytes + 1 of it.
    target_px: the shortest side that the caller needs. Larger photos are decoded smaller, never below it.
    crop: what part of the upright photo to return; target_px then counts for that part.
    Raises PhotoRejected with a stable code: photo_empty, photo_too_large, photo_too_many_pixels,
    photo_too_small, photo_unsupported, photo_ambiguous, photo_damaged or crop_too_small.
    """
    content = data if isinstance(data, bytes) else data.read(max_bytes + 1)
    if len(content) > max_bytes:
        limit = f"{max_bytes / 2**20:.3g} MB"
        raise PhotoRejected(f"This photo is too large. Use one of at most {limit}.", code="photo_too_large")
    try:
        _check_single(content)
        return _decode(io.BytesIO(content), PHOTO_FORMATS, max_pixels=max_pixels, target_px=target_px, crop=crop)
    except _RefusalError as refusal:
        raise PhotoRejected(refusal.sentence, code=refusal.code) from refusal


def encode_jpeg(image: Image, *, longest_px: int) -> bytes:
    """Return an RGB image as a JPEG without metadata, its longest side at most `longest_px`."""
    kept = image.copy()
    kept.thumbnail((longest_px, longest_px))
    kept.info.clear()
    file = io.BytesIO()
    kept.save(file, "JPEG", quality=KEPT_QUALITY)
    return file.getvalue()


def accepted_formats(formats: dict[str, str] = PHOTO_FORMATS) -> list[str]:
    """Return the names of the formats that this machine can decode, for people."""
    from PIL import features

    missing = {name for name, is_there in (("AVIF", features.check("avif")), ("HEIC", _has_heif())) if not is_there}
    return [name for name in formats.values() if name not in missing]


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


def _check_single(content: bytes) -> None:
    """Refuse a photo that is a file of another format too."""
    found = signature_of(content)
    if found is not None and found in PHOTO_FORMATS.values() and is_two_formats(content, found):
        raise _RefusalError(
            "photo_ambiguous",
            "This file is a photo and something else at once. Take a new photo, or save this one again.",
            reason=f"{found} and another format in one file",
        )


@cache
def _has_heif() -> bool:
    """Say whether HEIC can be decoded here; the first call makes PIL know it."""
    if importlib.util.find_spec("pillow_heif") is None:
        return False
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)
    return True


def _decode(
    file: BinaryIO, formats: dict[str, str], *, max_pixels: int, target_px: int | None, crop: Crop | None = None
) -> Image:
    """Open, check, decode and convert; every way in which this fails is a refusal."""
    from PIL import Image

    file.seek(0)
    head = file.read(HEAD_BYTES)
    if not head:
        raise _RefusalError("photo_empty", "This photo is empty. Choose another one.", reason="empty file")
    found = signature_of(head)
    if found == "HEIC" and not _has_heif():
        raise _unsupported(found, formats)
    if found in REPEATS and (excess := too_many_repeats(head + file.read(), found)):
        raise _damaged(f"damaged {found}: {excess}")
    try:
        opened = Image.open(file, formats=[name for name in formats if name != "HEIF" or found == "HEIC"])
        _check_size(opened.size, max_pixels)
        return _upright_rgb(opened, target_px, crop)
    except _RefusalError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(str(error), max_pixels) from error
    # Broad, because PIL's plugins raise almost anything on hostile bytes: OSError, SyntaxError, EOFError, struct.error,
    # OverflowError, ZeroDivisionError, and MemoryError where a header lies.
    except Exception as error:
        raise _explain(error, found, formats) from error


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
    from PIL import UnidentifiedImageError

    if found in accepted_formats(formats):
        unidentified = isinstance(error, UnidentifiedImageError)  # its text is the address of an object
        detail = "its header can't be read" if unidentified else str(error) or type(error).__name__
        return _damaged(f"damaged {found}: {detail}")
    return _unsupported(found, formats)


def _unsupported(found: str | None, formats: dict[str, str]) -> _RefusalError:
    names = accepted_formats(formats)
    accepted = f"{', '.join(names[:-1])} or {names[-1]}"
    what = f"{found} files can't be searched with" if found else "This file is not a photo that we can read"
    reason = f"{found or 'not an image'}; accepted are {accepted}"
    return _RefusalError("photo_unsupported", f"{what}. Use a photo in {accepted}.", reason=reason)


def _upright_rgb(opened: Image, target_px: int | None, crop: Crop | None) -> Image:
    """Decode and convert. Each step works on as few pixels as the ones before have left."""
    turn = None if opened.format == "TIFF" else _turn(opened)  # PIL itself turns TIFF as it loads
    profile = opened.info.get("icc_profile")
    box = _stored_box(opened.size, crop or (0.0, 0.0, 1.0, 1.0), turn)
    shortest = min(box[2] - box[0], box[3] - box[1])
    if shortest < MIN_SIDE_PX:
        raise _RefusalError(
            "crop_too_small",
            "This part of the photo is too small. Choose a larger one.",
            reason=f"{shortest:.1f} pixels; at least {MIN_SIDE_PX} on each side",
        )
    full = opened.size
    if target_px and target_px < shortest:
        # JPEG only: decodes at 1/2, 1/4 or 1/8, so that the part that is wanted stays above the target.
        opened.draft(None, (math.ceil(full[0] * target_px / shortest), math.ceil(full[1] * target_px / shortest)))
    opened.load()
    scale = opened.width / full[0], opened.height / full[1]
    part = opened if crop is None else opened.crop(_scaled(box, scale, opened.size))
    image = _middle(_opaque(part))
    if target_px and min(image.size) >= 2 * target_px:
        image = image.reduce(min(image.size) // target_px)
    image = _to_srgb(image, profile)
    if turn is not None:
        image = image.transpose(turn)
    image.info.clear()
    return image


def _stored_box(size: tuple[int, int], crop: Crop, turn: Transpose | None) -> tuple[float, float, float, float]:
    """Return the crop in pixels of the image as it lies in the file, before it is turned upright."""
    from PIL.Image import Transpose

    left, top, right, bottom = crop
    if turn in (Transpose.TRANSPOSE, Transpose.TRANSVERSE, Transpose.ROTATE_90, Transpose.ROTATE_270):
        left, top, right, bottom = top, left, bottom, right
    if turn in (Transpose.FLIP_LEFT_RIGHT, Transpose.ROTATE_180, Transpose.ROTATE_90, Transpose.TRANSVERSE):
        left, right = 1 - right, 1 - left
    if turn in (Transpose.FLIP_TOP_BOTTOM, Transpose.ROTATE_180, Transpose.ROTATE_270, Transpose.TRANSVERSE):
        top, bottom = 1 - bottom, 1 - top
    width, height = size
    return left * width, top * height, right * width, bottom * height


def _scaled(
    box: tuple[float, float, float, float], scale: tuple[float, float], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the box in whole pixels of an image that was decoded smaller: nothing of it is cut off."""
    left, top = math.floor(box[0] * scale[0]), math.floor(box[1] * scale[1])
    right, bottom = math.ceil(box[2] * scale[0]), math.ceil(box[3] * scale[1])
    return max(0, left), max(0, top), min(size[0], right), min(size[1], bottom)


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
