"""Draws the data set: scenes, and for each scene the portraits that an instruction with pictures starts from.
usage: data.py WORK [--budget cpu]

WORK/data/pictures.npy  uint8 [N, 128, 128, 3]
          scenes.npy    int16 [N, 11]            two monsters (-1: none) and the background
          faces.npy     float32 [N, 2, 3]        x, y and radius of each face
          portraits.npy uint8 [N, 2, 96, 96, 3]  pictures of single monsters, at the ViT's size
          subjects.npy  int16 [N, 2, 6]          who is on them: monster (-1: no portrait) and background

What differs between a portrait and its scene is what the instruction asks for (grammar.instruction)."""
import os
from multiprocessing import Pool

import numpy as np
import torch
import torch.nn.functional as F

import stage
import world

VIT = 96


def small(pictures, size=VIT):
    """[N, H, W, 3] bytes, bicubic with antialiasing to size, as the loader's picture transform does."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return x.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


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


def one(key):
    rng = np.random.default_rng(key)
    scene = world.random_scene(rng)
    picture, faces = world.draw(scene, rng)
    subjects = portraits_of(scene, rng)
    drawn = small(np.stack([world.draw([[m], b], rng)[0] for m, b in subjects]))
    return picture, world.pack(scene), faces, drawn, [[*m, b] for m, b in subjects]


def main():
    args = stage.arguments()
    n, folder = args.scenes, f"{args.work}/data"
    if os.path.exists(f"{folder}/subjects.npy"):
        return
    os.makedirs(folder, exist_ok=True)
    file = lambda name, kind, shape: np.lib.format.open_memmap(f"{folder}/{name}.npy", "w+", kind, (n, *shape))
    pictures, portraits = file("pictures", np.uint8, (128, 128, 3)), file("portraits", np.uint8, (2, VIT, VIT, 3))
    scenes, faces = np.zeros((n, 11), np.int16), np.zeros((n, 2, 3), np.float32)
    subjects = np.full((n, 2, 6), -1, np.int16)
    with Pool(os.cpu_count(), torch.set_num_threads, (1,)) as pool:
        for i, (p, row, f, q, who) in enumerate(pool.imap(one, ((1, i) for i in range(n)), 16)):
            pictures[i], scenes[i], faces[i, :len(f)], portraits[i, :len(q)], subjects[i, :len(who)] = p, row, f, q, who
    for name, a in (("scenes", scenes), ("faces", faces), ("subjects", subjects)):
        np.save(f"{folder}/{name}.npy", a)


if __name__ == "__main__":
    main()
