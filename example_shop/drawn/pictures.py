"""Put the drawn products on a background: as a catalogue shows them, and as a phone sees them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

from example_shop.drawn.canvas import SIZE_PX, Canvas, Colour, darker, lighter, painted
from example_shop.drawn.products import DrawnProduct, products
from example_shop.sources import SourceProduct

SHADE: Colour = (52, 48, 66)
PHONE_PX = (1200, 1400)


def read_drawn(folder: Path) -> Iterator[SourceProduct]:
    """Yield the drawn products; draw their pictures into `folder` unless they exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for product in products():
        paths = folder / f"{product.id}.jpg", folder / f"{product.id}-at-home.jpg"
        if not all(path.exists() for path in paths):
            canvas = product.on_canvas()
            drawings = catalogue_picture(product, canvas), at_home(product, canvas)
            for path, drawing in zip(paths, drawings, strict=True):
                drawing.save(path.with_suffix(".part"), "JPEG", quality=88)
                path.with_suffix(".part").replace(path)
        yield SourceProduct(
            id=product.id,
            name=product.name,
            category=product.kind.category,
            brand=product.kind.brand,
            price=product.price,
            stock=product.stock,
            description=product.kind.description,
            images=paths,
        )


def catalogue_picture(product: DrawnProduct, canvas: Canvas) -> Image.Image:
    """Return the product on its softly shaded background, RGB."""
    ground = painted(
        [(0, lighter(product.ground, 0.25)), (1, darker(product.ground, 0.05))], (SIZE_PX, SIZE_PX), down=True
    )
    return put(canvas, ground, (0, 0), SIZE_PX)


def at_home(product: DrawnProduct, canvas: Canvas) -> Image.Image:
    """Return the product, smaller and mirrored, in front of a coloured wall, on a wooden table if it stands, RGB."""
    wall = painted(
        [(0, lighter(product.accent, 0.45)), (1, lighter(product.accent, 0.6))], (SIZE_PX, SIZE_PX), down=True
    )
    if product.kind.is_standing:
        wall.paste(boards((SIZE_PX, 300)), (0, SIZE_PX - 300))
    side = 760
    top = 150 if product.kind.is_standing else 0
    return put(canvas, wall, ((SIZE_PX - side) // 2, top), side, is_mirrored=True)


def phone_photo(product: DrawnProduct, beside: DrawnProduct) -> Image.Image:
    """Return a snapshot to search with, RGB, PHONE_PX: the product rotated, in warm light, `beside` behind it."""
    width, height = PHONE_PX
    photo = painted([(0, (214, 208, 198)), (1, (228, 220, 206))], PHONE_PX, down=True)
    photo.paste(boards((width, 640)), (0, height - 640))
    photo = put(beside.on_canvas(), photo, (710, 330), 560)
    photo = put(product.on_canvas(), photo, (40, 400), 840, angle=5)
    photo = ImageEnhance.Color(photo).enhance(0.92)
    light = painted([(0, (255, 246, 228)), (1, (206, 190, 178))], PHONE_PX, down=False)
    return ImageChops.multiply(photo, light).filter(ImageFilter.GaussianBlur(1.2))


def put(
    canvas: Canvas, ground: Image.Image, at: tuple[int, int], side: int, *, is_mirrored: bool = False, angle: float = 0
) -> Image.Image:
    """Return the ground with what is on the canvas, `side` pixels wide, and its shadow."""
    picture, shadow = canvas.finished(), canvas.shadows
    if is_mirrored:
        picture, shadow = (one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for one in (picture, shadow))
    picture, shadow = (one.resize((side, side), Image.Resampling.LANCZOS) for one in (picture, shadow))
    if angle:
        picture, shadow = (one.rotate(angle, Image.Resampling.BICUBIC) for one in (picture, shadow))
    whole = ground.copy()
    whole.paste(SHADE, (*at, at[0] + side, at[1] + side), shadow)
    whole.paste(picture, at, picture)
    return whole


def boards(size: tuple[int, int]) -> Image.Image:
    """Return a wooden table top from its back edge to the front."""
    wood = painted([(0, (188, 146, 104)), (1, (164, 120, 82))], size, down=True)
    draw = ImageDraw.Draw(wood)
    y, step = 0.0, 34.0
    while y < size[1]:
        draw.line((0, y, size[0], y), fill=(142, 102, 70), width=2)
        for line in range(3):
            offset = y + step * (line + 1) / 4
            start = (line * 397 + int(y) * 13) % size[0]
            draw.line((start, offset, start + size[0] * 0.4, offset + 2), fill=(154, 113, 78), width=2)
        y, step = y + step, step * 1.25  # boards look wider the nearer they are
    return wood.filter(ImageFilter.GaussianBlur(1))
