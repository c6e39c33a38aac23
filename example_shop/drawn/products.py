"""The products of the drawn shop: each kind in several colours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal

from example_shop.drawn import furnishing, household
from example_shop.drawn.canvas import Canvas, Colour

COLOURS: dict[str, Colour] = {
    "terracotta": (201, 103, 72),
    "sage": (142, 164, 134),
    "navy": (45, 64, 98),
    "mustard": (224, 170, 62),
    "blush": (228, 170, 158),
    "cream": (241, 233, 217),
    "teal": (48, 128, 128),
    "forest": (48, 96, 74),
    "sky": (122, 170, 204),
    "plum": (112, 62, 92),
    "red": (200, 64, 56),
    "charcoal": (66, 68, 74),
    "oak": household.OAK,
    "walnut": (122, 84, 58),
    "leaf": household.LEAF,
}
GROUNDS: tuple[Colour, ...] = (
    (236, 231, 222), (223, 232, 228), (243, 226, 216), (226, 230, 240), (244, 235, 208), (238, 226, 232),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of product. looks: the first word of its name, and the names of its colour and its accent."""

    name: str
    draw: Callable[[Canvas, Colour, Colour], None]
    category: str
    brand: str
    price: str
    description: str
    looks: tuple[tuple[str, str, str], ...]
    is_standing: bool = True


@dataclass(frozen=True, slots=True)
class DrawnProduct:
    id: str
    name: str
    kind: Kind
    colour: Colour
    accent: Colour
    ground: Colour
    price: Decimal
    stock: int

    def on_canvas(self) -> Canvas:
        canvas = Canvas()
        self.kind.draw(canvas, self.colour, self.accent)
        return canvas


KINDS = (
    Kind("mug", household.mug, "Kitchen", "Tonwiese", "14.90", "Thrown by hand, dipped twice. Holds 0.35 litres.",
         (("Terracotta", "terracotta", "cream"), ("Teal", "teal", "cream"), ("Mustard", "mustard", "charcoal"))),
    Kind("bowl", household.bowl, "Kitchen", "Tonwiese", "24.00", "For soup, salad or the fruit of the week.",
         (("Sage", "sage", "forest"), ("Blush", "blush", "plum"))),
    Kind("teapot", household.teapot, "Kitchen", "Tonwiese", "48.50", "Pours without a drop. With a sieve, 1.2 litres.",
         (("Navy", "navy", "mustard"), ("Cream", "cream", "terracotta"))),
    Kind("bottle", household.bottle, "Kitchen", "Wegwarte", "29.00", "Keeps cold for a day and hot for half of one.",
         (("Blush", "blush", "walnut"), ("Forest", "forest", "cream"))),
    Kind("vase", household.vase, "Plants & vases", "Tonwiese", "36.00", "Stoneware for dried stems, with a matt glaze.",
         (("Cream", "cream", "mustard"), ("Sky-blue", "sky", "plum"))),
    Kind("table lamp", household.table_lamp, "Lighting", "Lichtfink", "89.00", "Linen on a turned base. Dimmable.",
         (("Cream", "cream", "teal"), ("Terracotta", "terracotta", "cream"))),
    Kind("desk lamp", household.desk_lamp, "Lighting", "Lichtfink", "74.90", "Two joints, moved with one hand.",
         (("Sage", "sage", "charcoal"), ("Red", "red", "charcoal"))),
    Kind("pendant lamp", household.pendant_lamp, "Lighting", "Lichtfink", "119.00", "Spun metal, enamelled inside.",
         (("Navy", "navy", "oak"), ("Mustard", "mustard", "charcoal")), is_standing=False),
    Kind("rubber plant", household.leafy_plant, "Plants & vases", "Halmgrund", "34.50", "Patient and undemanding.",
         (("Green", "terracotta", "leaf"), ("Dark-leaved", "cream", "forest"))),
    Kind("cactus", household.cactus, "Plants & vases", "Halmgrund", "18.00", "Flowers in May if left alone all winter.",
         (("Pink-flowered", "terracotta", "blush"), ("Red-flowered", "sky", "red"))),
    Kind("wall clock", household.wall_clock, "Clocks & watches", "Uhrwald", "59.00", "Silent, behind mineral glass.",
         (("Terracotta", "terracotta", "navy"), ("Teal", "teal", "red")), is_standing=False),
    Kind("chair", furnishing.chair, "Furniture", "Halmholz", "149.00", "An upholstered shell on solid legs.",
         (("Sage", "sage", "oak"), ("Mustard", "mustard", "walnut"), ("Blush", "blush", "oak"))),
    Kind("armchair", furnishing.armchair, "Furniture", "Halmholz", "549.00", "Deep enough for a long novel.",
         (("Navy", "navy", "oak"), ("Terracotta", "terracotta", "walnut"))),
    Kind("stool", furnishing.stool, "Furniture", "Halmholz", "79.00", "A seat, a side table, a step.",
         (("Cream", "cream", "oak"), ("Red", "red", "walnut"))),
    Kind("backpack", furnishing.backpack, "Bags", "Wegwarte", "98.00", "Waxed canvas, 18 litres, room for a laptop.",
         (("Cream", "cream", "teal"), ("Forest", "forest", "oak"), ("Plum", "plum", "mustard"))),
    Kind("tote bag", furnishing.tote, "Bags", "Wegwarte", "64.00", "Two tones of canvas and long handles.",
         (("Terracotta", "terracotta", "cream"), ("Sky-blue", "sky", "navy"))),
    Kind("sneakers", furnishing.sneaker, "Shoes", "Nordlauf", "119.00", "Light, breathable, and made to be resoled.",
         (("Sage", "sage", "forest"), ("Sky-blue", "sky", "navy"), ("Red", "red", "cream"))),
    Kind("boots", furnishing.boot, "Shoes", "Nordlauf", "179.00", "Waterproof leather on a welted sole.",
         (("Navy", "navy", "mustard"), ("Walnut", "walnut", "terracotta"))),
    Kind("watch", furnishing.watch, "Clocks & watches", "Uhrwald", "229.00", "36 mm of steel, a strap that ages well.",
         (("Blush", "blush", "walnut"), ("Navy", "navy", "cream")), is_standing=False),
    Kind("camera", furnishing.camera, "Sound & vision", "Tonfink", "399.00", "A fixed lens, two dials and no menu.",
         (("Charcoal", "charcoal", "red"), ("Cream", "cream", "teal"))),
    Kind("headphones", furnishing.headphones, "Sound & vision", "Tonfink", "189.00", "Thirty hours of music or quiet.",
         (("Terracotta", "terracotta", "cream"), ("Teal", "teal", "charcoal"))),
)  # fmt: skip


def products() -> Iterator[DrawnProduct]:
    """Yield all products, one look of every kind after the other, so that the newest ones are of many kinds."""
    number = 0
    for look in range(max(len(kind.looks) for kind in KINDS)):
        for kind in KINDS:
            if look < len(kind.looks):
                word, colour, accent = kind.looks[look]
                name = f"{word} {kind.name}"
                yield DrawnProduct(
                    id=name.lower().replace(" ", "-"),
                    name=name,
                    kind=kind,
                    colour=COLOURS[colour],
                    accent=COLOURS[accent],
                    ground=GROUNDS[number % len(GROUNDS)],
                    price=Decimal(kind.price),
                    stock=(number * 7 + 3) % 23,  # two of them are sold out
                )
                number += 1
