"""Changes to JSON and to bytes, drawn from a random number generator."""

import copy
import json

NUMBERS = [0, 1, -1, 2, 3, 7, 8, 63, 64, 65, 255, 256, 512, 8192, 16384, 16385, 65536, 10**6, 10**9, 10**12, 2**31, 2**31 - 1,
           2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -(2**31), -(2**63), -(2**63) - 1, 0.5, -0.0, 1e-9, 1e-18,
           1e-308, 5e-324, 1e38, 1e39, 1e308, -1e308, 0.9999999, 1.0000001, float("nan"), float("inf"), float("-inf")]
TEXTS = ["", " ", "\t\n", "\0", "a" * 300, "a" * 5000, "../../x", "/etc/passwd", "/dev/zero", ".", "..", "a/../../b", "CON", "~",
         "%date:yyyy-MM-dd%", "%date:" + "y" * 500 + "%", "%KSampler.seed%", "{a|b|{c|d}}", "{" * 200, "(" * 300 + "a" + ")" * 300,
         "(a:1e38)", "(a:-1e38)", "(a:nan)", "embedding:", "embedding:../x", "embedding:moss", "<i>", "<i>" * 100, "\u202e\ufeff",
         "\U0001f9d1\u200d\U0001f680", "%s%n", "null", "NaN", "1e999", "true", "file:///etc/passwd", "é" * 200, "\ud800"]


def value(rng):
    """A value that somebody might not have thought of."""
    kind = rng.randrange(10)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 7:
        return rng.choice(TEXTS)
    return copy.deepcopy(rng.choice([None, True, False, [], {}, [[]], [0], ["1", 0], ["1", 99], ["1", -1], ["1", 0, 0], ["1", 1e30],
                                     ["", 0], [None, None], {"__value__": 1}, {"__value__": ["1", 0]}, {"": ""}, [0] * 1000]))


def places(tree, path=()):
    """The paths of everything in a JSON tree but its root."""
    found = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, inner in items:
        found.append((*path, key))
        found += places(inner, (*path, key))
    return found


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def change(tree, rng):
    """One change to a JSON tree, in place."""
    paths = places(tree)
    if not paths:
        return
    path = rng.choice(paths)
    parent, key = at(tree, path[:-1]), path[-1]
    other = copy.deepcopy(at(tree, rng.choice(paths)))
    what = rng.randrange(8)
    if what <= 2:
        parent[key] = value(rng)
    elif what == 3:
        del parent[key]
    elif what == 4:
        parent[key] = other
    elif what == 5 and isinstance(parent, dict):
        inner = parent.pop(key)
        parent[rng.choice([*TEXTS[:8], str(rng.choice(NUMBERS)), *map(str, parent)])] = inner
    elif what == 5:
        parent.insert(rng.randrange(len(parent) + 1), other)
    elif what == 6 and isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
        parent[key] = rng.choice([parent[key] * 2, parent[key] + 1, parent[key] - 1, -parent[key], parent[key] / 3, str(parent[key])])
    elif what == 6 and isinstance(parent[key], str):
        text = parent[key]
        i = rng.randrange(len(text) + 1)
        parent[key] = text[:i] + rng.choice(TEXTS)[:100] + text[i:]
    else:
        parent[key] = [parent[key]] if rng.random() < 0.5 else {"x": parent[key]}


def as_json(tree):
    """JSON with what it allows and Python's NaN and Infinity; a lone surrogate stays an escape."""
    return json.dumps(tree, ensure_ascii=True).encode()


INTERESTING = [0, 1, 0x7f, 0x80, 0xff]


def change_bytes(data, rng, times=None, begin=0, end=None):
    """A few changes to bytes between `begin` and `end`; the length may change."""
    data = bytearray(data)
    for _ in range(times or rng.choice([1, 1, 2, 4, 16])):
        last = min(len(data), end or len(data))
        if last <= begin:
            break
        i = rng.randrange(begin, last)
        what = rng.randrange(9)
        if what == 0:
            data[i] ^= 1 << rng.randrange(8)
        elif what == 1:
            data[i] = rng.choice(INTERESTING)
        elif what == 2:
            data[i] = rng.randrange(256)
        elif what == 3:
            width, order = rng.choice([2, 4, 8]), rng.choice(["little", "big"])
            number = rng.choice([0, 1, 2**7, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1])
            data[i:i + width] = (number % 2**(8 * width)).to_bytes(width, order)
        elif what == 4:
            del data[i:i + rng.choice([1, 2, 4, 64])]
        elif what == 5:
            data[i:i] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 2, 4, 16])))
        elif what == 6:
            j = rng.randrange(begin, last)
            data[i:i] = data[j:j + rng.choice([1, 4, 16, 200])]
        elif what == 7:
            del data[i:]
        else:
            data[i:i + 8] = bytes(8)
    return bytes(data)
