#!/usr/bin/env python3
"""Checks the SD 1.5 workflows that ComfyUI ships as templates, in the format that its editor saves.

Downloads the package they are published in with pip (it is GPL, so none of it lies in this repository), takes out the
nine workflows, and runs `kosmograph check` on each. They may lack model files and pictures, and nothing else.

    cargo build --release --workspace
    scripts/templates.py [FOLDER]

FOLDER keeps the workflows (a temporary one where none is given); the test `templates` reads them from there:
KOSMOGRAPH_TEMPLATES=FOLDER cargo test --release -p kosmograph-tests --test templates
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
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
]


def fetch(folder):
    """The nine workflows, as FOLDER/NAME.json, unless they are there."""
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=pathlib.Path, help="where the workflows are kept")
    parser.add_argument("--kosmograph", type=pathlib.Path, default=TARGET / "kosmograph")
    parser.add_argument("--models", action="append", default=[], help="handed on to kosmograph")
    arguments = parser.parse_args()
    handed_on = [part for models in arguments.models for part in ("--models", models)]
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        fetch(folder)
        for name in TEMPLATES:
            missing, wrong = check(arguments.kosmograph, folder / f"{name}.json", handed_on)
            files = sorted({one["message"].split('"')[1] for one in missing})
            print(f"{name}: {'WRONG' if wrong else 'ok'}; files that are missing: {', '.join(files) or 'none'}")
            for one in wrong:
                failed = True
                print(f"    node {one.get('node')} ({one.get('class')}) {one.get('input', '')}: {one['message']}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
