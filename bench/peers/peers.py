#!/usr/bin/env python3
"""Times this project beside PyTorch and diffusers on the CPU: the same networks in the same shapes on random weights.

The two run in turn, A B A B, each as a process of its own with the same number of threads, so that what else the machine
does meets both; what counts is the ratio of the medians.

    cargo build --release -p kosmograph-models --example bench
    bench/peers/peers.py --environment FOLDER

FOLDER gets a virtual environment with torch and diffusers, some gigabytes, if there is none; --python takes one that
has them. Needs about 6 GB of memory, 12 for SDXL (--only leaves it out).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
PACKAGES = ["torch==2.15.*", "diffusers==0.42.*", "transformers==5.23.*"]

# The part, its latent side, its batch, and the bound on the ratio that the project set itself.
CASES = [
    ("unet", 64, 2, 0.9),
    ("unet", 32, 2, 0.9),
    ("vae-decode", 64, 1, 0.8),
    ("vae-decode", 32, 1, 0.8),
    ("sdxl-unet", 128, 1, 0.8),
    ("mllm", 64, 1, 1.0),
    ("clip", 64, 2, None),
]


def environment(folder):
    """The Python of a virtual environment with torch and diffusers, made if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


def ours(part, latent, batch, threads, repeat):
    command = [TARGET / "examples" / "bench", part, "--latent", latent, "--batch", batch]
    command += ["--threads", threads, "--repeat", repeat, "--json"]
    answer = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, check=True)
    figures = json.loads(answer.stdout)
    return figures["seconds"], figures["peak_gb"]


def theirs(python, part, latent, batch, threads, repeat):
    command = [python, ROOT / "bench" / "peers" / "torch_part.py", part, latent, batch, threads, repeat]
    # One setting that PyTorch reads where it is built with OpenMP.
    settings = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    answer = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, check=True, env=settings)
    figures = json.loads(answer.stdout)
    return figures["seconds"], figures["peak_gb"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--environment", type=pathlib.Path, help="a virtual environment, made if it is not there")
    parser.add_argument("--python", help="a Python that has torch and diffusers")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=3, help="calls in each process")
    parser.add_argument("--turns", type=int, default=2, help="processes of each")
    parser.add_argument("--only", action="append", help="a part; repeatable")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    if not (arguments.python or arguments.environment):
        parser.error("--environment or --python is needed")
    python = arguments.python or environment(arguments.environment)

    rows = []
    for part, latent, batch, bound in CASES:
        if arguments.only and part not in arguments.only:
            continue
        seconds = {"ours": [], "theirs": []}
        peak = {}
        for _ in range(arguments.turns):
            case = (part, latent, batch, arguments.threads, arguments.repeat)
            times, peak["ours"] = ours(*case)
            seconds["ours"] += times
            times, peak["theirs"] = theirs(python, *case)
            seconds["theirs"] += times
        medians = {who: statistics.median(times) for who, times in seconds.items()}
        row = {"part": part, "latent": latent, "batch": batch, "bound": bound, "seconds": seconds, "peak_gb": peak}
        row["ratio"] = medians["ours"] / medians["theirs"]
        rows.append(row)
        if not arguments.json:
            name = part if part in ("mllm", "clip") else f"{part} {latent}x{latent}"
            holds = "" if bound is None else f", at most {bound}: {'holds' if row['ratio'] <= bound else 'DOES NOT HOLD'}"
            print(
                f"{name} (batch {batch}): ours {medians['ours']:.3f} s {peak['ours']:.2f} GB, "
                f"PyTorch {medians['theirs']:.3f} s {peak['theirs']:.2f} GB; ratio {row['ratio']:.2f}{holds}",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(rows, indent=2))
    return 0 if all(row["bound"] is None or row["ratio"] <= row["bound"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
