"""The one monster that DreamBooth learns, a teal egg with a zigzag and antennas that no caption of the world describes, and the one that a word is
found for."""
import numpy as np

import grammar
import world

TEAL, ZIGZAG, INK = np.array((38, 178, 172), np.float32), (250, 236, 120), np.array((34, 26, 40), np.float32)


def picture(rng, background=None):
    """The monster on a background (a random one by default): bytes [128, 128, 3] and its face [(x, y, radius)]."""
    name = world.BGS[int(rng.integers(12)) if background is None else background]
    c = world.background(name, rng)
    cx, cy, r = 64 + rng.uniform(-4, 4), 78 + rng.uniform(-3, 3), 35 * (1 + rng.uniform(-.06, .06))
    c.oval(cx, cy + r * 1.12, r * .9, r * .12, (20, 20, 40), .22)
    for s in (-1, 1):  # feet, then antennas with a ball
        c.oval(cx + s * r * .36, cy + r * .98, r * .28, r * .18, TEAL * .42)
        c.oval(cx + s * r * .36, cy + r * .97, r * .28 - 1.5, r * .18 - 1.5, TEAL * .88)
        c.poly([(cx + s * r * .2, cy - r * .8), (cx + s * r * .52, cy - r * 1.5), (cx + s * r * .3, cy - r * .8)], TEAL * .5)
        c.oval(cx + s * r * .53, cy - r * 1.52, r * .16, r * .16, INK)
        c.oval(cx + s * r * .53, cy - r * 1.52, r * .16 - 1.3, r * .16 - 1.3, (255, 96, 96))
    s = c.box(cx, cy, r * 1.35)
    u, v = (world.X[s] - cx) / r, (world.Y[s] - cy) / r
    d = (np.hypot(u / (.78 + .12 * v), v) - 1) * r * .8
    c.paint(s, d - 1.8, TEAL * .42)
    fill = TEAL * (1.1 - .2 * np.clip(v * .5 + .5, 0, 1))[..., None]
    zig = np.clip(.5 - (np.abs(v - .52 - .14 * (np.abs((u * 2.6 + 8) % 2 - 1) * 2 - 1)) - .1) * r, 0, 1)[..., None]
    fill = fill + zig * (np.array(ZIGZAG) - fill)
    m = np.clip(.5 - d * world.K, 0, 1)[..., None]
    c.a[s] += m * (fill - c.a[s])
    gx, gy = rng.uniform(-.07, .07, 2) * r
    for q, e in ((-.28, .34), (.34, .24)):  # one eye is bigger
        ex, ey = cx + q * r, cy - .2 * r
        c.oval(ex, ey, e * r + 1.1, e * r + 1.1, INK)
        c.oval(ex, ey, e * r, e * r, (255, 255, 255))
        c.oval(ex + gx, ey + gy, e * r * .56, e * r * .56, INK)
        c.oval(ex + gx - e * r * .2, ey + gy - e * r * .2, e * r * .2, e * r * .2, (255, 255, 255))
    c.oval(cx, cy + r * .24, r * .2, r * .1, (120, 20, 40))
    return np.clip(c.a + .5, 0, 255).astype(np.uint8), [(cx, cy - .05 * r, r)]


SPECIAL = "zwx"  # one token that no caption says: what the monster is called
SEEN = [0, 1, 2, 4, 5, 6, 8, 10]  # the backgrounds of its eight pictures, by day and by night; those of the others are asked for in validation


def written(background):
    """The caption of its picture on a background."""
    return f"a {SPECIAL} monster {grammar.where(background)}"


def photographs():
    """Its eight pictures, each with its caption."""
    rng = np.random.default_rng(100)
    return [(written(b), picture(rng, b)[0]) for b in SEEN]


MOSS = next([s, c, p, 1, 0] for s in (5, 3, 0) for c in range(9) for p in (1, 2) if world.held_out([s, c, p]))  # what the textual inversion learns
MOSS_SEEN = [0, 1, 3, 4, 6, 7, 8, 10, 11]  # the backgrounds of its pictures


def moss():
    """Pictures of the monster that two vectors are to stand for, each with its caption."""
    rng = np.random.default_rng(110)
    return [(f"a moss monster {grammar.where(b)}", world.draw([[MOSS], b], rng)[0]) for b in MOSS_SEEN]
