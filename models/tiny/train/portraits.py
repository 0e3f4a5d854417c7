"""Which portraits an instruction starts from, and captions that are wrong in one thing.

What differs between a portrait and its scene is what the instruction asks for (grammar.instruction)."""
import itertools

import numpy as np

import world

OTHER = [1 / 3, 1 / 2]  # the share of instructions with portraits in other colours, for one subject and for two
WRONG = [("shape", 0, 8), ("colour", 1, 9), ("pattern", 2, 4), ("eyes", 3, 4), ("accessory", 4, 7), ("background", 5, 12)]


def allowed(monster, held):
    """held: whether its combination is to be one that no stage has seen; None for any."""
    return held is None or world.held_out(monster) == held


def styled(m, rng, held=False):
    """The portraits of "<i> in the style of <i>" for monster m: shape and eyes are of the first, colour and pattern of the second."""
    number = lambda n: int(rng.integers(n))
    while True:
        a, b = [m[0], number(9), number(4), m[3], m[4]], [number(8), m[1], m[2], number(4), 0]
        if a[1] != m[1] and a[2] != m[2] and allowed(a, held) and allowed(b, held):
            return [(a, number(12)), (b, number(12))]


def portraits_of(scene, rng, held=False):
    """The monsters, with backgrounds, of the pictures that go with an instruction to draw scene (one or two of them)."""
    monsters, u = scene[0], rng.random()
    number = lambda n: int(rng.integers(n))
    if len(monsters) == 2:
        return [(list(m), number(12)) for m in monsters]
    m = list(monsters[0])
    if u < .12:
        return styled(m, rng, held)
    while u < .24:  # "<i> in green"
        a = [m[0], number(9), *m[2:]]
        if a[1] != m[1] and allowed(a, held):
            return [(a, number(12))]
    if m[4]:  # wearing it already, something else, or nothing
        m[4] = m[4] if u < .42 else 1 + number(6) if u < .52 else 0
    elif u > .85:  # "without"
        m[4] = 1 + number(6)
    return [(m, number(12))]


def recoloured(picture, monster, rng):
    """The picture of a monster with its channels in another order, or grey; never so that it looks like a combination that is held out."""
    colours = np.array(list(world.COLOURS.values()))
    for order in rng.permutation([p for p in itertools.permutations(range(3)) if p != (0, 1, 2)]) if rng.random() < .7 else []:
        nearest = int(((colours - colours[monster[1]][order]) ** 2).sum(1).argmin())
        if not world.held_out([monster[0], nearest, *monster[2:]]):
            return picture[..., order]
    return picture.mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8)


def wrong(scene, which, r):
    """The scene with one thing changed, WRONG[which], and never to a combination that is held out."""
    monsters, background = [list(m) for m in scene[0]], scene[1]
    _, at, n = WRONG[which]
    if at == 5:
        return [monsters, (background + 1 + r.randrange(n - 1)) % n]
    m = r.choice(monsters)
    others = [v for v in range(n) if v != m[at] and not world.held_out([*m[:at], v, *m[at + 1:]])]
    if not others:
        return wrong(scene, 5, r)
    m[at] = r.choice(others)
    return [monsters, background]
