"""Make a catalogue picture look like a customer's snapshot, for the demo: another crop, angle, light and ground."""

from __future__ import annotations

from typing import BinaryIO

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

SIZE = (1024, 1024)  # about a megapixel


def like_a_phone_photo(picture: BinaryIO) -> Image.Image:
    """Return a variant of the picture, RGB, SIZE."""
    image = Image.open(picture).convert("RGB")
    width, height = image.size
    image = image.crop((width * 0.06, height * 0.04, width * 0.97, height * 0.92)).resize((760, 760))
    image = ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(0.75)).enhance(0.85)
    mask = Image.new("L", image.size, 255).rotate(9, expand=True)
    turned = image.rotate(9, expand=True, resample=Image.Resampling.BICUBIC)
    ground = wooden_table()
    ground.paste(turned, ((SIZE[0] - turned.width) // 2, (SIZE[1] - turned.height) // 2), mask)
    return ground.filter(ImageFilter.GaussianBlur(1.5))


def wooden_table() -> Image.Image:
    """Return a drawn ground with some structure, so that the picture's edge is not the only one."""
    ground = Image.new("RGB", SIZE, (150, 111, 75))
    draw = ImageDraw.Draw(ground)
    for y in range(0, SIZE[1], 64):
        shade = (y * 37) % 40
        draw.rectangle((0, y, SIZE[0], y + 60), fill=(140 + shade, 100 + shade, 66 + shade))
        for line in range(3):
            offset = (y * 13 + line * 19) % 60
            draw.line(
                (0, y + offset, SIZE[0], y + (offset + 7) % 60), fill=(120 + shade, 84 + shade, 54 + shade), width=2
            )
    return ground
