"""Compare decoding a 12-megapixel JPEG at reduced size, for an encoder, with decoding it in full.

    python -m benchmarks.decode

Both ways produce upright RGB pixels at the same target size: decoded in full, transposed and resized; or decoded at
reduced size by `decode_photo`. A third way also crops a quarter of the photo, which needs more of its pixels. The ways
take turns in one run, so that a busy machine slows all of them. Prints medians and ratios.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable

from PIL import Image, ImageOps

from tests.drawings import STORED_AS, draw_photo, exif_block, file_bytes
from visual_search.vision.images import Crop, decode_photo

SIZE_PX = (4000, 3000)
TARGET_PX = 448  # twice the 224 of most encoders, so that a crop has enough pixels
QUARTER: Crop = (0.25, 0.25, 0.75, 0.75)
ROUNDS = 15


def decode_in_full(data: bytes) -> None:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    scale = TARGET_PX / min(image.size)
    image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def decode_smaller(data: bytes, crop: Crop | None = None) -> None:
    decode_photo(data, max_bytes=len(data), max_pixels=50_000_000, target_px=TARGET_PX, crop=crop)


def milliseconds(decode: Callable[[], None]) -> float:
    started_at = time.perf_counter()
    decode()
    return (time.perf_counter() - started_at) * 1000


def camera_photo(orientation: int, noise: float) -> bytes:
    """Return a drawn photo with sensor noise. More noise makes every decoder slower."""
    grain = Image.effect_noise(SIZE_PX, 60).convert("RGB")
    image = Image.blend(draw_photo(SIZE_PX), grain, noise)
    if orientation in STORED_AS:
        image = image.transpose(STORED_AS[orientation])
    return file_bytes(image, "JPEG", quality=90, exif=exif_block(orientation))


def main() -> None:
    print(f"12 megapixels for {TARGET_PX} px (target: at least 3 times faster)")
    for noise in (0.02, 0.05, 0.15):
        for label, orientation in (("upright", 1), ("rotated by EXIF", 6)):
            data = camera_photo(orientation, noise)
            rounds = [
                (
                    milliseconds(lambda: decode_in_full(data)),  # noqa: B023
                    milliseconds(lambda: decode_smaller(data)),  # noqa: B023
                    milliseconds(lambda: decode_smaller(data, QUARTER)),  # noqa: B023
                )
                for _ in range(ROUNDS)
            ]
            full_ms, smaller_ms, crop_ms = (statistics.median(times) for times in zip(*rounds, strict=True))
            print(
                f"  {len(data) / 1e6:.1f} MB, {label:<15} in full {full_ms:4.0f} ms, smaller {smaller_ms:3.0f} ms: "
                f"{full_ms / smaller_ms:.1f} times faster; a crop of a quarter {crop_ms:3.0f} ms"
            )


if __name__ == "__main__":
    main()
