"""Draw test images: no binary files in the repository, and the same bytes on every run."""

from __future__ import annotations

import colorsys
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageCms, ImageDraw
from PIL.Image import Transpose

ORIENTATION_TAG = 0x0112
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# How a camera transposes the pixels for each orientation: the opposite of what a viewer does.
STORED_AS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}

NOT_IMAGES = {
    "text": b"Dear shop, where is my parcel?\n" * 20,
    "svg": b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
}


def draw_photo(size: tuple[int, int] = (640, 480), *, seed: int = 0) -> Image.Image:
    """Return an image of coloured shapes on a gradient; each seed has its own colours and shapes."""
    rng = random.Random(seed)
    hue = rng.random()
    ground = Image.merge(
        "RGB", [Image.linear_gradient("L").point(lambda v, c=c: 40 + v * c) for c in _colour(hue, 0.7)]
    )
    image = ground.rotate(rng.choice([0, 90, 180, 270])).resize(size)
    pen = ImageDraw.Draw(image)
    for step in range(rng.randint(3, 6)):
        fill = tuple(round(255 * part) for part in _colour(hue + 0.2 + 0.13 * step, 1.0))
        x, y = rng.uniform(0.2, 0.8) * size[0], rng.uniform(0.2, 0.8) * size[1]
        radius = max(1.0, rng.uniform(0.08, 0.25) * min(size))
        if rng.random() < 0.4:
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        else:
            pen.regular_polygon((x, y, radius), rng.randint(3, 7), rotation=rng.randint(0, 90), fill=fill)
    return image


def photo_bytes(
    size: tuple[int, int] = (640, 480),
    *,
    format: str = "JPEG",
    seed: int = 0,
    mode: str = "RGB",
    exif_orientation: int | None = None,
    **save: Any,
) -> bytes:
    """Return `draw_photo` as a file.

    exif_orientation: the pixels are stored transposed with this EXIF tag; viewers that apply it show the upright image.
    save: options of the format, such as `quality` or `icc_profile`.
    """
    image = draw_photo(size, seed=seed)
    if exif_orientation is not None:
        if exif_orientation in STORED_AS:
            image = image.transpose(STORED_AS[exif_orientation])
        save["exif"] = exif_block(exif_orientation)
    return file_bytes(image.convert(mode), format, **save)


def file_bytes(image: Image.Image, format: str, **save: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **save)
    return file.getvalue()


def exif_block(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    exif[0x010F] = "A camera"
    return exif.tobytes()


def plain_bytes(
    colour: Any, *, mode: str = "RGB", format: str = "PNG", size: tuple[int, int] = (32, 24), **save: Any
) -> bytes:
    """Return a file of one colour."""
    return file_bytes(Image.new(mode, size, colour), format, **save)


def palette_png_with_hole(size: tuple[int, int] = (32, 24)) -> bytes:
    """Return a PNG whose left half is red and whose right half is transparent over a black palette entry."""
    image = Image.new("P", size, 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(0, (size[0] // 2, 0, *size))
    return file_bytes(image, "PNG", transparency=0)


def rgba_png_with_hole(size: tuple[int, int] = (32, 24)) -> bytes:
    """Return a PNG whose left half is red and whose right half is transparent black."""
    image = Image.new("RGBA", size, (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (size[0] // 2, 0, *size))
    return file_bytes(image, "PNG")


def animation(format: str = "GIF", size: tuple[int, int] = (32, 24)) -> bytes:
    """Return an animation of a red frame and a blue one."""
    red, blue = Image.new("RGB", size, "red"), Image.new("RGB", size, "blue")
    return file_bytes(red, format, save_all=True, append_images=[blue], duration=100)


def deep_png(values: tuple[int, ...], *, size: tuple[int, int] = (32, 24)) -> bytes:
    """Return a PNG of one colour with 16 bits per channel: 1 value for grey, 3 for RGB, 4 for RGBA."""
    colour_type = {1: 0, 3: 2, 4: 6}[len(values)]
    row = b"\0" + struct.pack(f">{len(values)}H", *values) * size[0]
    return png_bytes(size, bits=16, colour_type=colour_type, rows=zlib.compress(row * size[1]))


def png_bytes(size: tuple[int, int], *, bits: int, colour_type: int, rows: bytes, chunks: bytes = b"") -> bytes:
    """Assemble a PNG. rows: compressed; chunks: complete chunks to put before them."""
    header = struct.pack(">IIBBBBB", *size, bits, colour_type, 0, 0, 0)
    return PNG_SIGNATURE + png_chunk(b"IHDR", header) + chunks + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb_png(side_px: int = 10_000) -> bytes:
    """Return a valid black square with one bit per pixel: 100 megapixels in about 12 KB, built without the pixels."""
    row = bytes(1 + (side_px + 7) // 8)
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(row) for _ in range(side_px)) + packer.flush()
    return png_bytes((side_px, side_px), bits=1, colour_type=0, rows=rows)


def text_bomb_png(expanded_bytes: int = 64 * 2**20) -> bytes:
    """Return a small PNG with a comment that expands to 64 MB."""
    packer = zlib.compressobj(9)
    text = b"".join(packer.compress(bytes(2**20)) for _ in range(expanded_bytes // 2**20)) + packer.flush()
    comment = png_chunk(b"zTXt", b"Comment\0\0" + text)
    row = b"\0" + bytes(32)
    return png_bytes((32, 32), bits=8, colour_type=0, rows=zlib.compress(row * 32), chunks=comment)


def profile_bomb_png(profiles: int) -> bytes:
    """Return a PNG with many colour profiles, each 1 MB when expanded."""
    profile = png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2**20 - 10), 9))
    rows = zlib.compress((b"\0" + bytes(32)) * 32)
    return png_bytes((32, 32), bits=8, colour_type=0, rows=rows, chunks=profile * profiles)


def scan_bomb_jpeg(scans: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """Return a progressive JPEG that repeats its last scan."""
    jpeg = photo_bytes(size, progressive=True)
    last_scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + last_scan * scans + jpeg[-2:]


def swapped_profile() -> bytes:
    """Return an ICC profile like sRGB, but with red and blue swapped."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = {
        bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * struct.unpack_from(">I", profile, 128)[0], 12)
    }
    red, blue = entries[b"rXYZ"] + 4, entries[b"bXYZ"] + 4
    profile[red : red + 8], profile[blue : blue + 8] = profile[blue : blue + 8], profile[red : red + 8]
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


def _colour(hue: float, value: float) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(hue % 1.0, 0.8, value)


def side_by_side(left: bytes, right: bytes) -> bytes:
    """Return one image made of two images of the same height."""
    one, other = Image.open(io.BytesIO(left)), Image.open(io.BytesIO(right))
    both = Image.new("RGB", (one.width + other.width, one.height))
    both.paste(one, (0, 0))
    both.paste(other, (one.width, 0))
    return file_bytes(both, "JPEG", quality=95)


def heic_header() -> bytes:
    """Return the beginning of a HEIC file without the rest."""
    return b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(200)


def heic_bytes(size: tuple[int, int], *, orientation: int | None = None) -> bytes:
    """Return `draw_photo` as an iPhone would store it. Needs pillow-heif."""
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)
    image = draw_photo(size)
    if orientation in STORED_AS:
        image = image.transpose(STORED_AS[orientation])
    return file_bytes(image, "HEIF", quality=90, **({"exif": exif_block(orientation)} if orientation else {}))


def zip_bytes() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("page.html", "<script>alert(1)</script>")
        archive.comment = b"drawn"
    return file.getvalue()


def _jpeg_with_comment(comment: bytes) -> bytes:
    return photo_bytes((64, 64), comment=comment)


# Polyglots: each is a valid image for PIL, and a valid file of another format for other programs.
TWO_FORMATS: dict[str, Callable[[], bytes]] = {
    "jpeg+zip": lambda: photo_bytes((64, 64)) + zip_bytes(),
    "jpeg+zip behind junk": lambda: photo_bytes((64, 64)) + bytes(5000) + zip_bytes(),
    "png+zip": lambda: photo_bytes((64, 64), format="PNG") + zip_bytes(),
    "gif+zip": lambda: photo_bytes((64, 64), format="GIF") + zip_bytes(),
    "webp+zip": lambda: photo_bytes((64, 64), format="WEBP") + zip_bytes(),
    "jpeg+png": lambda: photo_bytes((64, 64)) + photo_bytes((64, 64), format="PNG"),
    "png+jpeg": lambda: photo_bytes((64, 64), format="PNG") + photo_bytes((64, 64)),
    "gif+jpeg": lambda: photo_bytes((64, 64), format="GIF") + photo_bytes((64, 64)),
    "jpeg+pdf": lambda: photo_bytes((64, 64)) + b"\n" + NOT_IMAGES["pdf"],
    "jpeg with a pdf's header": lambda: _jpeg_with_comment(NOT_IMAGES["pdf"]),
    "jpeg with a page": lambda: _jpeg_with_comment(b"*/=1;</style><ScRiPt>alert(1)</script>"),
    "jpeg+php": lambda: photo_bytes((64, 64)) + b"<?php system($_GET['c']); ?>",
    "gif with a script": lambda: photo_bytes((64, 64), format="GIF", comment=b"<script>alert(1)</script>"),
    "jpeg+svg": lambda: photo_bytes((64, 64)) + b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "jpeg+program": lambda: photo_bytes((64, 64)) + b"\x7fELF" + bytes(100),
}
