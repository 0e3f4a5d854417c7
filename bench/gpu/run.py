#!/usr/bin/env python3
"""Tests the CUDA twins and times whole networks beside PyTorch on a GPU; bench/gpu/pack.sh packs it with what it runs.

Every part in f16 on random weights in the real shapes, each program a process of its own: ours, PyTorch (SDPA, channels_last),
and PyTorch compiled. The last column is how far from the floor we are: the definition's operations at the rate that a product
of 8192 x 8192 reaches here in PyTorch.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
# Part, sides of the latents, batch, and where the weights are.
ON_GPU, IN_MAIN_MEMORY = {}, {"KOSMOGRAPH_GPU_WEIGHTS": "0"}
CASES = [
    ("unet", 64, 2, ON_GPU),
    ("unet", 64, 2, IN_MAIN_MEMORY),
    ("unet", 32, 2, ON_GPU),
    ("vae-decode", 64, 1, ON_GPU),
    ("mllm", 64, 1, ON_GPU),
    ("clip", 64, 2, ON_GPU),
]


# What failed: a line each, at the end. One failure does not hide the next.
FAILED = []


def run(command, what, **settings):
    """What a program prints, or nothing where it fails, which is noted."""
    process = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, env={**os.environ, **settings})
    if process.returncode:
        FAILED.append(f"{what}: exit code {process.returncode}")
        print(process.stdout, flush=True)
        return None
    return process.stdout


def picture(workflow, folder, *options):
    """The pixels of a workflow on the bundled model."""
    from PIL import Image

    where = " ".join(options)
    out = pathlib.Path(folder) / where.replace(" ", "")
    command = [HERE / "bin" / "kosmograph", "run", HERE / "workflows" / workflow, *options, "--out", out, "--quiet"]
    printed = run(command, f"{workflow}, {where}")
    files = sorted(out.glob("*.png")) if printed is not None else []
    return Image.open(files[-1]).convert("RGB") if files else None


def compare_pictures(workflow):
    """The same workflow on the CPU and on the GPU: at most a rounding of the last bit apart, in few places. And on the GPU with
    its weights in main memory: the same picture."""
    from PIL import ImageChops

    with tempfile.TemporaryDirectory() as folder:
        places = (["--device", "cpu"], ["--device", "cuda"], ["--device", "cuda", "--gpu-weights", "0"])
        *pictures, copied = [picture(workflow, folder, *place) for place in places]
        if None in (*pictures, copied):
            return
        if copied.tobytes() != pictures[1].tobytes():
            FAILED.append(f"{workflow}: the picture is another one where weights are copied to the GPU at each use")
        apart = ImageChops.difference(*pictures).tobytes()
        largest, changed = max(apart), sum(value > 0 for value in apart) / len(apart)
        print(f"{workflow} on the bundled model, GPU beside CPU: {changed:.2%} of the values differ, by {largest} of 255 at most", flush=True)
        if largest > 2:
            FAILED.append(f"{workflow}: a pixel of the GPU's picture is {largest} of 255 from the CPU's")


def rate():
    """f16 operations a second of the largest kind of product."""
    import torch

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.float16)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    best = float("inf")
    for _ in range(10):
        start.record()
        a @ a
        end.record()
        torch.cuda.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return 2 * 8192**3 / best


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--skip-compiled", action="store_true", help="torch.compile takes minutes")
    parser.add_argument("--skip-test", action="store_true")
    arguments = parser.parse_args()
    if not arguments.skip_test:
        with tempfile.TemporaryDirectory() as folder:
            command = [HERE / "bin" / "gpu-test", "--nocapture", "--test-threads", "1"]
            for cudnn in ("on", "off"):
                print(f"\nConvolution by cuDNN, where it is on this machine: {cudnn}", flush=True)
                settings = {"KOSMOGRAPH_GPU_DUMP": folder, "KOSMOGRAPH_CUDNN": cudnn}
                print(run(command, f"the kernels beside their CPU twins, cuDNN {cudnn}", **settings) or "", flush=True)
                print(run([sys.executable, HERE / "torch_f64.py", folder], f"the kernels beside PyTorch in f64, cuDNN {cudnn}") or "", flush=True)
    peak = rate()
    print(f"\nA product of 8192 x 8192 in f16: {peak / 1e12:.0f} TFLOPS\n")
    print("| part | ours, ms | PyTorch, ms | compiled, ms | ours / compiled | floor, ms | ours / floor |\n|---|---|---|---|---|---|---|")
    for part, latent, batch, kept in CASES:
        command = [HERE / "bin" / "bench", part, "--latent", latent, "--batch", batch, "--dtype", "f16"]
        command += ["--device", "cuda:0", "--repeat", arguments.repeat, "--json"]
        ours = run(command, f"bench {part} {latent}", **kept)
        peer = [sys.executable, HERE / "torch_part.py", part, latent, batch, 8, arguments.repeat, "cuda"]
        modes = ["eager"] if arguments.skip_compiled else ["eager", "compiled"]
        theirs = [run([*peer, mode], f"PyTorch {mode}, {part} {latent}") for mode in modes]
        if ours is None or None in theirs:
            continue
        ours, theirs = json.loads(ours), [statistics.median(json.loads(one)["seconds"]) for one in theirs]
        floor = ours["gflop"] * 1e9 / peak
        name = part if part in ("mllm", "clip") else f"{part} {latent} x {latent}, batch {batch}"
        name += ", weights in main memory" if kept else ""
        milliseconds = [f"{1e3 * seconds:.2f}" for seconds in theirs] + ["-"] * (2 - len(theirs))
        print(
            f"| {name} | {1e3 * ours['median']:.2f} | {milliseconds[0]} | {milliseconds[1]} | {ours['median'] / theirs[-1]:.2f} | "
            f"{1e3 * floor:.2f} | {ours['median'] / floor:.1f} |",
            flush=True,
        )
    print()
    for workflow in ("text.json", "subject.json", "control.json"):
        compare_pictures(workflow)
    print("\nVerdict: " + ("\n".join(["FAILED", *FAILED]) if FAILED else "every comparison held"))
    sys.exit(1 if FAILED else 0)


if __name__ == "__main__":
    main()
