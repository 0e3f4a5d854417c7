#!/usr/bin/env python3
"""Times the whole command, from the shell to the PNG, beside diffusers, OpenVINO and stable-diffusion.cpp on the CPU:
workflows/text.json at Stable Diffusion 1.5's size on random weights, 512 x 512, 20 steps of Euler with guidance, one picture.

They run in turn, A B C A B C, each as a process of its own with the same number of threads; what counts is the ratio of the
medians. A program's files are read once before its clock starts, so that nobody waits for the disk. The peak is the largest
resident size among a program's processes, as wait4 tells it: mapped files count, where they were touched. Ours are two, of which
the one that plans holds 0.015 GB.

    cargo build --release --workspace --examples
    bench/peers/whole.py --work FOLDER --environment FOLDER

--work gets the model (random_weights makes it) in four forms, 15 GB, and stable-diffusion.cpp's program; --environment gets two
virtual environments, some gigabytes each, since optimum-intel wants other versions than the newest diffusers. --python,
--openvino-python and --sd-cpp take what is there. Needs about 12 GB of memory. With random weights the picture is noise: for
the time that does not matter, each does all of its work.

Who runs, all with the same numbers as weights:

    ours           kosmograph run workflows/text.json, an f32 checkpoint
    ours f16       the same with an f16 checkpoint, computed in f32
    diffusers      StableDiffusionPipeline in f32 on PyTorch, a folder in its own layout; imports included
    OpenVINO       optimum-intel's OVStableDiffusionPipeline on a model exported before and fixed to this size, told to compute
                   in f32; imports and compilation included, nothing compiled is kept
    sd.cpp         stable-diffusion.cpp's own program from the sources in its package for Python, ours' f32 checkpoint
    sd.cpp f16     the same with the f16 checkpoint

What differs though the work is the same, 20 calls of the U-Net for each half of the guidance, one decoding, two texts: ours,
diffusers and OpenVINO call the U-Net once for both halves, sd.cpp twice. diffusers' and OpenVINO's scheduler puts the first
noise level at the last timestep and spaces the others linearly, as ours and sd.cpp do, but each draws noise of its own, so that
pictures differ. sd.cpp keeps the weights of convolutions in f16 whatever the file has. That each took as many steps as it was
told is counted; the batch of each call is checked for the two in Python, and --halves shows for the other two what a step takes
with and without guidance. The U-Net alone is not timed for sd.cpp: its program has no such call, so peers.py leaves it out.

Each one's ratio is held against a bound of 0.6, or against 1.1 times the floor where that is more, as in peers.py: the
arithmetic that Winograd leaves of the networks' calls (a tiny autoencoder's is left out), at the rate of PyTorch's product, which
every turn measures. Our peaks are held against 3.9 GB (f32) and 2.1 GB (f16). Exit status 1: one does not hold.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import time

from peers import ONLY_AVX2, ROOT, TARGET, commands, environment, figures, processor, product_rate

HERE = pathlib.Path(__file__).resolve().parent
MERGES = ROOT / "nodes" / "models" / "data" / "clip_merges.txt.gz"
OPTIMUM = ["optimum-intel[openvino]==2.2.*", "openvino==2026.4.*", "torch==2.15.*", "diffusers==0.39.*"]
SD_CPP = "stable-diffusion-cpp-python==0.4.7"

# Whom each of ours is compared with, its bound for the ratio and for the peak in GB.
OURS = {
    "ours": (["diffusers", "OpenVINO", "sd.cpp"], 0.6, 3.9),
    "ours f16": (["diffusers", "OpenVINO", "sd.cpp f16"], 0.6, 2.1),
}
SAMPLER = "21"  # the sampler's node in text.json


def made(path, command):
    """Runs `command`, which makes `path`, unless it is there: what was made by halves has another name."""
    if not path.exists():
        print(f"making {path}", file=sys.stderr, flush=True)
        half = path.with_name("half-" + path.name)
        shutil.rmtree(half, ignore_errors=True) if half.is_dir() else half.unlink(missing_ok=True)
        subprocess.run([str(word) for word in command(half)], check=True, stdout=sys.stderr)
        half.rename(path)
    return path


def sd_cpp(work, python, isa, threads):
    """stable-diffusion.cpp's program, built from its package's sources for this processor, or for AVX2 alone."""
    folder = work / f"sd-cpp-{isa}"
    program = folder / "build" / "bin" / "sd-cli"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--target", folder / "cmake", "cmake"], check=True, stdout=sys.stderr)
        download = [*pip, "download", "--quiet", "--no-deps", "--no-binary", SD_CPP.split("=")[0], "--dest", folder, SD_CPP]
        subprocess.run(download, check=True, stdout=sys.stderr)
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        source = next(folder.glob("*/vendor/stable-diffusion.cpp"))
        cmake = [folder / "cmake" / "cmake" / "data" / "bin" / "cmake"]
        chosen = ["-DGGML_NATIVE=OFF", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON"] if isa == "avx2" else []
        configure = [*cmake, "-S", source, "-B", folder / "build", "-DCMAKE_BUILD_TYPE=Release", *chosen]
        subprocess.run(configure, check=True, stdout=sys.stderr)
        build = [*cmake, "--build", folder / "build", "--target", "sd-cli", "--parallel", str(threads)]
        subprocess.run(build, check=True, stdout=sys.stderr)
    return program


class Case:
    """A program: its command, the files that it reads, and how its steps are counted in what it prints."""

    def __init__(self, command, files, count, settings):
        self.command, self.files, self.count, self.settings = command, files, count, settings


def lines(text):
    return text.count("step\n")


def events(text):
    told = 0
    for line in text.splitlines(keepends=True):
        if line.endswith("\n") and '"progress"' in line:
            event = json.loads(line)
            told += event["event"] == "progress" and event["node"] == SAMPLER and event["step"] > 0
    return told


def bars(steps):
    # "3/20 - 10.51s/it"; the bars of loading count megabytes.
    return lambda text: len(set(re.findall(rf"\b(\d+)/{steps} - [\d.]+(?:s/it|it/s)", text)))


def cases(arguments, isa):
    """Every program that is wanted, by its name; makes what they read."""
    work, threads, steps, guidance = arguments.work, arguments.threads, arguments.steps, arguments.guidance
    wanted = [who for who in arguments.only or ["ours", "ours f16", "diffusers", "OpenVINO", "sd.cpp", "sd.cpp f16"]]
    wanted = [who for who in wanted if who not in arguments.without]
    text = ROOT / "workflows" / "text.json"
    graph = json.loads(text.read_text())
    prompt = graph["11"]["inputs"]["text"]
    checkpoints = work / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    random = TARGET / "examples" / "random_weights"

    def checkpoint(name):
        kind = "f16" if name.endswith("f16") else "f32"
        return made(checkpoints / f"sd15-{kind}.safetensors", lambda half: [random, "sd15", half, "--dtype", kind])

    def folder():
        python = arguments.python or environment(arguments.environment)
        return python, made(
            work / "diffusers",
            lambda half: [python, HERE / "whole_model.py", "diffusers", checkpoint("f32"), MERGES, half],
        )

    tiny = None
    if arguments.taesd:
        python, _ = folder()
        (work / "vae").mkdir(exist_ok=True)
        tiny = made(work / "vae" / "taesd-random", lambda half: [python, HERE / "whole_model.py", "taesd", half])
        text = work / "text-taesd.json"
        graph["2"] = {"class_type": "VAELoader", "inputs": {"vae_name": tiny.name}, "_meta": {"title": "Tiny autoencoder"}}
        graph["22"]["inputs"]["vae"] = ["2", 0]
        text.write_text(json.dumps(graph, indent=2))

    found = {}
    for who in wanted:
        picture = work / "pictures" / f"{who.replace(' ', '-')}.png"
        settings = {}
        if who.startswith("ours"):
            files = [checkpoint(who)]
            values = {"Checkpoint.ckpt_name": files[0].name, "Size.width": 512, "Size.height": 512}
            values |= {"Sampler.steps": steps, "Sampler.cfg": guidance, "Sampler.sampler": "euler", "Save.filename_prefix": picture.stem}
            command = [TARGET / "kosmograph", "run", text, "--json", "--models", work, "--out", picture.parent]
            command += [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
            count, settings = events, {"RAYON_NUM_THREADS": str(threads)}
        elif who.startswith("sd.cpp"):
            files = [checkpoint(who)]
            program = arguments.sd_cpp or sd_cpp(work, folder()[0], isa, threads)
            command = [program, "-m", files[0], "-p", prompt, "-n", "", "-W", 512, "-H", 512, "--steps", steps]
            command += ["--cfg-scale", guidance, "--sampling-method", "euler", "--scheduler", "discrete", "-t", threads]
            command += ["-s", 1, "-o", picture]
            command += ["--taesd", tiny / "diffusion_pytorch_model.safetensors"] if tiny else []
            count = bars(steps)
        else:
            python, model = folder()
            decoder = tiny
            if who == "OpenVINO":
                diffusers = model
                if not (arguments.openvino_python or arguments.environment):
                    sys.exit("OpenVINO needs --environment or --openvino-python, or --without OpenVINO")
                python = arguments.openvino_python or environment(arguments.environment / "optimum", OPTIMUM)
                make = lambda half: [python, HERE / "whole_model.py", "openvino", diffusers, half]
                model = made(work / "openvino", make)
                if tiny:
                    make = lambda half: [python, HERE / "whole_model.py", "openvino-taesd", tiny, half]
                    decoder = made(work / "openvino-taesd", make)
            files = [path for path in sorted(model.rglob("*")) if path.is_file()]
            command = [python, HERE / "whole_part.py", who.lower(), model, prompt, steps, guidance, threads, picture]
            command += [decoder] if decoder else []
            count = lines
            # OMP_NUM_THREADS is a setting that PyTorch reads where it is built with OpenMP.
            settings = {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
        settings |= ONLY_AVX2 if isa == "avx2" else {}
        found[who] = Case([str(word) for word in command], files, count, settings)
    return found


def measured(who, case, arguments):
    """Runs a program once: its seconds, its peak in GB, and the seconds of each step after the first."""
    for path in case.files:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
    pictures = arguments.work / "pictures"
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir()
    with open(arguments.work / f"{who.replace(' ', '-')}.log", "wb") as log:
        start = time.perf_counter()
        process = subprocess.Popen(case.command, stdout=subprocess.PIPE, stderr=log, env={**os.environ, **case.settings})
        text, at = "", []
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            text += piece.decode(errors="replace")
            at += [time.perf_counter()] * (case.count(text) - len(at))
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        log.write(text.encode())
    problem = None
    if process.returncode:
        problem = f"ended with status {process.returncode}"
    elif len(at) != arguments.steps:
        problem = f"took {len(at)} steps, not {arguments.steps}"
    elif [size(path) for path in pictures.iterdir()] != [(512, 512)]:
        problem = "left no picture of 512 x 512"
    if problem:
        sys.exit(f"{who} {problem}; see {log.name}")
    steps = [after - before for before, after in zip(at, at[1:])]
    return {"seconds": seconds, "peak_gb": usage.ru_maxrss * 1024 / 1e9, "step_seconds": steps}


def size(path):
    """Width and height of a PNG."""
    head = path.read_bytes()[:24]
    return (int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")) if head[12:16] == b"IHDR" else None


def arithmetic(arguments, isa):
    """GFLOP after Winograd of all that a command computes, as `bench` counts its networks: the U-Net's calls, two texts, one decoding."""
    halves = 1 if arguments.guidance == 1 else 2
    parts = [("unet", halves, arguments.steps), ("clip", 2, 1)] + ([] if arguments.taesd else [("vae-decode", 1, 1)])
    ours = lambda part, batch: commands(None, None, part, 64, batch, arguments.threads, 1, "f32")["ours"]
    return sum(times * figures(ours(part, batch), arguments.threads, isa)["gflop_after_winograd"] for part, batch, times in parts)


def verdicts(median, peak, floor):
    """What is held against a bound: a sentence, the value and the bound."""
    found = []
    for who, (rivals, bound, most) in OURS.items():
        if who in median:
            there = [rival for rival in rivals if rival in median]
            found += [(f"{who} / {rival}", median[who] / median[rival], max(bound, 1.1 * floor / median[rival])) for rival in there]
            found.append((f"{who}, peak in GB", peak[who], most))
    return found


def halves(arguments, isa):
    """What a step takes without guidance: half, where both halves are computed with it."""
    with_guidance, arguments.guidance = arguments.guidance, 1.0
    for who, alone in cases(arguments, isa).items():
        if who == "OpenVINO":
            continue  # its model is fixed to both halves
        arguments.guidance = with_guidance
        both = measured(who, cases(arguments, isa)[who], arguments)
        one = measured(who, alone, arguments)
        both, one = (statistics.median(run["step_seconds"]) for run in (both, one))
        print(f"{who}: {both:.2f} s a step with guidance, {one:.2f} s without, {both / one:.2f} times", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder for the model in its forms, and the pictures")
    parser.add_argument("--environment", type=pathlib.Path, help="virtual environments, made if they are not there")
    parser.add_argument("--python", help="a Python that has torch and diffusers")
    parser.add_argument("--openvino-python", help="a Python that has optimum-intel and OpenVINO")
    parser.add_argument("--sd-cpp", help="stable-diffusion.cpp's program, sd-cli")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=20, help="2 or more")
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--turns", type=int, default=2, help="processes of each")
    parser.add_argument("--only", action="append", help="a program to run; repeatable")
    parser.add_argument("--without", action="append", default=[], help="a program to leave out; repeatable")
    parser.add_argument("--isa", choices=["avx2"], help="hold all of them to this instruction set")
    parser.add_argument("--taesd", action="store_true", help="decode with a tiny autoencoder")
    parser.add_argument("--halves", action="store_true", help="only show what a step takes with and without guidance")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    arguments = parser.parse_args()
    arguments.work = arguments.work.resolve()
    if not (arguments.environment or arguments.python):
        parser.error("--environment or --python is needed")
    isa = arguments.isa or processor()
    if arguments.halves:
        return halves(arguments, isa)

    programs = cases(arguments, isa)
    python = arguments.python or environment(arguments.environment)
    gflop, rates = arithmetic(arguments, isa), []
    runs = {who: [] for who in programs}
    for _ in range(arguments.turns):
        rates.append(product_rate(python, arguments.threads, isa))
        for who, case in programs.items():
            runs[who].append(measured(who, case, arguments))
    median = {who: statistics.median(run["seconds"] for run in each) for who, each in runs.items()}
    peak = {who: max(run["peak_gb"] for run in each) for who, each in runs.items()}
    floor = gflop / statistics.median(rates)
    found = verdicts(median, peak, floor)
    if arguments.json:
        bounds = [{"what": what, "value": value, "bound": bound, "holds": value <= bound} for what, value, bound in found]
        print(json.dumps({"isa": isa, "threads": arguments.threads, "steps": arguments.steps, "runs": runs, "floor": {"gflop": gflop, "gflops": statistics.median(rates), "seconds": floor}, "bounds": bounds}, indent=2))
    else:
        print(f"512 x 512, {arguments.steps} steps, {arguments.threads} threads, {isa}, {arguments.turns} turns")
        for who, each in runs.items():
            step = statistics.median(seconds for run in each for seconds in run["step_seconds"])
            every = ", ".join(f"{run['seconds']:.1f}" for run in each)
            print(f"{who}: {median[who]:.1f} s ({every}), {step:.2f} s a step, {peak[who]:.2f} GB")
        print(f"floor: {floor:.1f} s, {gflop:.0f} GFLOP after Winograd, the product's {statistics.median(rates):.0f} GFLOPS")
        for what, value, bound in found:
            print(f"    {what}: {value:.2f}, at most {bound:.3g}: {'holds' if value <= bound else 'DOES NOT HOLD'}")
    return 0 if all(value <= bound for _, value, bound in found) else 1


if __name__ == "__main__":
    sys.exit(main())
