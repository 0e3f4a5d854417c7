"""Writes what was measured, and what the weights cost, into ../MODEL_CARD.md: no figure there is typed by hand.

usage: card.py FIGURES...   files that evaluate.py --json wrote; the costs are ../train/log.json"""
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
CARD, LOG = os.path.join(HERE, "..", "MODEL_CARD.md"), os.path.join(HERE, "..", "train", "log.json")
STAGES = {"vae": "VAE", "clip": "ViT and text encoder, contrastively", "mllm": "language model, captions", "align": "stage 1: alignment to CLIP's space, with the reconstruction half",
          "text_to_picture": "U-Net", "tune": "stage 2: score distillation through the frozen U-Net", "classifier": "the judge", "controlnet": "ControlNet on outlines, U-Net frozen",
          "lora-pencil": "LoRA, pencil", "lora-neon": "LoRA, neon", "lora-pixel": "LoRA, pixel", "dreambooth": "DreamBooth U-Net", "inversion": "textual inversion"}


def measured(files):
    """A row for each part: each figure, and "of" what must be reached."""
    for file in files:
        record = json.load(open(file))
        for part, figures in record["measured"].items():
            if isinstance(figures, str):
                raise SystemExit(f"{file}: {part} was not measured: {figures}")
            said = []
            for name, value in figures.items():
                bound = record["must"][part].get(name)
                said.append(f"{name} {value:.2f}" + ("" if bound is None else f" of {bound:g}" + ("" if value >= bound else " ✗")))
            yield f"| {part} | {record['count']} | {', '.join(said)} |"


def cost():
    log = json.load(open(LOG))
    for name, title in STAGES.items():
        if name in log:
            s = log[name]
            yield f"| {title} | {s['minutes']:.0f} | {s['samples']} | {s['last']['loss']} |"


def replaced(text, header, rows):
    """The text with the rows of the table under this header changed."""
    lines = text.split("\n")
    if header not in lines:
        raise SystemExit(f"{CARD} has no table with the header {header!r}; it is where these rows belong")
    start = lines.index(header) + 2
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return "\n".join([*lines[:start], *rows, *lines[end:]])


def main():
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    text = open(CARD).read()
    text = replaced(text, "| part | pictures | figures |", measured(sys.argv[1:]))
    text = replaced(text, "| stage | minutes | samples | loss at the end |", cost())
    open(CARD, "w").write(text)


if __name__ == "__main__":
    main()
