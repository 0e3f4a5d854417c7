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
CASES = [("unet", 64, 2), ("unet", 32, 2), ("vae-decode", 64, 1), ("mllm", 64, 1), ("clip", 64, 2)]


def run(command):
    return subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, check=True, text=True).stdout


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
                subprocess.run(command, check=True, env={**os.environ, **settings})
                subprocess.run([sys.executable, HERE / "torch_f64.py", folder], check=True)
    peak = rate()
    print(f"\nA product of 8192 x 8192 in f16: {peak / 1e12:.0f} TFLOPS\n")
    print("| part | ours, ms | PyTorch, ms | compiled, ms | ours / compiled | floor, ms | ours / floor |\n|---|---|---|---|---|---|---|")
    for part, latent, batch in CASES:
        command = [HERE / "bin" / "bench", part, "--latent", latent, "--batch", batch, "--dtype", "f16"]
        ours = json.loads(run([*command, "--device", "cuda:0", "--repeat", arguments.repeat, "--json"]))
        peer = [sys.executable, HERE / "torch_part.py", part, latent, batch, 8, arguments.repeat, "cuda"]
        modes = ["eager"] if arguments.skip_compiled else ["eager", "compiled"]
        theirs = [statistics.median(json.loads(run([*peer, mode]))["seconds"]) for mode in modes]
        floor = ours["gflop"] * 1e9 / peak
        name = part if part in ("mllm", "clip") else f"{part} {latent} x {latent}, batch {batch}"
        milliseconds = [f"{1e3 * seconds:.2f}" for seconds in theirs] + ["-"] * (2 - len(theirs))
        print(
            f"| {name} | {1e3 * ours['median']:.2f} | {milliseconds[0]} | {milliseconds[1]} | {ours['median'] / theirs[-1]:.2f} | "
            f"{1e3 * floor:.2f} | {ours['median'] / floor:.1f} |",
            flush=True,
        )
    for workflow in ("text.json", "subject.json"):
        command = [HERE / "bin" / "kosmograph", "run", HERE / "workflows" / workflow, "--device", "cuda"]
        print(f"\n{workflow} on the bundled model:\n{run(command)}")


if __name__ == "__main__":
    main()
