"""Draw products: shapes with soft shading on a transparent canvas of 100 by 100 units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from PIL import Image, ImageChops, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]
Stops = Sequence[tuple[float, Colour]]  # of a gradient: positions from 0 to 1 and their colours

SIZE_PX = 1000
SUPERSAMPLING = 3
UNITS = 100
STEPS = 14  # of a curve, between two points


def lighter(colour: Colour, by: float) -> Colour:
    """Return the colour mixed with white. by: the share of white, 0 to 1."""
    return mixed(colour, (255, 255, 255), by)


def darker(colour: Colour, by: float) -> Colour:
    """Return the colour mixed with a bluish black, as in shade. by: the share of black, 0 to 1."""
    return mixed(colour, (18, 20, 38), by)


def mixed(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def cylinder(colour: Colour) -> Stops:
    """Return the shading of an upright cylinder, lit from the left."""
    return [(0, darker(colour, 0.2)), (0.28, lighter(colour, 0.2)), (0.55, colour), (1, darker(colour, 0.32))]


def gradient(colour: Colour, by: float = 0.18) -> Stops:
    """Return a gradient from a lighter to a darker shade of the colour."""
    return [(0, lighter(colour, by)), (1, darker(colour, by))]


def curve(*points: Point, closed: bool = True) -> list[Point]:
    """Return a smooth line through the points (a Catmull-Rom spline)."""
    count = len(points)
    found: list[Point] = []
    for at in range(count if closed else count - 1):
        around = [at - 1, at, at + 1, at + 2]
        if closed:
            a, b, c, d = (points[place % count] for place in around)
        else:
            a, b, c, d = (points[min(max(place, 0), count - 1)] for place in around)
        for step in range(STEPS):
            t = step / STEPS
            found.append((_between(a[0], b[0], c[0], d[0], t), _between(a[1], b[1], c[1], d[1], t)))
    return found if closed else [*found, points[-1]]


def _between(a: float, b: float, c: float, d: float, t: float) -> float:
    return 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)


def revolved(centre: float, *profile: Point) -> list[Point]:
    """Return the outline of a solid of revolution. profile: (radius, y) from the top down, smoothed."""
    side = curve(*profile, closed=False)
    return [(centre + r, y) for r, y in side] + [(centre - r, y) for r, y in reversed(side)]


class Canvas:
    """A transparent picture of UNITS by UNITS, and the shadow that its contents cast."""

    def __init__(self) -> None:
        side = SIZE_PX * SUPERSAMPLING
        self.scale = side / UNITS
        self.picture = Image.new("RGBA", (side, side))
        self.shadows = Image.new("L", (SIZE_PX, SIZE_PX))
        self._clip: Image.Image | None = None

    def shape(self, outline: Sequence[Point], paint: Colour | Stops, *, down: bool = False) -> None:
        """Fill an outline. down: whether the gradient runs from top to bottom instead of from left to right."""
        points = [(x * self.scale, y * self.scale) for x, y in outline]
        self._fill(lambda draw: draw.polygon(points, fill=255), _bounds(points), paint, down)

    def ellipse(self, x: float, y: float, rx: float, ry: float, paint: Colour | Stops, *, down: bool = False) -> None:
        """Fill an ellipse around (x, y)."""
        box = [v * self.scale for v in (x - rx, y - ry, x + rx, y + ry)]
        self._fill(lambda draw: draw.ellipse(box, fill=255), _bounds([(box[0], box[1]), (box[2], box[3])]), paint, down)

    def box(
        self, x: float, y: float, width: float, height: float, paint: Colour | Stops, *, radius: float = 0,
        down: bool = False,
    ) -> None:  # fmt: skip
        """Fill a rectangle with its upper left corner at (x, y)."""
        box = [v * self.scale for v in (x, y, x + width, y + height)]
        corner = radius * self.scale
        bounds = _bounds([(box[0], box[1]), (box[2], box[3])])
        self._fill(lambda draw: draw.rounded_rectangle(box, corner, fill=255), bounds, paint, down)

    def line(self, line: Sequence[Point], width: float, paint: Colour | Stops, *, down: bool = False) -> None:
        """Draw a line with round ends."""
        points = [(x * self.scale, y * self.scale) for x, y in line]
        half = width * self.scale / 2

        def draw_line(draw: ImageDraw.ImageDraw) -> None:
            draw.line(points, fill=255, width=round(2 * half), joint="curve")
            for x, y in points:
                draw.ellipse((x - half, y - half, x + half, y + half), fill=255)

        left, top, right, bottom = _bounds(points)
        pad = math.ceil(half)
        self._fill(draw_line, (left - pad, top - pad, right + pad, bottom + pad), paint, down)

    def ring(self, x: float, y: float, rx: float, ry: float, width: float, paint: Colour | Stops) -> None:
        angles = [2 * math.pi * step / 120 for step in range(121)]
        self.line([(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles], width, paint)

    def shadow(self, x: float, y: float, rx: float, ry: float, *, strength: float = 0.42, blur: float = 2.2) -> None:
        """Cast a soft shadow on the ground around (x, y)."""
        scale = SIZE_PX / UNITS
        layer = Image.new("L", self.shadows.size)
        box = [v * scale for v in (x - rx, y - ry, x + rx, y + ry)]
        ImageDraw.Draw(layer).ellipse(box, fill=round(255 * strength))
        self.shadows = ImageChops.lighter(self.shadows, layer.filter(ImageFilter.GaussianBlur(blur * scale)))

    @contextmanager
    def inside(self, outline: Sequence[Point]) -> Iterator[None]:
        """Clip everything drawn in this context to an outline."""
        self._clip = Image.new("L", self.picture.size)
        ImageDraw.Draw(self._clip).polygon([(x * self.scale, y * self.scale) for x, y in outline], fill=255)
        yield
        self._clip = None

    def finished(self) -> Image.Image:
        """Return the picture, RGBA, SIZE_PX by SIZE_PX."""
        return self.picture.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)

    def _fill(self, draw_mask, bounds: tuple[int, int, int, int], paint: Colour | Stops, down: bool) -> None:
        """Paint where the mask is drawn; change only the pixels inside `bounds`."""
        left, top = max(bounds[0], 0), max(bounds[1], 0)
        right, bottom = min(bounds[2], self.picture.width), min(bounds[3], self.picture.height)
        whole = Image.new("L", (right, bottom))
        draw_mask(ImageDraw.Draw(whole))
        mask = whole.crop((left, top, right, bottom))
        if self._clip is not None:
            mask = ImageChops.multiply(mask, self._clip.crop((left, top, right, bottom)))
        layer = painted(paint, mask.size, down=down)
        layer.putalpha(mask)
        self.picture.alpha_composite(layer, (left, top))


def painted(paint: Colour | Stops, size: tuple[int, int], *, down: bool) -> Image.Image:
    """Return an RGB picture of one colour, or of a gradient from left to right or from the top down."""
    if isinstance(paint[0], int):
        return Image.new("RGB", size, paint)
    strip = Image.new("RGB", (256, 1))
    strip.putdata([_colour_at(paint, step / 255) for step in range(256)])
    if down:
        strip = strip.transpose(Image.Transpose.ROTATE_270)
    return strip.resize(size, Image.Resampling.BILINEAR)


def _colour_at(stops: Stops, at: float) -> Colour:
    for (start, one), (end, other) in zip(stops, stops[1:], strict=False):
        if at <= end:
            return mixed(one, other, (at - start) / (end - start))
    return stops[-1][1]


def _bounds(points: Sequence[Point]) -> tuple[int, int, int, int]:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return math.floor(min(xs)), math.floor(min(ys)), math.ceil(max(xs)) + 1, math.ceil(max(ys)) + 1
