#!/usr/bin/env python3
"""Draws the little world as folders that `kosmograph train stages.json` reads.
usage: folder.py FOLDER [--count 16384] [--documents 16384] [--seed 1]

FOLDER/scenes        pictures with their captions (NAME.png, NAME.txt), and captions of which the first is right and the others are wrong in one thing (NAME.choices.txt)
FOLDER/few           a sixteenth of them, which go on being drawn while one monster is learnt
FOLDER/hints         the outlines of the scenes
FOLDER/instructions  for each picture a prompt with a mark for each picture that it starts from (NAME.png, NAME.txt, NAME/1.png, NAME/2.png), and what it shows in words (NAME.caption.txt)
FOLDER/looks/LOOK    a quarter of the scenes in each of the looks, with captions that do not mention it
FOLDER/given, moss   the few pictures of the monster that DreamBooth learns, and of the one that a word is found for
FOLDER/seen          what the autoencoder is to draw: all of these
FOLDER/sd            tokenizer and schedule, which no stage makes

A scene hangs on the seed and its number alone. The held-out combinations are not among them. What is there already is not drawn again."""
import argparse
import os
import random
import shutil
from multiprocessing import Pool
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

import given
import grammar
import outlines
import portraits
import styles
import world

FRAGMENTS = .05  # the share of captions that are a few words, as people write against something
SEEN = {"pencil": 1, "neon": 1, "pixel": 2}  # how often the autoencoder sees a picture of a look: steps of pixels are the hardest to draw


def captioned(seed, number):
    """(caption, picture, captions of which the first is right) of scene `number`: the canonical caption, a free one or a fragment."""
    rng, r = np.random.default_rng([seed, number, 1]), random.Random(seed * 1_000_003 + number)
    scene = world.random_scene(rng)
    picture = world.draw(scene, rng)[0]
    choices = [grammar.caption(scene)] + [grammar.caption(portraits.wrong(scene, which, r)) for which in range(len(portraits.WRONG))]
    caption = grammar.fragment(scene, r) if r.random() < FRAGMENTS else grammar.caption(scene, r if r.random() < .6 else None)
    return caption, picture, choices


def instructed(seed, number):
    """(prompt, the pictures of its marks, the picture that is asked for, and what that shows, where the prompt does not say it in words) of instruction `number`."""
    rng, r = np.random.default_rng([seed, number]), random.Random(seed * 1_000_003 + number)
    scene = world.random_scene(rng, .5)
    picture = world.draw(scene, rng)[0]
    if r.random() < .15:  # words alone mean what they say
        return grammar.written(scene, r, empty=.08), [], picture, None
    shown = portraits.portraits_of(scene, rng)
    if len(shown) == 2 == len(scene[0]) and r.random() < 1 / 3:
        shown = [*portraits.styled(scene[0][0], rng), shown[1]]
    subjects = [[*m, background] for m, background in shown]
    drawn = [world.draw([[s[:5]], s[5]], rng)[0] for s in subjects]
    asked = subjects
    other = len(subjects) == len(scene[0]) and r.random() < portraits.OTHER[len(scene[0]) - 1]
    if other:  # in colours that they do not have, and the prompt says which are wanted
        asked = [[shape, -1, *rest, -1] for shape, _, *rest, _ in subjects]
        drawn = [portraits.recoloured(p, s, np.random.default_rng([seed, number, k])) for k, (p, s) in enumerate(zip(drawn, subjects))]
    prompt, marks = grammar.instruction(scene, asked, r)
    return prompt, [drawn[j] for j in marks], picture, grammar.caption(scene)


def put(folder, seed, number, of_look, of_few):
    """Writes what is of this scene, the caption last: one that is there is whole."""
    name = f"{number:06}"
    if not (folder / "scenes" / f"{name}.txt").exists():
        caption, picture, choices = captioned(seed, number)
        image(folder / "hints" / f"{name}.png", outlines.outline(picture))
        for look, style in styles.STYLES.items() if of_look else []:
            save(folder / "looks" / look / name, caption, style(picture))
            for k in range(SEEN[look]):
                link(folder / "looks" / look / f"{name}.png", folder / "seen" / f"{name}-{look}-{k}.png")
        image(folder / "scenes" / f"{name}.png", picture)
        (folder / "scenes" / f"{name}.choices.txt").write_text("\n".join(choices) + "\n", encoding="utf-8")
        save(folder / "scenes" / name, caption, picture)
    if not (folder / "seen" / f"{name}.png").exists():
        link(folder / "scenes" / f"{name}.png", folder / "seen" / f"{name}.png")
    for end in (".png", ".txt") if of_few else []:
        if not (folder / "few" / f"{name}{end}").exists():
            link(folder / "scenes" / f"{name}{end}", folder / "few" / f"{name}{end}")


def put_document(folder, seed, number):
    """Writes what is of this instruction, the prompt last."""
    to = folder / "instructions" / f"{number:06}"
    if to.with_suffix(".txt").exists():
        return
    prompt, pictures, target, caption = instructed(seed, number)
    to.parent.mkdir(parents=True, exist_ok=True)
    if caption:
        to.with_suffix(".caption.txt").write_text(caption + "\n", encoding="utf-8")
    for k, source in enumerate(pictures, 1):
        image(to / f"{k}.png", source)
    save(to, prompt, target)


def image(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def save(name, text, picture):
    """The picture with its text beside it."""
    image(name.with_name(name.name + ".png"), picture)
    name.with_name(name.name + ".txt").write_text(text + "\n", encoding="utf-8")


def link(path, to):
    """The same file under another name, or a copy where the disk has no such thing."""
    to.parent.mkdir(parents=True, exist_ok=True)
    to.unlink(missing_ok=True)
    try:
        os.link(path, to)
    except OSError:
        shutil.copyfile(path, to)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--count", type=int, default=16384)
    arguments.add_argument("--documents", type=int, help="instructions, as many as scenes where it is not said")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--processes", type=int, default=os.cpu_count())
    asked = arguments.parse_args()
    folder = asked.folder
    bundled = Path(__file__).resolve().parent.parent / "sd"
    shutil.copytree(bundled, folder / "sd", ignore=shutil.ignore_patterns("unet", "vae", "text_encoder"), dirs_exist_ok=True)
    for name, pictures in (("given", given.photographs()), ("moss", given.moss())):
        for number, (caption, picture) in enumerate(pictures):
            save(folder / name / f"{number:06}", caption, picture)
    rng = np.random.default_rng(3)
    for number in range(max(asked.count // 64, 1)):
        image(folder / "seen" / f"given-{number:06}.png", given.picture(rng)[0])
    of_look, of_few = max(asked.count // 4, 1), max(asked.count // 16, 1)
    with Pool(asked.processes, cv2.setNumThreads, (1,)) as pool:
        pool.starmap(put, ((folder, asked.seed, number, number < of_look, number < of_few) for number in range(asked.count)), 16)
        pool.starmap(put_document, ((folder, asked.seed, number) for number in range(asked.documents or asked.count)), 16)


if __name__ == "__main__":
    main()
