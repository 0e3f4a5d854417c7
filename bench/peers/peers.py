#!/usr/bin/env python3
"""Times this project beside PyTorch (with diffusers) and OpenVINO on the CPU: the same networks in the same shapes on
random weights, all in f32; or with --precision bf16 all with products of bf16, each by its own option, where there are no bounds.

A bound is a share of a peer's time, or 1.1 times the floor where that is more: the arithmetic that Winograd leaves of the part, as `bench` counts
it, at the rate of PyTorch's product of 2048 x 2048 x 2048, measured in every turn. Both are printed.

They run in turn, A B C A B C, each as a process of its own with the same number of threads, so that what else the
machine does meets all of them; what counts is the ratio of the medians.

    cargo build --release --workspace --examples
    bench/peers/peers.py --environment FOLDER

FOLDER gets a virtual environment with torch, diffusers and OpenVINO, some gigabytes, if there is none; --python takes one
that has them. OpenVINO's converted models go to --converted, 5 GB of files. Needs about 10 GB of memory, 24 with SDXL
(--only leaves it out). --isa avx2 holds all of them to AVX2 on a processor that has more.
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
PACKAGES = ["torch==2.15.*", "diffusers==0.42.*", "transformers==5.23.*", "openvino==2026.4.*"]

# The part, its latent side and its batch, then the bounds that the project set itself: the most of PyTorch's time and of
# OpenVINO's, on AVX2 and on AVX-512.
CASES = [
    ("unet", 64, 2, {"avx2": (0.65, 0.85), "avx512": (0.6, 0.85)}),
    ("unet", 32, 2, {"avx2": (0.5, 0.85), "avx512": (0.5, 0.85)}),
    ("vae-decode", 64, 1, {"avx2": (0.35, 0.6), "avx512": (0.35, 0.6)}),
    ("vae-decode", 32, 1, {"avx2": (0.45, None), "avx512": (0.45, None)}),
    ("sdxl-unet", 128, 1, {"avx2": (0.8, 0.85), "avx512": (0.8, 0.85)}),
    ("mllm", 64, 1, {"avx2": (0.6, None), "avx512": (0.6, None)}),
    ("clip", 64, 2, {"avx2": (0.8, None), "avx512": (0.8, None)}),
]

# Of the product that the floor is reckoned by.
SIDE = 2048

# How each is told to use no more than AVX2.
ONLY_AVX2 = {
    "KOSMOGRAPH_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OV_CPU_MAX_ISA": "AVX2",
}


def environment(folder, packages=PACKAGES):
    """The Python of a virtual environment with these packages, made if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def figures(command, threads, isa, precision="f32"):
    """The seconds and the peak that a process prints as its last line."""
    # OMP_NUM_THREADS is a setting that PyTorch reads where it is built with OpenMP.
    settings = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore", "KOSMOGRAPH_PRECISION": precision}
    settings |= ONLY_AVX2 if isa == "avx2" else {}
    answer = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, check=True, env=settings)
    return json.loads(answer.stdout.splitlines()[-1])


def product_rate(python, threads, isa):
    """GFLOPS of PyTorch's product at its best."""
    product = figures([python, ROOT / "bench" / "peers" / "torch_part.py", "product", SIDE, 1, threads, 30], threads, isa)
    return 2e-9 * SIDE ** 3 / min(product["seconds"])


def commands(python, converted, part, latent, batch, threads, repeat, precision):
    """Who is timed, and the command of each."""
    here = ROOT / "bench" / "peers"
    case = [part, latent, batch, threads, repeat]
    ours = [TARGET / "examples" / "bench", part, "--latent", latent, "--batch", batch]
    ours += ["--threads", threads, "--repeat", repeat, "--json"]
    return {
        "ours": ours,
        "PyTorch": [python, here / "torch_part.py", *case, "cpu", "bf16" if precision == "bf16" else "eager"],
        "OpenVINO": [python, here / "openvino_part.py", *case, converted, precision],
    }


def processor():
    """The widest instruction set that the processor has and the program knows."""
    return "avx512" if "avx512f" in pathlib.Path("/proc/cpuinfo").read_text() else "avx2"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--environment", type=pathlib.Path, help="a virtual environment, made if it is not there")
    parser.add_argument("--python", help="a Python that has torch and diffusers")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=3, help="calls in each process")
    parser.add_argument("--turns", type=int, default=2, help="processes of each")
    parser.add_argument("--only", action="append", help="a part; repeatable")
    parser.add_argument("--without", action="append", default=[], help="a peer to leave out; repeatable")
    parser.add_argument("--isa", choices=["avx2"], help="hold all of them to this instruction set")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32", help="what products take")
    parser.add_argument("--converted", type=pathlib.Path, default=TARGET.parent / "openvino", help="OpenVINO's models")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    if not (arguments.python or arguments.environment):
        parser.error("--environment or --python is needed")
    python = arguments.python or environment(arguments.environment)
    isa = arguments.isa or processor()

    rows = []
    for part, latent, batch, bounds in CASES:
        if arguments.only and part not in arguments.only and f"{part}-{latent}" not in arguments.only:
            continue
        case = commands(python, arguments.converted, part, latent, batch, arguments.threads, arguments.repeat, arguments.precision)
        case = {who: command for who, command in case.items() if who not in arguments.without}
        seconds, peak, rates, gflop = {who: [] for who in case}, {}, [], None
        for _ in range(arguments.turns):
            rates.append(product_rate(python, arguments.threads, isa))
            for who, command in case.items():
                answer = figures(command, arguments.threads, isa, arguments.precision)
                seconds[who] += answer["seconds"]
                peak[who] = answer["peak_gb"]
                gflop = answer.get("gflop_after_winograd", gflop)
        median = {who: statistics.median(times) for who, times in seconds.items()}
        row = {"part": part, "latent": latent, "batch": batch, "isa": isa, "seconds": seconds, "peak_gb": peak}
        row["ratios"] = {who: median["ours"] / median[who] for who in case if who != "ours"}
        row["floor"] = {"gflop": gflop, "gflops": statistics.median(rates), "seconds": gflop / statistics.median(rates)}
        room = {who: 1.1 * row["floor"]["seconds"] / median[who] for who in row["ratios"]}
        row["bounds"] = {who: bound and max(bound, room[who]) for who, bound in zip(("PyTorch", "OpenVINO"), bounds[isa]) if who in room}
        if arguments.precision != "f32":
            row["bounds"] = dict.fromkeys(row["bounds"])
        rows.append(row)
        if not arguments.json:
            name = part if part in ("mllm", "clip") else f"{part} {latent}x{latent}"
            print(f"{name} (batch {batch}, {isa}, {arguments.precision}): " + "; ".join(f"{who} {median[who]:.3f} s {peak[who]:.2f} GB" for who in case))
            if arguments.precision == "f32":
                print(f"    floor {row['floor']['seconds']:.3f} s: {gflop:.0f} GFLOP after Winograd, the product's {row['floor']['gflops']:.0f} GFLOPS")
            for who, ratio in row["ratios"].items():
                bound = row["bounds"][who]
                verdict = "" if bound is None else f", at most {bound:.2f}: {'holds' if ratio <= bound else 'DOES NOT HOLD'}"
                print(f"    {ratio:.2f} of {who}'s time{verdict}", flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=2))
    missed = [who for row in rows for who, ratio in row["ratios"].items() if ratio > (row["bounds"][who] or ratio)]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
