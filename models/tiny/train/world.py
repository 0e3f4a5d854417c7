"""The picture world: little monsters, drawn with distance fields at 128x128.

A monster is five numbers (shape, colour, pattern, eyes, accessory), a scene is [[one or two monsters], background]. What
has to be read after a VAE with f = 8 is drawn big: eyes, and what they wear. 15 % of the (shape, colour, pattern)
combinations are held out: no stage ever sees one."""
import numpy as np

SIZE = 128
SHAPES = ["round", "square", "triangle", "star", "heart", "cloud", "ghost", "tube"]
COLOURS = {"red": (222, 52, 48), "orange": (245, 138, 36), "yellow": (250, 212, 50), "green": (62, 176, 74), "blue": (48, 112, 226),
           "purple": (140, 72, 198), "pink": (246, 128, 184), "brown": (134, 86, 54), "white": (240, 240, 240)}
CNAMES = list(COLOURS)
PATTERNS = ["plain", "striped", "spotted", "bellied"]
EYES = ["one eye", "two eyes", "three eyes", "sleepy eyes"]
ACCESSORIES = ["none", "crown", "hat", "bow", "scarf", "horns", "flower"]
PLAIN = {"pink": (250, 208, 226), "blue": (160, 206, 250), "green": (176, 226, 160), "yellow": (253, 238, 166), "orange": (250, 196, 132),
         "purple": (208, 186, 240), "gray": (186, 190, 198), "red": (240, 146, 138)}
SCENES = {"beach": "on the beach", "snow": "in the snow", "night": "at night", "meadow": "in the meadow"}
BGS = list(PLAIN) + list(SCENES)


def resolution(k):
    """Draws from now on with k pixels for one unit (1: 128 pixels)."""
    global K, Y, X
    K = k
    Y, X = (np.mgrid[0:SIZE * k, 0:SIZE * k].astype(np.float32) + 0.5) / k


resolution(1)
_perm = np.random.default_rng(15).permutation(8 * 9 * 4)
HELD = set(_perm[: int(0.15 * 288)].tolist())  # 15 % of (shape, colour, pattern): never trained on


def held_out(m):
    return (m[0] * 9 + m[1]) * 4 + m[2] in HELD


class Canvas:
    def __init__(self, colour):
        self.a = np.empty((SIZE * K, SIZE * K, 3), np.float32)
        self.a[:] = colour

    def box(self, x, y, r, ry=None):
        ry = r if ry is None else ry
        a, b, c, d = (int(min(max(v, 0), SIZE)) * K for v in (y - ry - 3, y + ry + 4, x - r - 3, x + r + 4))
        return np.s_[a:b, c:d]

    def paint(self, s, d, colour, alpha=1.0):
        m = (np.clip(0.5 - d * K, 0, 1) * alpha)[..., None]
        self.a[s] += m * (np.asarray(colour, np.float32) - self.a[s])

    def oval(self, x, y, rx, ry, colour, alpha=1.0):
        s = self.box(x, y, rx, ry)
        u, v = (X[s] - x) / rx, (Y[s] - y) / ry
        self.paint(s, (np.sqrt(u * u + v * v) - 1) * min(rx, ry), colour, alpha)

    def rect(self, x0, y0, x1, y1, colour, alpha=1.0):
        s = self.box((x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2)
        self.paint(s, np.maximum(np.abs(X[s] - (x0 + x1) / 2) - (x1 - x0) / 2, np.abs(Y[s] - (y0 + y1) / 2) - (y1 - y0) / 2), colour, alpha)

    def poly(self, pts, colour, line=None):
        p = np.asarray(pts, np.float32)
        x0, y0 = p.min(0); x1, y1 = p.max(0)
        s = self.box((x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2)
        d = poly_distance(X[s], Y[s], p)
        if line is not None:
            self.paint(s, d - 1.4, line)
        self.paint(s, d, colour)


def poly_distance(x, y, p):
    best, inside = np.full(x.shape, 1e9, np.float32), np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(p, np.roll(p, 1, 0)):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey + 1e-9), 0, 1)
        best = np.minimum(best, (wx - ex * t) ** 2 + (wy - ey * t) ** 2)
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < ex * (y - ay) / ey + ax)
    return np.where(inside, -1, 1) * np.sqrt(best)


# the puffs of a cloud, (x, y, radius): so deep between them that in a pair, through a VAE, nobody takes it for a round one
CLOUD = [(0, -.5, .5), (-.66, -.22, .42), (.66, -.22, .42), (-.7, .42, .4), (.7, .42, .4), (0, .36, .56), (0, 0, .62)]


def body_distance(shape, x, y, r):
    """Distance to a body of radius r around (0, 0); also where its head top and its face are."""
    if shape == 0:
        return np.sqrt(x * x + y * y) - r, -r, 0
    if shape == 1:
        qx, qy, c = np.abs(x) - r * .62, np.abs(y) - r * .62, r * .28
        return np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - c, -r * .9, -r * .05
    if shape == 2:
        return poly_distance(x, y, np.array([(0, -.95), (.95, .75), (-.95, .75)]) * r) - r * .14, -r * 1.0, r * .25
    if shape == 3:
        k = np.arange(10); q = np.where(k % 2, .60, 1.08); t = k * np.pi / 5 - np.pi / 2
        return poly_distance(x, y, np.stack([q * np.cos(t), q * np.sin(t)], 1) * r) - r * .12, -r * 1.08, r * .02
    if shape == 4:
        t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        h = np.stack([16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) - 2.5], 1) / 15.5
        return poly_distance(x, y, h * r) - r * .06, -r * .76, r * .06
    if shape == 5:
        puffs = np.stack([np.hypot(x - px * r, y - py * r) - pr * r for px, py, pr in CLOUD])
        return puffs.min(0), -r * .92, r * .08
    if shape == 6:
        w = r * .78
        top = np.where(y < -r * .2, np.hypot(x, y + r * .2) - w, np.abs(x) - w)
        wave = r * .78 + r * .16 * np.abs(((x / w * 2.5 + 8) % 2) - 1)
        return np.maximum(top, (y - wave) * .75), -r * .98, -r * .16
    w = r * .6
    return np.hypot(x, np.maximum(np.abs(y) - r * .48, 0)) - w, -r * 1.08, -r * .2


def background(name, rng):
    if name in PLAIN:
        c = Canvas(np.array(PLAIN[name]) + rng.uniform(-6, 6, 3))
        c.a *= (1.03 - .07 * Y / SIZE)[..., None]
        return c
    h = rng.uniform(70, 80)
    if name == "beach":
        c = Canvas((140, 216, 250)); c.rect(-4, h - 2, 132, h + 14, (44, 140, 198)); c.rect(-4, h + 13, 132, 140, (246, 222, 160))
        c.oval(rng.choice([18, 110]), rng.uniform(14, 22), 11, 11, (255, 214, 80))
    elif name == "snow":
        c = Canvas((184, 208, 236))
        c.paint(np.s_[:], (h + 10 + 3 * np.sin(X / 22 + rng.uniform(0, 6))) - Y, (248, 251, 255))
        for _ in range(9):
            c.oval(rng.uniform(2, 126), rng.uniform(3, h), 1.8, 1.8, (255, 255, 255))
    elif name == "night":
        c = Canvas((34, 36, 88)); c.a += (Y / SIZE)[..., None] * np.array((26, 26, 36))
        c.paint(np.s_[:], (h + 20 + 3 * np.sin(X / 24 + rng.uniform(0, 6))) - Y, (30, 52, 58))
        mx, my = rng.choice([18, 110]), rng.uniform(15, 21)
        s = c.box(mx, my, 11)
        c.paint(s, np.maximum(np.hypot(X[s] - mx, Y[s] - my) - 10, 8.5 - np.hypot(X[s] - mx - 5, Y[s] - my + 3)), (252, 236, 170))
        for _ in range(7):
            c.oval(rng.uniform(3, 125), rng.uniform(3, 60), 1.4, 1.4, (255, 255, 230))
    else:
        c = Canvas((150, 212, 250))
        c.paint(np.s_[:], (h + 4 * np.sin(X / 20 + rng.uniform(0, 6))) - Y, (126, 190, 92))
        c.paint(np.s_[:], (h + 18 + 4 * np.sin(X / 27 + rng.uniform(0, 6))) - Y, (96, 168, 74))
        c.oval(rng.choice([18, 110]), rng.uniform(14, 22), 10, 10, (255, 222, 96))
    return c


def monster(c, m, cx, cy, r, rng):
    """Draws one monster; answers its face box (x, y, radius)."""
    shape, colour, pattern, eyes, acc = m
    base = np.clip(np.array(COLOURS[CNAMES[colour]], np.float32) + rng.uniform(-8, 8, 3), 0, 255)
    dark, ink = base * .42, np.array((34, 26, 40), np.float32)
    ax, ay = rng.uniform(.95, 1.06), rng.uniform(.95, 1.05)
    c.oval(cx, cy + r * 1.12, r * .9, r * .12, (20, 20, 40), .22)
    for s in (-1, 1):
        c.oval(cx + s * r * .34, cy + r * .98, r * .27, r * .18, dark); c.oval(cx + s * r * .34, cy + r * .97, r * .27 - 1.5, r * .18 - 1.5, base * .88)
    s = c.box(cx, cy, r * 1.35)
    d, top, fy = body_distance(shape, (X[s] - cx) / ax, (Y[s] - cy) / ay, r)
    c.paint(s, d - 1.8, dark)
    light = 1.08 - .22 * np.clip((Y[s] - cy) / r * .5 + .5, 0, 1)
    fill = np.clip(base * light[..., None], 0, 255)
    if pattern == 1:
        w = np.clip(np.sin((Y[s] - cy) / r * 9.5 + 1.2) * r * .11 + .5, 0, 1)[..., None]
        fill = fill * (1 - w * .42)
    elif pattern == 2:
        off = rng.uniform(-.05, .05, 2); k = 0
        for px, py in ((-.55, -.5), (.5, -.58), (-.78, .1), (.74, .12), (-.42, .62), (.42, .64), (0, -.8), (0, .82)):
            dd = np.hypot(X[s] - cx - (px + off[0]) * r, Y[s] - cy - (py + off[1]) * r) - r * (.15 if k % 2 else .18); k += 1
            fill = fill * (1 - .42 * np.clip(.5 - dd, 0, 1)[..., None])
    elif pattern == 3:
        dd = (np.hypot((X[s] - cx) / .44, (Y[s] - cy - r * .5) / .38) / r - 1) * r * .38
        w = np.clip(.5 - dd, 0, 1)[..., None]
        fill = fill + w * (np.array((252, 240, 214)) - fill)
    m_ = np.clip(.5 - d * K, 0, 1)[..., None]
    c.a[s] += m_ * (fill - c.a[s])
    c.oval(cx - r * .36 * (1 if shape not in (2, 7) else .5), cy + top * .62, r * .11, r * .07, (255, 255, 255), .55)
    # face
    fx, fy = cx, cy + fy * ay
    gx, gy = rng.uniform(-.07, .07, 2) * r
    if eyes == 3:
        for q in (-1, 1):
            ex = fx + q * r * .3; sl = c.box(ex, fy, r * .4)
            dd = np.maximum(np.abs(np.hypot(X[sl] - ex, Y[sl] - fy + r * .14) - r * .23) - r * .06 - .6, -(Y[sl] - fy + r * .1))
            c.paint(sl, dd, ink)
    else:
        spots = {0: [(0, -.12, .44)], 1: [(-.31, -.09, .31), (.31, -.09, .31)], 2: [(-.45, -.02, .24), (0, -.25, .24), (.45, -.02, .24)]}[eyes]
        if shape == 7:
            spots = {0: [(0, -.1, .4)], 1: [(-.27, -.06, .27), (.27, -.06, .27)], 2: [(-.31, .04, .2), (0, -.3, .2), (.31, .04, .2)]}[eyes]
        for px, py, e in spots:
            ex, ey, e = fx + px * r, fy + py * r, e * r
            c.oval(ex, ey, e + 1.1, e + 1.1, ink); c.oval(ex, ey, e, e, (255, 255, 255))
            c.oval(ex + gx, ey + gy, e * .56, e * .56, ink); c.oval(ex + gx - e * .2, ey + gy - e * .2, e * .2, e * .2, (255, 255, 255))
    sl = c.box(fx, fy + r * .42, r * .3)
    c.paint(sl, np.maximum(np.abs(np.hypot(X[sl] - fx, Y[sl] - fy - r * .32) - r * .17) - r * .035 - .5, -(Y[sl] - fy - r * .38)), ink)
    # accessory
    ty, name, a = cy + top * ay, ACCESSORIES[acc], r * 1.22
    if name == "crown":
        w, h, b = a * .46, a * .52, ty + r * .16
        c.poly([(cx - w, b), (cx - w * 1.12, b - h), (cx - w * .5, b - h * .55), (cx, b - h * 1.15), (cx + w * .5, b - h * .55), (cx + w * 1.12, b - h), (cx + w, b)], (255, 206, 40), (128, 84, 10))
        for q, col in ((-.55, (226, 50, 70)), (0, (60, 120, 230)), (.55, (226, 50, 70))):
            c.oval(cx + q * w, b - h * .22, a * .085, a * .085, col)
    elif name == "hat":
        b = ty + r * .1
        c.rect(cx - a * .38, b - a * .6, cx + a * .38, b, (36, 32, 44)); c.rect(cx - a * .38, b - a * .25, cx + a * .38, b - a * .05, (214, 44, 60)); c.rect(cx - a * .66, b - a * .07, cx + a * .66, b + a * .07, (36, 32, 44))
    elif name == "bow":
        b = ty
        for q in (-1, 1):
            c.oval(cx + q * a * .32, b, a * .32, a * .27, (150, 16, 84)); c.oval(cx + q * a * .32, b, a * .32 - 1.5, a * .27 - 1.5, (255, 66, 150))
        c.oval(cx, b, a * .16, a * .16, (150, 16, 84)); c.oval(cx, b, a * .16 - 1.3, a * .16 - 1.3, (255, 120, 184))
    elif name == "scarf":
        b, w = cy + r * (.66 if shape != 4 else .46), r * {2: .9, 3: .66, 4: .62, 7: .64}.get(shape, .82)
        c.rect(cx - w - 1, b - r * .19, cx + w + 1, b + r * .21, (130, 16, 24)); c.rect(cx + w * .16, b, cx + w * .16 + r * .42, b + r * .6, (130, 16, 24))
        c.rect(cx - w, b - r * .16, cx + w, b + r * .18, (232, 40, 48)); c.rect(cx + w * .16 + 1, b, cx + w * .16 + r * .42 - 1, b + r * .57, (232, 40, 48))
        for q in np.arange(-.85, .9, .34):
            c.rect(cx + q * w - r * .06, b - r * .16, cx + q * w + r * .06, b + r * .18, (255, 244, 240))
        c.rect(cx + w * .16 + 1, b + r * .36, cx + w * .16 + r * .42 - 1, b + r * .48, (255, 244, 240))
    elif name == "horns":
        b = ty + r * .22
        for q in (-1, 1):
            x = cx + q * r * (.36 if shape in (2, 3, 7) else .48)
            c.poly([(x - a * .19, b + r * .06), (x + q * a * .24, b - a * .62), (x + a * .19, b + r * .06)], (250, 230, 176), (120, 88, 50))
    elif name == "flower":
        x, b = cx + r * (.3 if shape == 7 else .42), ty - r * (0 if shape == 4 else .06)
        c.oval(x, b, a * .42, a * .42, (120, 120, 140), .35)
        for k in range(5):
            t = k * 2 * np.pi / 5 - np.pi / 2
            c.oval(x + np.cos(t) * a * .24, b + np.sin(t) * a * .24, a * .18, a * .18, (255, 255, 255))
        c.oval(x, b, a * .16, a * .16, (252, 196, 30))
    return fx, fy, r


def random_monster(rng, held=False):
    while True:
        m = [int(rng.integers(n)) for n in (8, 9, 4, 4, 7)]
        if held_out(m) == held:
            return m


def random_scene(rng, pair=0.3, held=False):
    """[monsters, background]: one or two monsters and a background number."""
    n = 2 if rng.random() < pair else 1
    return [[random_monster(rng, held) for _ in range(n)], int(rng.integers(12) if rng.random() < .6 else 8 + rng.integers(4))]


def draw(scene, rng):
    c = background(BGS[scene[1]], rng)
    j = lambda a: rng.uniform(-a, a)
    if len(scene[0]) == 1:
        boxes = [monster(c, scene[0][0], 64 + j(4), 77 + j(3), 35.5 * (1 + j(.06)), rng)]
    else:
        boxes = [monster(c, m, x + j(1.5), 80 + j(3), 27 * (1 + j(.04)), rng) for m, x in zip(scene[0], (33, 95))]
    return np.clip(c.a + .5, 0, 255).astype(np.uint8), boxes


def pack(scene):
    """A scene as a row of eleven numbers."""
    ms = scene[0] + [[-1] * 5] * (2 - len(scene[0]))
    return [*ms[0], *ms[1], scene[1]]


def unpack(row):
    row = [int(v) for v in row]
    return [[row[:5]] + ([row[5:10]] if row[5] >= 0 else []), row[10]]


def sheet(pictures, columns, path):
    """Writes the pictures as one contact sheet."""
    from PIL import Image
    size = len(pictures[0])
    rows = (len(pictures) + columns - 1) // columns
    im = Image.new("RGB", (columns * size, rows * size))
    for i, p in enumerate(pictures):
        im.paste(Image.fromarray(np.asarray(p)), (i % columns * size, i // columns * size))
    im.save(path)
