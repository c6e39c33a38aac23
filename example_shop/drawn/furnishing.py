"""Draw furniture, bags, shoes, watches, cameras and headphones."""

from __future__ import annotations

import math

from example_shop.drawn.canvas import Canvas, Colour, Point, curve, cylinder, darker, gradient, lighter
from example_shop.drawn.household import BRASS, OAK

STEEL: Colour = (176, 180, 186)
INK: Colour = (44, 46, 52)
GLASS: Colour = (40, 52, 74)
RUBBER: Colour = (243, 240, 233)


def legs(c: Canvas, *lines: tuple[Point, Point], width: float = 3, colour: Colour = OAK) -> None:
    for top, foot in lines:
        c.shadow(foot[0] + 1, foot[1] + 0.6, 4, 1.3)
        c.line([top, foot], width, gradient(colour, 0.2), down=True)


def chair(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(50, 90, 26, 3)
    wood = darker(accent, 0.25)
    legs(c, ((41, 62), (37, 86)), ((64, 62), (68, 86)), width=2.4, colour=wood)
    back = curve((33, 13), (50, 10), (67, 13), (71, 30), (67, 52), (50, 56), (33, 52), (29, 30))
    c.shape(back, gradient(colour, 0.16))
    hollow = curve((38, 19), (50, 17), (62, 19), (64, 32), (61, 46), (50, 49), (39, 46), (36, 32))
    c.shape(hollow, gradient(darker(colour, 0.1)))
    seat = curve((30, 51), (50, 49), (70, 51), (77, 62), (70, 67), (50, 69), (30, 67), (23, 62))
    c.shape(seat, gradient(colour), down=True)
    c.shape(
        curve((31, 53), (50, 51.5), (69, 53), (73, 60), (50, 63.5), (27, 60)), gradient(lighter(colour, 0.16), 0.08)
    )
    legs(c, ((32, 66), (26, 90)), ((68, 66), (74, 90)), width=3, colour=accent)


def armchair(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(50, 86, 36, 4)
    legs(c, ((27, 76), (23, 88)), ((73, 76), (77, 88)), width=3.4, colour=accent)
    c.shape(
        curve((28, 22), (50, 17), (72, 22), (77, 44), (74, 70), (50, 73), (26, 70), (23, 44)), gradient(colour, 0.14)
    )
    for x in (38.5, 50, 61.5):
        c.line(curve((x, 24), (x + (x - 50) * 0.08, 40), (x, 54), closed=False), 0.6, darker(colour, 0.2))
    c.box(24, 55, 52, 14, gradient(lighter(colour, 0.14), 0.1), radius=5, down=True)
    c.box(22, 66, 56, 13, gradient(darker(colour, 0.08), 0.12), radius=4, down=True)
    for x in (13, 72):
        c.box(x, 42, 15, 38, cylinder(colour), radius=6.5)
        c.box(x + 2, 43.5, 11, 6, lighter(colour, 0.25), radius=3)


def stool(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(50, 88, 26, 3.2)
    legs(c, ((44, 44), (41, 84)), ((57, 44), (60, 84)), width=2.6, colour=darker(accent, 0.2))
    c.line([(33, 70), (67, 70)], 2, gradient(darker(accent, 0.1)))
    legs(c, ((35, 44), (28, 90)), ((65, 44), (72, 90)), width=3.2, colour=accent)
    c.box(24, 36, 52, 9, cylinder(colour), radius=4.5)
    c.ellipse(50, 37, 26, 5.5, gradient(lighter(colour, 0.14), 0.1))


def backpack(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(50, 90, 28, 3.6)
    c.line(curve((43, 18), (44, 9), (56, 9), (57, 18), closed=False), 2.6, darker(accent, 0.15))
    for side in (-1, 1):
        strap = curve((50 + 22 * side, 34), (50 + 33 * side, 55), (50 + 25 * side, 84), closed=False)
        c.line(strap, 5, gradient(darker(colour, 0.25)))
    body = curve((35, 16), (50, 13), (65, 16), (74, 34), (75, 72), (70, 89), (50, 91), (30, 89), (25, 72), (26, 34))
    c.shape(body, cylinder(colour))
    c.line(curve((30, 46), (34, 25), (50, 20), (66, 25), (70, 46), closed=False), 1.1, darker(colour, 0.35))
    pocket = curve((32, 56), (50, 53), (68, 56), (70, 72), (67, 85), (50, 87), (33, 85), (30, 72))
    c.shape(pocket, cylinder(lighter(colour, 0.1)))
    c.line(curve((33, 61), (50, 58.5), (67, 61), closed=False), 1.1, darker(colour, 0.35))
    c.box(49, 60, 2, 6, cylinder(accent), radius=1)
    c.box(43, 33, 14, 10, gradient(accent, 0.14), radius=2)
    c.box(45.5, 37, 9, 1.4, darker(accent, 0.3), radius=0.7)
    for x in (37, 60):
        c.box(x, 84, 3, 7, gradient(accent), radius=1)


def tote(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(50, 90, 32, 3.6)
    c.line(curve((36, 42), (38, 18), (50, 9), (62, 18), (64, 42), closed=False), 2.6, darker(accent, 0.25))
    body = curve(
        (20, 39), (35, 37.5), (50, 38.5), (65, 37.5), (80, 39), (84, 64), (85, 89), (50, 91), (15, 89), (16, 64)
    )
    c.shape(body, gradient(colour, 0.12))
    with c.inside(body):
        c.box(10, 70, 80, 30, gradient(accent, 0.12))
    c.line(curve((31, 62), (33, 30), (50, 14), (67, 30), (69, 62), closed=False), 2.8, gradient(accent))
    for x in (31, 69):
        c.box(x - 2.6, 57, 5.2, 7, gradient(darker(accent, 0.1)), radius=1)
    c.box(44, 50, 12, 9, lighter(colour, 0.4), radius=1.5)
    c.line([(47, 54.5), (53, 54.5)], 1, accent)


def sneaker(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(50, 78, 43, 3.6)
    c.shape(curve((36, 34), (42, 28), (49, 28), (55, 38), (58, 48), (44, 46)), gradient(darker(colour, 0.28), 0.1))
    top = [(11, 34), (17, 30), (28, 38), (37, 36), (44, 33), (56, 45), (70, 53), (86, 58)]
    upper = curve(*top, (92, 66), (91, 73), (50, 75), (10, 73), (8, 60))
    c.shape(upper, gradient(colour, 0.16), down=True)
    with c.inside(upper):
        c.shape(curve((70, 52), (80, 55), (96, 64), (96, 78), (74, 78), (71, 66)), gradient(lighter(colour, 0.22), 0.1))
        c.shape(curve((6, 48), (18, 48), (24, 60), (22, 78), (4, 78)), gradient(accent, 0.12))
        c.shape([(33, 74), (44, 50), (51, 54), (41, 74)], accent)
        c.shape([(47, 74), (56, 56), (61, 59), (54, 74)], accent)
    for step in range(4):
        x, y = 45 + step * 5.2, 38.5 + step * 4.4
        c.line([(x - 1.5, y + 4.8), (x + 4.4, y - 0.6)], 1.7, RUBBER)
    sole = curve((8, 71), (30, 72), (60, 73), (92, 70), (95, 75), (90, 80), (50, 80.5), (10, 80), (6, 76))
    c.shape(sole, gradient(RUBBER, 0.12), down=True)
    c.line([(11, 77), (90, 77)], 0.7, darker(RUBBER, 0.18))


def boot(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(50, 87, 38, 3.6)
    front = [(28, 17), (42, 16), (57, 18), (57, 40), (62, 54), (78, 61), (88, 70)]
    upper = curve(*front, (88, 82), (50, 83), (25, 82), (24, 62), (27, 40))
    c.shape(upper, cylinder(colour))
    with c.inside(upper):
        c.shape(curve((72, 58), (90, 64), (96, 90), (70, 90), (68, 74)), gradient(lighter(colour, 0.12), 0.1))
        c.box(37, 14, 9, 42, gradient(darker(accent, 0.1), 0.1))
        c.box(20, 14, 40, 4.5, cylinder(darker(colour, 0.3)))
    for step in range(4):
        c.line([(53, 26 + step * 7.5), (58 + step * 0.8, 24.5 + step * 7.5)], 1.8, lighter(accent, 0.5))
    c.line(curve((66, 56), (67, 68), (66, 80), closed=False), 0.7, darker(colour, 0.35))
    c.shape([(24, 81), (89, 81), (90, 87), (46, 87), (44, 90), (24, 90)], gradient(darker(accent, 0.45), 0.1))
    c.line([(25, 81), (88, 81)], 1.4, lighter(accent, 0.2))


def watch(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(52, 53, 24, 26, strength=0.32)
    for top, down in ((3, False), (66, True)):
        ends = (40, 36) if down else (36, 40)
        left, right = 50 - ends[0] / 3, 50 - ends[1] / 3
        c.shape([(right, top), (100 - right, top), (100 - left, top + 31), (left, top + 31)], cylinder(colour))
        for x in (39.6, 60.4):
            c.line([(x, top + 2), (x, top + 29)], 0.5, lighter(colour, 0.4))
    for y in (78, 84, 90):
        c.ellipse(50, y, 1, 1, darker(colour, 0.45))
    c.box(76, 47, 5, 6, cylinder(STEEL), radius=1.5)
    c.ellipse(50, 50, 27, 27, gradient(STEEL, 0.3), down=True)
    c.ellipse(50, 50, 24, 24, darker(STEEL, 0.35))
    c.ellipse(50, 50, 23.4, 23.4, gradient(accent, 0.12), down=True)
    ink = INK if sum(accent) > 380 else RUBBER
    for hour in range(12):
        a = math.radians(30 * hour)
        c.line([(50 + 18 * math.sin(a), 50 - 18 * math.cos(a)), (50 + 20.6 * math.sin(a), 50 - 20.6 * math.cos(a))],
               1.5 if hour % 3 == 0 else 0.8, ink)  # fmt: skip
    for angle, length, width in ((308, 11, 1.8), (48, 16.5, 1.3)):
        a = math.radians(angle)
        c.line([(50, 50), (50 + length * math.sin(a), 50 - length * math.cos(a))], width, ink)
    c.line([(50, 54), (50, 33)], 0.5, (206, 78, 60))
    c.ellipse(50, 50, 1.5, 1.5, (206, 78, 60))


def camera(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(50, 79, 39, 3.4)
    c.box(34, 22, 30, 16, gradient(STEEL, 0.2), radius=4, down=True)
    c.box(18, 26, 12, 8, cylinder(darker(STEEL, 0.2)), radius=2)
    c.box(70, 25, 10, 9, cylinder(STEEL), radius=2)
    c.box(11, 31, 78, 48, gradient(STEEL, 0.22), radius=7, down=True)
    c.box(11, 41, 78, 30, cylinder(colour))
    c.box(39, 25.5, 14, 7.5, gradient(GLASS, 0.3), radius=1.5)
    c.box(73, 44, 10, 4, accent, radius=1.5)
    for radius, paint in (
        (22, gradient(STEEL, 0.3)), (19.5, gradient(INK, 0.2)), (16.5, gradient(darker(STEEL, 0.45), 0.2)),
        (13.5, gradient(INK, 0.1)), (10.5, gradient(GLASS, 0.25)), (6.5, gradient(darker(GLASS, 0.4), 0.1)),
    ):  # fmt: skip
        c.ellipse(50, 56, radius, radius, paint, down=True)
    c.ellipse(45.5, 51, 3.2, 2.6, lighter(GLASS, 0.75))
    c.ellipse(54.5, 61, 1.5, 1.3, lighter(GLASS, 0.5))


def headphones(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(50, 86, 34, 3.4)
    band = curve((21, 60), (20, 36), (34, 17), (50, 13), (66, 17), (80, 36), (79, 60), closed=False)
    c.line(band, 5.5, cylinder(colour))
    c.line(curve((29, 27), (38, 18.5), (50, 15.5), (62, 18.5), (71, 27), closed=False), 3, lighter(colour, 0.22))
    for side in (-1, 1):
        x = 50 + 29 * side
        c.line([(x, 44), (x, 58)], 2.4, gradient(BRASS))
        c.box(x - 8 + side * 4, 50, 16, 34, cylinder(colour), radius=8)
        c.box(x - 7 - side * 5, 52, 12, 30, cylinder(darker(accent, 0.12)), radius=6)
        c.box(x + side * 5 - 2, 58, 4, 18, gradient(accent, 0.2), radius=2, down=True)
