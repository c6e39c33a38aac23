"""Recognise a file's format by its bytes, and detect hostile files. Nothing is decoded here."""

from __future__ import annotations

import re

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
HEAD_BYTES = 1024  # long, because an SVG may begin with comments

# Limits for parts that hostile files repeat: a few bytes of file cost much decoding time. 200 scans in a 200 KB JPEG of
# 49 megapixels kept a core busy for 7.6 s, 19 MB of PNG profiles for 44 s. A normal file has 1 to 10 scans and one
# profile. A scan's length must agree with its number of channels, so image data and embedded videos don't match by
# chance.
REPEAT_LIMITS = {
    "JPEG": (re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)"), 64, "scans"),
    "PNG": (re.compile(rb"iCCP"), 8, "colour profiles"),
}

# A polyglot, an image that is also a file of one of these formats, is an attack on some reader. MPO (several JPEGs in a
# row) and the video that phones append to a "motion photo" are harmless.
OTHER_IMAGES = rb"\x89PNG\r\n|GIF8[79]a|RIFF....WEBP"
OTHER_ARCHIVES = rb"PK\x03\x04|Rar!\x1a\x07|7z\xbc\xaf\x27\x1c|\x1f\x8b\x08"
OTHER_FILES = rb"%PDF-|\x7fELF|MZ.{58,62}PE|(?i:<\?php|<!DOCTYPE|<html|<svg|<script)"
APPENDED_FILE = {
    kind: re.compile(
        end + rb"[\0\s]{0,64}(?:" + b"|".join([*images, OTHER_IMAGES, OTHER_ARCHIVES, OTHER_FILES]) + rb")", re.DOTALL
    )
    for kind, end, images in (
        ("JPEG", rb"\xff\xd9", []),
        ("PNG", rb"IEND\xaeB`\x82", [rb"\xff\xd8\xff"]),
        ("GIF", rb"\x00;", [rb"\xff\xd8\xff"]),
    )
}
# Where a reader of the other format looks: PDF and HTML at the beginning, a ZIP's directory at the end.
OTHER_HEAD = re.compile(rb"%PDF-|<\?php|<script|<svg|<html|<!DOCTYPE html", re.IGNORECASE)
ZIP_END, ZIP_END_BYTES, ZIP_COMMENT_BYTES = b"PK\x05\x06", 22, 65_535


def signature_of(content: bytes) -> str | None:
    """Return the format that a file's first HEAD_BYTES indicate, or None."""
    head = content[:HEAD_BYTES]
    return next((name for name, start in SIGNATURES.items() if re.match(start, head, re.DOTALL)), None)


def excess_repeats(content: bytes, kind: str) -> str:
    """Return a description of the costly parts that a file repeats too often, or an empty string."""
    part, at_most, name = REPEAT_LIMITS[kind]
    found = len(part.findall(content))
    return f"{found} {name}; at most {at_most}" if found > at_most else ""


def is_polyglot(content: bytes, kind: str) -> bool:
    """Return whether an image of format `kind` is also a file of another format."""
    if OTHER_HEAD.search(content, 0, HEAD_BYTES) or _is_zip(content):
        return True
    return kind in APPENDED_FILE and APPENDED_FILE[kind].search(content) is not None


def _is_zip(content: bytes) -> bool:
    """Return whether the file ends like a ZIP: an end-of-directory record whose comment reaches the end of the file."""
    tail = content[-(ZIP_END_BYTES + ZIP_COMMENT_BYTES) :]
    at = tail.rfind(ZIP_END)
    if at < 0 or len(tail) - at < ZIP_END_BYTES:
        return False
    return int.from_bytes(tail[at + 20 : at + 22], "little") == len(tail) - at - ZIP_END_BYTES
