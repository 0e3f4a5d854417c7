#!/usr/bin/env python3
"""What a process for the nodes costs: `run workflows/text.json` in a worker and with --in-process, in turn, 20 times each.

    cargo build --release && bench/worker.py [--other PROGRAM] [--runs N]

Prints the medians in milliseconds. --other times another build of the program, which has no workers, in the same turns.
"""

import argparse
import pathlib
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--program", default=ROOT / "target/release/kosmograph")
    parser.add_argument("--other")
    arguments = parser.parse_args()
    ways = {"worker": [arguments.program], "in process": [arguments.program, "--in-process"]}
    if arguments.other:
        ways["other"] = [arguments.other]
    took = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as out:
        # The first run of each is not counted: it reads the files from the disk, and libraries describe themselves.
        for run in range(arguments.runs + 1):
            for name, (program, *options) in ways.items():
                command = [program, "run", ROOT / "workflows/text.json", "--out", out, "--quiet", *options]
                begin = time.perf_counter()
                subprocess.run(command, check=True, cwd=ROOT)
                if run > 0:
                    took[name].append((time.perf_counter() - begin) * 1000)
    medians = {name: statistics.median(times) for name, times in took.items()}
    for name, median in medians.items():
        print(f"{name:12} {median:7.1f} ms  ({min(took[name]):.1f} to {max(took[name]):.1f})  {median - medians['worker']:+.1f}")


if __name__ == "__main__":
    main()
