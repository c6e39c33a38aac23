"""What a file is by its bytes, and whether it is more than that. Nothing is decoded here."""

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
HEAD_BYTES = 1024  # an SVG may begin with comments

# What hostile files repeat: it costs them few bytes and us much time. 200 scans in a 200 KB JPEG of 49 megapixels kept
# a core busy for 7.6 s, 19 MB of PNG profiles for 44 s. A usual file has 1 to 10 scans and one profile. A scan's
# length must agree with its number of channels, so picture data and embedded videos don't match by chance.
REPEATS = {
    "JPEG": (re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)"), 64, "scans"),
    "PNG": (re.compile(rb"iCCP"), 8, "colour profiles"),
}

# A file that is also one of these was made to be taken for the other by somebody. MPO, several JPEGs in a row, and the
# video that phones append to a "motion photo" are neither.
OTHER_IMAGES = rb"\x89PNG\r\n|GIF8[79]a|RIFF....WEBP"
OTHER_ARCHIVES = rb"PK\x03\x04|Rar!\x1a\x07|7z\xbc\xaf\x27\x1c|\x1f\x8b\x08"
OTHER_FILES = rb"%PDF-|\x7fELF|MZ.{58,62}PE|(?i:<\?php|<!DOCTYPE|<html|<svg|<script)"
SECOND_FILE = {
    kind: re.compile(
        end + rb"[\0\s]{0,64}(?:" + b"|".join([*images, OTHER_IMAGES, OTHER_ARCHIVES, OTHER_FILES]) + rb")", re.DOTALL
    )
    for kind, end, images in (
        ("JPEG", rb"\xff\xd9", []),
        ("PNG", rb"IEND\xaeB`\x82", [rb"\xff\xd8\xff"]),
        ("GIF", rb"\x00;", [rb"\xff\xd8\xff"]),
    )
}
# Where a reader of the other format would look for it: PDF and HTML in the beginning, a ZIP's directory at the end.
SECOND_HEAD = re.compile(rb"%PDF-|<\?php|<script|<svg|<html|<!DOCTYPE html", re.IGNORECASE)
ZIP_END, ZIP_END_BYTES, ZIP_COMMENT_BYTES = b"PK\x05\x06", 22, 65_535


def signature_of(content: bytes) -> str | None:
    """Return the format that a file's first HEAD_BYTES speak of, or None."""
    head = content[:HEAD_BYTES]
    return next((name for name, start in SIGNATURES.items() if re.match(start, head, re.DOTALL)), None)


def too_many_repeats(content: bytes, kind: str) -> str:
    """Return what a file repeats too often of that which makes its decoder work, or an empty string."""
    piece, at_most, name = REPEATS[kind]
    found = len(piece.findall(content))
    return f"{found} {name}; at most {at_most}" if found > at_most else ""


def is_two_formats(content: bytes, kind: str) -> bool:
    """Say whether an image of format `kind` is a file of another format as well."""
    if SECOND_HEAD.search(content, 0, HEAD_BYTES) or _is_zip(content):
        return True
    return kind in SECOND_FILE and SECOND_FILE[kind].search(content) is not None


def _is_zip(content: bytes) -> bool:
    """Say whether the file ends as a ZIP does: its directory's record, with a comment up to the very end."""
    tail = content[-(ZIP_END_BYTES + ZIP_COMMENT_BYTES) :]
    at = tail.rfind(ZIP_END)
    if at < 0 or len(tail) - at < ZIP_END_BYTES:
        return False
    return int.from_bytes(tail[at + 20 : at + 22], "little") == len(tail) - at - ZIP_END_BYTES
