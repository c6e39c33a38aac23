"""Time decoding a 12-megapixel JPEG in full against decoding it drafted for an encoder.

    python -m benchmarks.decode

Both in one run and by turns, so that a busy machine slows both. Prints medians and their ratio.
"""

from __future__ import annotations

import statistics
import time

from PIL import Image

from tests.drawings import STORED_AS, draw_photo, exif_block, file_bytes
from visual_search.images import decode_photo

SIZE_PX = (4000, 3000)
TARGET_PX = 448  # twice the 224 of most encoders, so that a crop still has enough pixels
ROUNDS = 15


def decode_ms(data: bytes, target_px: int | None) -> float:
    started_at = time.perf_counter()
    decode_photo(data, max_bytes=len(data), max_pixels=50_000_000, target_px=target_px)
    return (time.perf_counter() - started_at) * 1000


def camera_photo(orientation: int) -> bytes:
    """Return a drawn photo with a sensor's noise: without it a JPEG of this size decodes twice as fast."""
    noise = Image.effect_noise(SIZE_PX, 60).convert("RGB")
    image = Image.blend(draw_photo(SIZE_PX), noise, 0.15)
    if orientation in STORED_AS:
        image = image.transpose(STORED_AS[orientation])
    return file_bytes(image, "JPEG", quality=90, exif=exif_block(orientation))


def main() -> None:
    for label, orientation in (("upright", 1), ("turned by EXIF", 6)):
        data = camera_photo(orientation)
        pairs = [(decode_ms(data, None), decode_ms(data, TARGET_PX)) for _ in range(ROUNDS)]
        full_ms, drafted_ms = (statistics.median(times) for times in zip(*pairs, strict=True))
        print(
            f"{label}, {len(data) / 1e6:.1f} MB: full {full_ms:.0f} ms, "
            f"for {TARGET_PX} px {drafted_ms:.0f} ms, ratio {full_ms / drafted_ms:.1f}"
        )


if __name__ == "__main__":
    main()
