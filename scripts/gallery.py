#!/usr/bin/env python3
"""Draws docs/gallery.md from the workflows themselves: each is run as it lies in workflows/, and its pictures are kept as they were
saved, with the workflow inside.

    cargo build --release && scripts/gallery.py
"""

import argparse
import html
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

# The workflows in the order in which they are shown, and what there is to see.
SHOWN = {
    "subject": "A monster that the model never saw, from its picture, in words that say what it wears and where it is.",
    "two_subjects": "Two pictures, two marks: both monsters in one scene.",
    "three_marks": "Three pictures: the shape and eyes of the first, the colour and pattern of the second, and the third beside it.",
    "edit": "The same picture; the words change its colour as well.",
    "text": "Words alone, through CLIP.",
    "style": "The same words and seed with a LoRA: coloured pencil.",
    "variants": "The same words and seed: the checkpoint's own U-Net, and three LoRAs on it in three namings (kohya, PEFT, diffusers).",
    "dreambooth": "A U-Net that was shown eight pictures of one monster, which no word but `zwx` names.",
    "dreambooth_control": "The same monster from a LoRA that DreamBooth made, and again along the outline of the first.",
    "swap": "The same words and seed through the checkpoint's U-Net, to which `zwx` means nothing, and through the DreamBooth one.",
    "control": "A ControlNet: the outline of a picture, in the colour and the place that the words say.",
    "subject_style": "The subject with the LoRA, which knows nothing of Kosmos-G.",
    "subject_variants": "The subject through the checkpoint's own U-Net and with each of the three LoRAs.",
    "subject_control": "The subject along the outline that a ControlNet sees.",
    "subject_dreambooth": "The subject through the U-Net that learned another monster: it is narrow, and less sure of other shapes than of its own.",
    "subject_swap": "The same subject, words and seed through both U-Nets.",
    "subject_everything": "The subject, the ControlNet, a LoRA for the look, and DreamBooth's (which is not asked for its own monster) at once.",
    "encoders": "One U-Net, three prompts: Kosmos-G's, CLIP's, and half of each. Each is guided away from the other's empty prompt.",
}


def said(workflow):
    """The prompts of a workflow that are not empty."""
    nodes = workflow.values()
    texts = [n["inputs"]["text"] for n in nodes if n["class_type"] in ("CLIPTextEncode", "TextInterleave")]
    return [text for text in dict.fromkeys(texts) if text]


def shown(workflow):
    return [n["inputs"]["image"] for n in workflow.values() if n["class_type"] == "LoadImage"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--binary", default=ROOT / "target" / "release" / "kosmograph", type=pathlib.Path)
    arguments = parser.parse_args()
    there = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    if there != set(SHOWN):
        sys.exit(f"workflows/ and this script disagree about {', '.join(sorted(there ^ set(SHOWN)))}")
    folder = ROOT / "docs" / "gallery"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    page = [
        "# Gallery",
        "",
        "Drawn by `scripts/gallery.py` from the workflows as they are, on the bundled model. Each picture holds its workflow:",
        "`kosmograph run docs/gallery/subject-1.png --input workflows/input` draws it again.",
        "",
    ]
    for name, sentence in SHOWN.items():
        path = ROOT / "workflows" / f"{name}.json"
        workflow = json.loads(path.read_text())
        with tempfile.TemporaryDirectory() as out:
            command = [arguments.binary, "run", path.relative_to(ROOT), "--out", out, "--quiet"]
            subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
            pictures = []
            for number, picture in enumerate(sorted(pathlib.Path(out).glob("*.png")), 1):
                pictures.append(f"gallery/{name}-{number}.png")
                shutil.copyfile(picture, ROOT / "docs" / pictures[-1])
        given = [f"../workflows/input/{image}" for image in shown(workflow)]
        image = lambda source: f'<img src="{source}" width="128" alt="{html.escape(name)}">'
        page += [f"## [`{name}.json`](../workflows/{name}.json)", "", sentence, ""]
        page += [" ".join([*map(image, given), "→"] if given else []) + (" " if given else "") + " ".join(map(image, pictures)), ""]
        page += [" · ".join(f"`{text}`" for text in said(workflow)), ""]
    (ROOT / "docs" / "gallery.md").write_text("\n".join(page).rstrip() + "\n")


if __name__ == "__main__":
    main()
