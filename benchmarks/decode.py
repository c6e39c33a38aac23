"""How much faster is a 12-megapixel JPEG decoded for an encoder than in full?

    python -m benchmarks.decode

Both ways end with the same upright RGB pixels, as many as the encoder of a crop wants: decoded in full, turned and
resized; or decoded smaller by `decode_photo`. Also a crop of a quarter of the photo, which needs more of it. All in one
run and by turns, so that a busy machine slows all. Prints medians and ratios.
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
TARGET_PX = 448  # twice the 224 of most encoders, so that a crop still has enough pixels
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
    """Return a drawn photo with a sensor's noise: the more of it, the longer any decoder reads."""
    grain = Image.effect_noise(SIZE_PX, 60).convert("RGB")
    image = Image.blend(draw_photo(SIZE_PX), grain, noise)
    if orientation in STORED_AS:
        image = image.transpose(STORED_AS[orientation])
    return file_bytes(image, "JPEG", quality=90, exif=exif_block(orientation))


def main() -> None:
    print(f"12 megapixels for {TARGET_PX} px (target: at least 3 times faster)")
    for noise in (0.02, 0.05, 0.15):
        for label, orientation in (("upright", 1), ("turned by EXIF", 6)):
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
