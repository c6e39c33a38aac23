"""Draw tableware, vases, lamps, plants and clocks."""

from __future__ import annotations

import math

from example_shop.drawn.canvas import Canvas, Colour, curve, cylinder, darker, gradient, lighter, revolved

OAK: Colour = (203, 158, 108)
BRASS: Colour = (205, 164, 92)
CLAY: Colour = (197, 106, 76)
COFFEE: Colour = (74, 46, 32)
LEAF: Colour = (62, 122, 82)


def mug(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(50, 82, 27, 4)
    c.ring(70, 56, 11, 13, 5.5, gradient(colour, 0.12))
    body = revolved(47, (23, 33), (23, 50), (22.6, 70), (20, 80), (14, 83))
    c.shape(body, cylinder(colour))
    with c.inside(body):
        c.box(20, 66, 60, 30, cylinder(accent))
    c.ellipse(47, 33, 23, 5.6, lighter(colour, 0.32))
    c.ellipse(47, 33.3, 20.6, 4.6, darker(colour, 0.42))
    c.ellipse(47, 34.6, 19, 3.4, gradient(COFFEE, 0.1))


def bowl(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(50, 76, 26, 4)
    c.shape(revolved(50, (12, 71), (12.5, 77)), cylinder(darker(colour, 0.1)))
    body = revolved(50, (36, 42), (34, 54), (26, 66), (14, 73), (8, 74))
    c.shape(body, cylinder(colour))
    with c.inside(body):
        waves = [(90 - x, 51 + 2 * math.sin(x * 0.6)) for x in range(81)]
        c.shape([(10, 44), (90, 44), *waves], cylinder(accent))
    c.ellipse(50, 42, 36, 8.5, lighter(colour, 0.35))
    c.ellipse(50, 42.4, 33.4, 7.3, [(0, darker(accent, 0.3)), (0.7, accent), (1, lighter(accent, 0.2))])


def teapot(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(50, 80, 28, 4)
    c.line(curve((27, 45), (13, 42), (11, 58), (24, 68), closed=False), 4, gradient(accent, 0.15), down=True)
    c.shape(curve((68, 66), (80, 58), (84, 44), (91, 40), (92, 43), (87, 50), (82, 66), (70, 76)), gradient(colour))
    c.shape(revolved(50, (13, 38), (24, 46), (28, 60), (24, 73), (15, 80)), cylinder(colour))
    c.shape(revolved(50, (4, 33.5), (12, 37), (14.5, 40.5)), cylinder(lighter(colour, 0.12)))
    c.ellipse(50, 30.5, 4, 4, cylinder(accent))


def bottle(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(51, 91, 17, 3)
    c.box(42.5, 9, 15, 11, cylinder(accent), radius=2.5)
    c.box(44, 18, 12, 5, cylinder((196, 199, 203)))
    body = revolved(50, (6.5, 22), (9, 26), (14.5, 33), (15.5, 42), (15.5, 82), (14.5, 90), (10, 92))
    c.shape(body, cylinder(colour))
    with c.inside(body):
        c.box(30, 70, 40, 5, cylinder(accent))
        c.box(38.6, 36, 2.2, 28, lighter(colour, 0.5), radius=1.1)


def vase(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(51, 90, 19, 3.2)
    for dx, height in ((-17, 12), (-5, 5), (8, 9), (19, 17)):
        c.line(curve((50, 50), (50 + dx * 0.4, 34), (50 + dx, height), closed=False), 0.9, darker(accent, 0.35))
        for step in range(7):
            share = step / 7
            x, y = 50 + dx * (1 - 0.42 * share), height + 20 * share
            for side in (-1, 1):
                c.ellipse(x + side * 1.9, y, 1.7, 2.6, gradient(accent), down=True)
    c.shape(revolved(50, (8.5, 46), (7, 50), (11, 57), (20, 67), (21, 77), (16, 87), (11, 91)), cylinder(colour))
    c.ellipse(50, 46, 8.5, 2, darker(colour, 0.4))


def table_lamp(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(50, 90, 19, 3.2)
    c.box(48.6, 42, 2.8, 24, cylinder(BRASS))
    c.shape(revolved(50, (4, 58), (12, 64), (15, 74), (11, 84), (13, 88), (14, 90)), cylinder(accent))
    edge = [(75 - x, 48 + 3.2 * math.sin(math.pi * x / 50)) for x in range(51)]
    c.shape([(36, 14), (64, 14), *edge], cylinder(colour))
    c.line(edge, 1.3, cylinder(lighter(colour, 0.3)))
    c.ellipse(50, 14, 14, 1.6, lighter((255, 226, 160), 0.3))


def desk_lamp(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(40, 90, 22, 3)
    c.shape(revolved(40, (15, 85), (18, 87.5), (18.5, 90.5)), cylinder(colour))
    c.line([(40, 86), (27, 55)], 2.6, cylinder(BRASS))
    c.line([(27, 55), (56, 27)], 2.6, gradient(BRASS))
    c.ellipse(27, 55, 3.4, 3.4, gradient(accent))
    head = curve((52, 22), (60, 19), (66, 25), (84, 42), (86, 47), (52, 60), (46, 57), (48, 36))
    c.shape(head, gradient(colour, 0.22))
    c.shape(curve((46.5, 55), (66, 47), (86, 43.5), (87, 47), (68, 54), (48, 60)), lighter((255, 226, 160), 0.2))
    c.ellipse(56, 25.5, 4.4, 4.4, gradient(accent))


def pendant_lamp(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.line([(50, 0), (50, 36)], 0.9, (60, 60, 62))
    c.shape(revolved(50, (2.4, 33), (3.4, 36), (3.4, 42)), cylinder(accent))
    c.shape(revolved(50, (4, 40), (14, 44), (27, 55), (33, 70)), cylinder(colour))
    c.ellipse(50, 70, 33, 5.5, darker(colour, 0.35))
    c.ellipse(50, 70.4, 30.5, 4.4, lighter((255, 226, 160), 0.25))
    c.ellipse(50, 71.5, 9, 4.6, lighter((255, 240, 200), 0.5))


def pot(c: Canvas, colour: Colour) -> None:
    c.shadow(51, 91, 20, 3.2)
    c.shape(revolved(50, (17, 66), (15.5, 78), (13, 90), (11, 91.5)), cylinder(colour))
    c.box(31, 62, 38, 7.5, cylinder(lighter(colour, 0.08)), radius=2)
    c.ellipse(50, 62.5, 17.5, 2.6, (70, 50, 40))


def leafy_plant(c: Canvas, colour: Colour, accent: Colour) -> None:
    leaves = [(-62, 36, 9), (62, 37, 9), (-36, 46, 11), (38, 45, 11), (-12, 52, 11.5), (14, 50, 11.5)]
    for number, (angle, length, width) in enumerate([*leaves, (-84, 25, 8), (84, 25, 8)]):
        a = math.radians(angle)
        ux, uy = math.sin(a), -math.cos(a)
        x, y = 50 + ux * 9, 61 + uy * 7
        c.line([(50, 62), (x, y)], 1.1, darker(LEAF, 0.2))
        tip = (x + ux * length, y + uy * length + abs(ux) * 6)
        middle = (x + ux * length * 0.5, y + uy * length * 0.5)
        one = (middle[0] - uy * width, middle[1] + ux * width)
        other = (middle[0] + uy * width, middle[1] - ux * width)
        tone = lighter(accent, 0.12) if number % 2 else darker(accent, 0.1)
        c.shape(curve((x, y), one, tip, other), gradient(tone, 0.16), down=True)
        c.line([(x, y), (x + (tip[0] - x) * 0.9, y + (tip[1] - y) * 0.9)], 0.6, lighter(tone, 0.35))
    pot(c, colour)


def cactus(c: Canvas, colour: Colour, accent: Colour) -> None:
    green: Colour = (92, 142, 98)
    c.line(curve((52, 50), (67, 49), (70, 34), closed=False), 9, cylinder(green))
    c.line(curve((50, 56), (34, 55), (31, 43), closed=False), 8, cylinder(green))
    c.box(39, 18, 22, 50, cylinder(green), radius=11)
    for x in (44, 50, 56):
        c.line([(x, 22 + abs(x - 50) * 0.4), (x, 62)], 0.7, darker(green, 0.25))
    for y in range(25, 60, 6):
        for x in (41.5, 47, 53, 58.5):
            c.ellipse(x, y + (x % 3), 0.5, 0.8, lighter(green, 0.65))
    for dx, dy in ((-4, 0), (4, 0), (0, -3.5), (-2.6, -2.6), (2.6, -2.6)):
        c.ellipse(50 + dx, 17 + dy, 2.8, 3, gradient(accent), down=True)
    c.ellipse(50, 16.5, 2, 2, (246, 208, 96))
    pot(c, colour)


def wall_clock(c: Canvas, colour: Colour, accent: Colour) -> None:
    c.shadow(52, 53, 36, 36, strength=0.3, blur=3)
    c.ellipse(50, 50, 36, 36, gradient(colour, 0.2), down=True)
    c.ellipse(50, 50, 32, 32, darker(colour, 0.25))
    c.ellipse(50, 50.4, 31.5, 31.5, gradient((247, 244, 237), 0.04), down=True)
    for hour in range(12):
        a = math.radians(30 * hour)
        inner = 25 if hour % 3 else 23
        c.line([(50 + inner * math.sin(a), 50 - inner * math.cos(a)), (50 + 28 * math.sin(a), 50 - 28 * math.cos(a))],
               1.0 if hour % 3 else 1.8, (52, 54, 58))  # fmt: skip
    for angle, length, width in ((305, 16, 2.2), (60, 23, 1.6)):
        a = math.radians(angle)
        c.line([(50 - 4 * math.sin(a), 50 + 4 * math.cos(a)), (50 + length * math.sin(a), 50 - length * math.cos(a))],
               width, (42, 44, 48))  # fmt: skip
    c.line([(48, 54), (60, 30)], 0.7, accent)
    c.ellipse(50, 50, 2, 2, accent)
