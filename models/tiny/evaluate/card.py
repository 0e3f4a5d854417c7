"""Writes what was measured, and what the weights cost, into ../MODEL_CARD.md: no figure there is typed by hand.

usage: card.py FIGURES... [--log LOG...]   files that evaluate.py --json wrote; what `kosmograph train ../train/stages.json` said"""
import argparse
import json
import os
import re

HERE = os.path.dirname(os.path.abspath(__file__))
CARD, STAGES = os.path.join(HERE, "..", "MODEL_CARD.md"), os.path.join(HERE, "..", "train", "stages.json")


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


def cost(logs):
    """A row for each stage that a log saw end, in the order of the stages."""
    ended, stage = {}, None
    for log in logs:
        for line in open(log, errors="replace"):
            begun, last = re.match(r"stage ([\w-]+)$", line), re.match(r"update (\d+) of (\d+): loss ([\d.]+)", line)
            if begun:
                stage = begun[1]
            elif last and last[1] == last[2]:
                ended[stage] = int(last[1]), last[3]
    for s in json.load(open(STAGES))["stages"]:
        if s["name"] in ended:
            updates, loss = ended[s["name"]]
            yield f"| {s['name']} | {updates} | {updates * s['batch']} | {loss} |"


def replaced(text, header, rows):
    """The text with the rows of the table under this header changed."""
    lines = text.split("\n")
    if header not in lines:
        raise SystemExit(f"{CARD} has no table with the header {header!r}; it is where these rows belong")
    start = lines.index(header) + 2
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return "\n".join([*lines[:start], *rows, *lines[end:]])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="+", metavar="FIGURES")
    parser.add_argument("--log", nargs="+", default=[], metavar="LOG")
    arguments = parser.parse_args()
    text = open(CARD).read()
    text = replaced(text, "| part | pictures | figures |", measured(arguments.figures))
    if arguments.log:
        text = replaced(text, "| stage | updates | samples | loss at the end |", cost(arguments.log))
    open(CARD, "w").write(text)


if __name__ == "__main__":
    main()
