"""Disks that are full or cannot be written, and streams that nobody reads."""

import contextlib
import json
import os
import subprocess
from pathlib import Path

from .judge import events_of, judge_process, judge_run
from .runner import REPOSITORY, Kind, run


def workflow(folder, pictures=3, side=96):
    """Pictures of noise, which do not shrink, by a node of no cost: four branches that do not need each other."""
    graph = {"load": {"class_type": "LoadImage", "inputs": {"image": "monster-1.png"}}}
    for i in range(pictures):
        graph[f"scale{i}"] = {"class_type": "ImageScale", "inputs": {
            "image": ["load", 0], "width": side + i, "height": side, "upscale_method": "bicubic", "crop": "disabled"}}
        graph[f"twice{i}"] = {"class_type": "ImageBatch", "inputs": {"image1": [f"scale{i}", 0], "image2": [f"scale{i}", 0]}}
        graph[f"save{i}"] = {"class_type": "SaveImage", "inputs": {"images": [f"twice{i}", 0], "filename_prefix": f"p{i}"}}
    (folder / "workflow.json").write_text(json.dumps(graph))


def arguments(out, *extra):
    return ["run", "workflow.json", "--out", out, "--input", REPOSITORY / "workflows" / "input", *extra]


@contextlib.contextmanager
def disk(folder, options):
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False, capture_output=True)


def cannot_mount(setting):
    probe = setting.root / "probe"
    setting.root.mkdir(parents=True, exist_ok=True)
    try:
        with disk(probe, "size=64k"):
            return None
    except (subprocess.CalledProcessError, OSError):
        return "a tmpfs cannot be mounted; run as root"
    finally:
        if probe.is_dir():
            probe.rmdir()


class FullDisk(Kind):
    """A disk that is full after so many bytes, and the limit on a file's size (ulimit -f)."""

    name = "full-disk"

    def count(self, setting):
        return 40

    def missing(self, setting):
        return cannot_mount(setting)

    def attack(self, setting, number, rng, folder):
        workflow(folder)
        if number % 4 == 3:
            out = folder / "out"
            ended = run(setting, arguments(out, "--json"), folder, limits=f"ulimit -f {rng.choice([0, 1, 4, 16, 64])};")
            # The streams are files, too, and may be cut.
            findings = judge_run(ended, out, codes=(0, 2, 3))
            cut = len(ended.stdout) % 512 == 0
            # Where a file may have no byte at all, nothing can be said anywhere.
            borne = ("garbled", "no last event", "untold picture", *([] if ended.stdout or ended.stderr else ["nothing said"]))
            return [finding for finding in findings if not cut or finding[0] not in borne]
        with disk(folder / "disk", f"size={rng.choice([4, 16, 24, 32, 48, 64, 96, 128])}k,nr_inodes={rng.choice([2, 4, 50])}") as full:
            out = full / "out"
            ended = run(setting, arguments(out, "--json"), folder)
            return judge_run(ended, out, codes=(0, 2, 3))


class ReadOnly(Kind):
    """Output folders that cannot be written: told before anything is computed."""

    name = "read-only"

    def count(self, setting):
        return 12

    def missing(self, setting):
        return cannot_mount(setting)

    def attack(self, setting, number, rng, folder):
        workflow(folder)
        where = number % 6
        with contextlib.ExitStack() as stack:
            if where == 0:
                out = stack.enter_context(disk(folder / "disk", "ro"))
            elif where == 1:
                out = stack.enter_context(disk(folder / "disk", "ro")) / "new" / "folder"
            elif where == 2:
                out = folder / "workflow.json"
            elif where == 3:
                out = folder / "workflow.json" / "out"
            elif where == 4:
                out = Path("/proc/self/out")
            else:
                out = folder / ("x" * 300)
            ended = run(setting, arguments(out, "--json"), folder)
            findings = judge_run(ended, folder / "none", codes=(2, 3))
            events, _ = events_of(ended)
            if any(event["event"] == "node_started" for event in events):
                findings.append(("told late", f"--out {out}: a node ran before it was told"))
            # What checks without running tells it, too.
            check = run(setting, ["check", *arguments(out)[1:]], folder)
            if check.code == 0:
                findings.append(("told late", f"check --out {out} finds nothing"))
            return findings + judge_process(check, codes=(0, 2))


class Streams(Kind):
    """Standard output and error that are full, closed, or a pipe whose reader leaves."""

    name = "streams"

    def count(self, setting):
        return 24

    def attack(self, setting, number, rng, folder):
        workflow(folder)
        out, json_too = folder / "out", ["--json"] if number % 2 else []
        what = number // 2 % 6
        command = arguments(out, *json_too)
        if what == 0:
            with open("/dev/full", "wb") as full:
                ended = run(setting, command, folder, stdout=full)
            wanted = (3,)
        elif what == 1:
            ended, wanted = run(setting, command, folder, limits="exec >&-;"), (0, 3)
        elif what == 2:
            ended, wanted = run(setting, command, folder, limits="exec 2>&-;"), (0,)
        elif what == 3:
            with open("/dev/full", "wb") as full:
                ended = run(setting, command, folder, stderr=full)
            wanted = (0,)
        else:
            # A reader that is gone from the beginning, or leaves after some bytes.
            read, write = os.pipe()
            ahead = rng.choice([1, 100, 400]) if what == 5 else 0

            def during(child, mark, ended):
                if ahead:
                    os.read(read, ahead)
                os.close(read)

            if not ahead:
                os.close(read)
            ended = run(setting, command, folder, stdout=write, during=during if ahead else None)
            os.close(write)
            # A short run may have written everything before the reader left.
            wanted = (3,) if what == 4 else (0, 3)
        findings = judge_process(ended, codes=wanted)
        if ended.code == 3 and what in (0, 4, 5) and not ended.stderr.strip():
            findings.append(("nothing said", "standard output was lost without a line on standard error"))
        return findings


KINDS = [FullDisk(), ReadOnly(), Streams()]
