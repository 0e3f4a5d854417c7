"""The language of the world: captions, and instructions with pictures (`<i>`).

A small grammar of about eighty words. The canonical caption names everything in one order; free captions leave out, reorder
and reword; a fragment ("a crown", "at night") is what people write as a negative prompt."""
from world import ACCESSORIES, BGS, CNAMES, EYES, PATTERNS, SCENES, SHAPES


def article(words):
    return ("an " if words[0] in "aeiou" else "a ") + words


def accessory(number):
    return "horns" if ACCESSORIES[number] == "horns" else article(ACCESSORIES[number])


def where(background):
    name = BGS[background]
    return SCENES[name] if name in SCENES else f"on {article(name)} background"


def describe(m, r=None):
    """One monster, canonically, or with a random.Random freely."""
    shape, colour, pattern, eyes, acc = m
    words = [CNAMES[colour]] + ([] if pattern == 0 else [PATTERNS[pattern]]) + [SHAPES[shape], "monster"]
    parts = [EYES[eyes]] + ([accessory(acc)] if acc else [])
    if r is not None:
        if pattern == 0 and r.random() < .25:
            words.insert(1, "plain")
        if r.random() < .15:
            parts = parts[1:]
        r.shuffle(parts)
    return article(" ".join(words)) + (" with " + " and ".join(parts) if parts else "")


def caption(scene, r=None):
    """The canonical caption of a scene, or with a random.Random a free variation of it."""
    text = " and ".join(describe(m, r) for m in scene[0])
    if r is None or r.random() < .9:
        text += " " + where(scene[1])
    if r is not None and r.random() < .1:
        text = r.choice(["a picture of ", "a drawing of "]) + text
    return text


def fragment(scene, r):
    """A few words about a scene: one thing that is in it."""
    m = r.choice(scene[0])
    said = [where(scene[1]), article(f"{CNAMES[m[1]]} monster"), article(f"{SHAPES[m[0]]} monster"), article(f"{PATTERNS[m[2]]} monster"), EYES[m[3]],
            "two monsters" if len(scene[0]) == 2 else "one monster"]
    return r.choice(said + ([accessory(m[4]), "wearing " + accessory(m[4])] if m[4] else []))


def written(scene, r, empty=.1):
    """What a text → picture step reads: mostly free captions, some canonical ones, fragments, and nothing."""
    u = r.random()
    return "" if u < empty else fragment(scene, r) if u < empty + .05 else caption(scene) if u < empty + .35 else caption(scene, r)


def instruction(scene, subjects, r):
    """(prompt, which portraits it shows): how to get from the portraits to the scene.

    subjects: up to three rows (monster, background) as data.py draws them; what differs is said, the rest stays. Three are
    of two monsters: the first has its style from the second portrait."""
    monsters, place = scene[0], where(scene[1])
    if len(subjects) == 3:
        return f"<i> in the style of <i> {r.choice(['and', 'with'])} <i> {place}", [0, 1, 2]
    if len(monsters) == 2:
        seen = ["<i>" if p[1] == m[1] else f"<i> in {CNAMES[m[1]]}" for m, p in zip(monsters, subjects)]
        u = r.random()
        if u < .12:
            return f"{seen[0]} and {describe(monsters[1])} {place}", [0]
        if u < .24:
            return f"{describe(monsters[0])} and {seen[1]} {place}", [1]
        return f"{seen[0]} {r.choice(['and', 'with'])} {seen[1]} {place}", [0, 1]
    (m,), portrait = monsters, subjects[0]
    shown = [0]
    if len(subjects) == 2:
        words, shown = "<i> in the style of <i>", [0, 1]
        if r.random() < .25:
            words, shown = f"<i> in the style of {article(' '.join([CNAMES[m[1]], PATTERNS[m[2]], 'monster']))}", [0]
    elif portrait[1] != m[1]:
        words = f"<i> in {CNAMES[m[1]]}"
    else:
        words = "<i>"
    if portrait[4] != m[4]:
        words += f" {r.choice(['wearing', 'with'])} {accessory(m[4])}" if m[4] else f" without {accessory(portrait[4])}"
    elif m[4] and r.random() < .3:
        words += f" wearing {accessory(m[4])}"
    if r.random() < .04:
        words = "a picture of " + words
    if portrait[5] == scene[1] and r.random() < .5:
        return words, shown
    return f"{words} {place}", shown


def words():
    """Every word that the grammar can say, and some that people write beside it."""
    texts = ["a picture of a drawing of the plain one monster two monsters wearing without in the style of next to and no not bad ugly blurry"]
    texts += [where(b) for b in range(len(BGS))] + [f"with {accessory(a)}" for a in range(1, len(ACCESSORIES))]
    texts += CNAMES + PATTERNS + SHAPES + EYES
    return sorted({w for t in texts for w in t.split()})
