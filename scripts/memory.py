#!/usr/bin/env python3
"""Peak memory at full size, beside the bounds that the project keeps.

Makes random weights in the real shapes (once, in WEIGHTS), runs a workflow of this repository on each set, and prints
the largest resident size of the process. Random weights draw noise: sizes are what is looked at, so a few steps do.

    cargo build --release --workspace --examples --bins
    scripts/memory.py WEIGHTS

Needs Linux, Python 3 and about 24 GB in WEIGHTS (--only NAME runs one, with less).
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"

SDXL = ["Size.width=1024", "Size.height=1024", "--memory-budget=8G"]

# What is measured: the weights it needs, the workflow, what is set in it and said besides, and the bound in GB (10^9 bytes).
CASES = {
    "sd15-f32": (
        [("sd15", "f32", "checkpoints/sd15-f32.safetensors")],
        "text.json",
        ["Checkpoint.ckpt_name=sd15-f32.safetensors", "Size.width=512", "Size.height=512"],
        5.0,
    ),
    "sd15-f16": (
        [("sd15", "f16", "checkpoints/sd15-f16.safetensors")],
        "text.json",
        ["Checkpoint.ckpt_name=sd15-f16.safetensors", "Size.width=512", "Size.height=512"],
        None,
    ),
    "kosmos-g": (
        [
            ("kosmos-g", "f32", "kosmos/kosmos-g"),
            ("sd15", "f32", "checkpoints/sd15-f32.safetensors"),
        ],
        "two_subjects.json",
        [
            "Kosmos-G.kosmos_name=kosmos-g",
            "Checkpoint.ckpt_name=sd15-f32.safetensors",
            "Size.width=512",
            "Size.height=512",
        ],
        9.0,
    ),
    "sdxl-f16": (
        [("sdxl", "f16", "checkpoints/sdxl-f16.safetensors")],
        "text.json",
        ["Checkpoint.ckpt_name=sdxl-f16.safetensors", *SDXL],
        8.0,
    ),
    "sdxl-lora": (
        [
            ("sdxl", "f16", "checkpoints/sdxl-f16.safetensors"),
            ("lora-sdxl", "f16", "loras/sdxl-f16.safetensors"),
        ],
        "style.json",
        ["Checkpoint.ckpt_name=sdxl-f16.safetensors", "Pencil.lora_name=sdxl-f16.safetensors", *SDXL],
        8.0,
    ),
    "sdxl-q8": (
        [("sdxl", "q8", "checkpoints/sdxl-q8.gguf")],
        "text.json",
        ["Checkpoint.ckpt_name=sdxl-q8.gguf", *SDXL],
        5.5,
    ),
}


def make(kind, dtype, path):
    """Random weights of one kind, unless they are there."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"making {path.name} …", file=sys.stderr)
    subprocess.run(
        [TARGET / "examples" / "random_weights", kind, path, "--dtype", dtype], check=True
    )


def run(command):
    """Exit code, seconds, and the largest resident size in bytes of one process."""
    start = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, time.monotonic() - start, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("weights", type=pathlib.Path, help="where the random weights are kept")
    parser.add_argument("--only", choices=CASES, action="append", help="one case; repeatable")
    parser.add_argument("--steps", type=int, default=2, help="sampling steps")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()

    rows = []
    for name, (files, workflow, settings, bound) in CASES.items():
        if arguments.only and name not in arguments.only:
            continue
        for kind, dtype, path in files:
            make(kind, dtype, arguments.weights / path)
        command = [TARGET / "kosmograph", "run", ROOT / "workflows" / workflow, "--quiet"]
        command += ["--models", arguments.weights, "--out", arguments.weights / "output"]
        for setting in [*settings, f"Sampler.steps={arguments.steps}"]:
            command += [setting] if setting.startswith("--") else ["--set", setting]
        code, seconds, peak = run(command)
        rows.append(
            {
                "case": name,
                "peak_gb": round(peak / 1e9, 2),
                "bound_gb": bound,
                "seconds": round(seconds),
                "exit_code": code,
                "holds": code == 0 and (bound is None or peak <= bound * 1e9),
            }
        )

    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"{'case':<10} {'peak':>9} {'bound':>9} {'time':>7}")
        for row in rows:
            bound = f"{row['bound_gb']:.2f} GB" if row["bound_gb"] else "-"
            verdict = "" if row["holds"] else "  does not hold"
            print(
                f"{row['case']:<10} {row['peak_gb']:>6.2f} GB {bound:>9} {row['seconds']:>5} s"
                f"{verdict}"
            )
    return 0 if all(row["holds"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
