#!/usr/bin/env python3
"""Checks the workflows for SD 1.5 and SDXL that ComfyUI ships as templates, in the format that its editor saves.

Downloads the package they are published in with pip (it is GPL, so none of it lies in this repository), takes out the
fourteen workflows, and runs `kosmograph check` on each; and the same with our own in workflows/templates, which are API format and
name published files. They may lack model files and pictures, and nothing else.

    cargo build --release --workspace
    scripts/templates.py [FOLDER]

With --run WEIGHTS the missing files are made, of random numbers in the real shapes (about 26 GB in WEIGHTS, made once), every
workflow must then pass `check`, and is run: one step a sampler and small pictures, since random weights draw noise. One,
sdxl_lightning, runs as it stands: 1024 x 1024, four steps, without guidance.

    cargo build --release --workspace && cargo build --release -p kosmograph-models --example random_weights
    scripts/templates.py --run WEIGHTS

FOLDER keeps the workflows (a temporary one where none is given); the test `templates` reads them from there:
KOSMOGRAPH_TEMPLATES=FOLDER cargo test --release -p kosmograph-tests --test templates -- --ignored
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"

PACKAGE = "comfyui-workflow-templates==0.1.0"
TEMPLATES = [
    "default",
    "image2image",
    "lora",
    "lora_multiple",
    "inpaint_example",
    "controlnet_example",
    "depth_controlnet",
    "mixing_controlnets",
    "2_pass_pose_worship",
    "sdxl_simple_example",
    "sdxl_refiner_prompt_example",
    "sdxlturbo_example",
    "sdxl_revision_text_prompts",
    "sdxl_revision_zero_positive",
]

OWN = ROOT / "workflows" / "templates"

# Runs as it stands, to be timed end to end.
WHOLE = "sdxl_lightning"


def fetch(folder):
    """The workflows, as FOLDER/NAME.json, unless they are there."""
    if all((folder / f"{name}.json").exists() for name in TEMPLATES):
        return
    with tempfile.TemporaryDirectory() as wheels:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels, PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = pathlib.Path(wheels).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in TEMPLATES:
                text = archive.read(f"comfyui_workflow_templates/templates/{name}.json")
                (folder / f"{name}.json").write_bytes(text)


def check(kosmograph, workflow, arguments):
    """What `kosmograph check` says: the files that are missing, and what else is wrong."""
    command = [kosmograph, "check", "--json", workflow, *arguments]
    answer = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    report = json.loads(answer.stdout)
    # The one problem that a file which is not there gives.
    missing = [one for one in report["problems"] if one["message"].startswith("there is no ")]
    wrong = [one for one in report["problems"] if one not in missing]
    return missing, wrong + report["warnings"]


# The kind of random weights that stands in for what an input names, and the folder it lies in.
KINDS = {
    "ckpt_name": ("sd15", "checkpoints"),
    "vae_name": ("vae", "vae"),
    "control_net_name": ("controlnet", "controlnet"),
    "lora_name": ("lora", "loras"),
    "ipadapter_file": ("ip-adapter", "ipadapter"),
    "clip_name": ("clip-vision-h", "clip_vision"),
    "model_name": ("esrgan", "upscale_models"),
}


def provide(weights, name, missing):
    """Makes the file that `missing` names: a link to random weights of its kind, or a picture of this repository."""
    file = missing["message"].split('"')[1]
    if missing["input"] not in KINDS:
        path = weights / "input" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((ROOT / "workflows" / "input" / "monster-1.png").read_bytes())
        return
    kind, folder = KINDS[missing["input"]]
    if kind == "sd15" and "inpaint" in name:
        kind = "sd15-inpaint"
    if kind == "sd15" and "xl" in file:
        kind = "sdxl-refiner" if "refiner" in file else "sdxl"
    if kind == "ip-adapter" and "sdxl" in file:
        kind = "ip-adapter-sdxl"
    if kind == "clip-vision-h" and "vision_g" in file:
        kind = "clip-vision-g"
    random = weights / "random" / f"{kind}.safetensors"
    if not random.exists():
        print(f"making {random.name} …", file=sys.stderr)
        maker = TARGET / "examples" / "random_weights"
        subprocess.run([maker, kind, random, "--dtype", "f16"], check=True)
    path = weights / folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        os.link(random, path)


def small(workflow):
    """Settings that make a run short: one step, small latents."""
    if workflow.stem == WHOLE:
        return []
    settings = []
    # Below 512 SDXL has next to nothing to look at; our own are run at 512 as well.
    large = "sdxl" in workflow.stem or workflow.parent == OWN
    sizes = {"EmptyLatentImage": 512 if large else 256, "LatentUpscale": 320}
    graph = json.loads(workflow.read_text())
    # The editor's format, or the API's: id, class, and the step that a sampler begins at.
    if "nodes" in graph:
        nodes = [(node["id"], node["type"], node.get("widgets_values") or []) for node in graph["nodes"]]
        nodes = [(id, name, values[7] if name == "KSamplerAdvanced" else 0) for id, name, values in nodes]
    else:
        nodes = [(id, node["class_type"], node["inputs"].get("start_at_step", 0)) for id, node in graph.items()]
    for id, name, start in nodes:
        if name == "KSampler":
            settings.append(f"{id}.steps=1")
        if name == "KSamplerAdvanced":
            # Two steps, of which one is the base's and the other the refiner's.
            part = ("start_at_step=0", "end_at_step=1") if start == 0 else ("start_at_step=1", "end_at_step=10000")
            settings += [f"{id}.{setting}" for setting in ("steps=2", *part)]
        if name in sizes:
            settings += [f"{id}.{side}={sizes[name]}" for side in ("width", "height")]
    return [part for setting in settings for part in ("--set", setting)]


def run(kosmograph, workflow, weights, arguments):
    """Runs a workflow whose files are there, and says what came of it. Returns whether something did."""
    start = time.monotonic()
    command = [kosmograph, "run", workflow, "--out", weights / "output" / workflow.stem]
    answer = subprocess.run([*command, *small(workflow), *arguments], capture_output=True, check=False, text=True)
    # The paths of the pictures, one a line.
    pictures = answer.stdout.splitlines()
    if answer.returncode != 0:
        print(answer.stderr, file=sys.stderr)
    print(f"    run: exit code {answer.returncode}, {len(pictures)} pictures, {time.monotonic() - start:.0f} s")
    return answer.returncode == 0 and bool(pictures)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path, help="where the workflows are kept")
    parser.add_argument("--kosmograph", type=pathlib.Path, default=TARGET / "kosmograph")
    parser.add_argument("--models", action="append", default=[], help="handed on to kosmograph")
    parser.add_argument("--run", type=pathlib.Path, metavar="WEIGHTS", help="make the missing files there, and run")
    own = sorted(file.stem for file in OWN.glob("*.json"))
    parser.add_argument("--only", choices=TEMPLATES + own, action="append", help="one workflow; repeatable")
    arguments = parser.parse_args()
    handed_on = [part for models in arguments.models for part in ("--models", models)]
    weights = arguments.run
    if weights:
        for part in ("random", "input"):
            (weights / part).mkdir(parents=True, exist_ok=True)
        handed_on += ["--models", weights, "--input", weights / "input"]
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        fetch(folder)
        for name in arguments.only or TEMPLATES + own:
            workflow = (OWN if name in own else folder) / f"{name}.json"
            missing, wrong = check(arguments.kosmograph, workflow, handed_on)
            files = sorted({one["message"].split('"')[1] for one in missing})
            print(f"{name}: {'WRONG' if wrong else 'ok'}; files that are missing: {', '.join(files) or 'none'}")
            for one in wrong:
                failed = True
                print(f"    node {one.get('node')} ({one.get('class')}) {one.get('input', '')}: {one['message']}")
            if weights and not wrong:
                for one in missing:
                    provide(weights, name, one)
                missing, wrong = check(arguments.kosmograph, workflow, handed_on)
                for one in missing + wrong:
                    print(f"    still: {one['message']}")
                if missing or wrong or not run(arguments.kosmograph, workflow, weights, handed_on):
                    failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
