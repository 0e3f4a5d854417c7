#!/usr/bin/env python3
"""Draws the little world as folders that `kosmograph train` reads: FOLDER/scenes, pictures with their captions, and FOLDER/instructions, for each picture a
prompt with a mark for each picture that it starts from (NAME.png, NAME.txt, NAME/1.png, NAME/2.png).
usage: folder.py FOLDER [--count 4096] [--seed 1]

A scene hangs on the seed and its number alone. The held-out combinations are not among them."""
import argparse
import random
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import data
import grammar
import interleaved
import world


def captioned(seed, number):
    """(caption, picture) of scene `number`: the canonical caption or a free one."""
    rng, r = np.random.default_rng([seed, number, 1]), random.Random(seed * 1_000_003 + number)
    scene = world.random_scene(rng)
    return grammar.caption(scene, r if r.random() < .6 else None), world.draw(scene, rng)[0]


def one(seed, number):
    """(prompt, the pictures of its marks, the picture that is asked for) of instruction `number`."""
    rng, r = np.random.default_rng([seed, number]), random.Random(seed * 1_000_003 + number)
    scene = world.random_scene(rng, .5)
    picture = world.draw(scene, rng)[0]
    if r.random() < .15:  # words alone mean what they say
        return grammar.written(scene, r, empty=.08), [], picture
    portraits = data.portraits_of(scene, rng)
    if len(portraits) == 2 == len(scene[0]) and r.random() < 1 / 3:
        portraits = [*data.styled(scene[0][0], rng), portraits[1]]
    subjects = [[*m, background] for m, background in portraits]
    drawn = [world.draw([[s[:5]], s[5]], rng)[0] for s in subjects]
    asked = subjects
    other = len(subjects) == len(scene[0]) and r.random() < interleaved.OTHER[len(scene[0]) - 1]
    if other:  # in colours that they do not have, and the prompt says which are wanted
        asked = [[shape, -1, *rest, -1] for shape, _, *rest, _ in subjects]
        drawn = [interleaved.recoloured(p, s, np.random.default_rng([seed, number, k])) for k, (p, s) in enumerate(zip(drawn, subjects))]
    prompt, shown = grammar.instruction(scene, asked, r)
    return prompt, [drawn[j] for j in shown], picture


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--count", type=int, default=4096)
    arguments.add_argument("--seed", type=int, default=1)
    given = arguments.parse_args()
    # What no stage of stages.json trains: CLIP's text encoder, and what says how the parts lie.
    bundled = Path(__file__).resolve().parent.parent / "sd"
    shutil.copytree(bundled, given.folder / "sd", ignore=shutil.ignore_patterns("unet", "vae"), dirs_exist_ok=True)
    scenes, instructions = given.folder / "scenes", given.folder / "instructions"
    for folder in (scenes, instructions):
        folder.mkdir(parents=True, exist_ok=True)
    for number in range(given.count):
        caption, picture = captioned(given.seed, number)
        save(scenes / f"{number:06}", caption, picture)
        prompt, pictures, target = one(given.seed, number)
        name = instructions / f"{number:06}"
        if pictures:
            name.mkdir(exist_ok=True)
        for k, source in enumerate(pictures, 1):
            Image.fromarray(source).save(name / f"{k}.png")
        save(name, prompt, target)


def save(name, text, picture):
    Image.fromarray(picture).save(name.with_suffix(".png"))
    name.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
