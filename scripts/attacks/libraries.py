"""Node libraries with every fault of tests/hostile, and files that are no libraries."""

import functools
import json
import os
import re
import subprocess

from .judge import judge_process, judge_run, shown
from .runner import REPOSITORY, Kind, run

HOSTILE = REPOSITORY / "tests" / "hostile"

GRAPH = {
    "a": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 2, "color": 255}},
    "s1": {"class_type": "SaveImage", "inputs": {"images": ["a", 0], "filename_prefix": "before"}},
    "bad": {"class_type": "Faulty", "inputs": {"image": ["s1", 0]}},
    "s2": {"class_type": "SaveImage", "inputs": {"images": ["bad", 0], "filename_prefix": "after"}},
    "i": {"class_type": "ImageInvert", "inputs": {"image": ["a", 0]}},
    "s3": {"class_type": "SaveImage", "inputs": {"images": ["i", 0], "filename_prefix": "beside"}},
}

# What check-plugin must not let pass.
FAILS = {"segv", "segv_elsewhere", "abort", "exit0", "exit7", "quick_exit0", "quick_exit9", "stack", "division", "illegal", "bus",
         "trap_in_thread", "exec", "sigterm", "sigkill", "sigstop", "alarm", "loop", "deaf", "fork_hangs", "fork_returns", "close1",
         "close2", "close_all", "handler", "handler_int", "mask", "limit_file", "limit_open", "late_call", "write_past", "dangling",
         "null_tensor", "wrong_kind", "status99", "no_output", "silent_error", "bad_output", "throws"}
# Files of that name that are no libraries at all.
ODD = ["empty", "text", "half", "folder", "pipe", "zeros"]


@functools.cache
def faults():
    source = (HOSTILE / "faulty.c").read_text()
    listed = re.search(r"#define FAULTS\(X\)(.*?)\n\n", source, re.S)[1]
    return ["none", *re.findall(r"X\((\w+)\)", listed), "throws", *(f"no library: {odd}" for odd in ODD)]


class Libraries(Kind):
    """Runs a graph with the library, checks it, and lists it beside the others."""

    name = "libraries"

    def count(self, setting):
        return len(faults())

    def missing(self, setting):
        return next((f"{tool} is not there" for tool in ("cc", "c++") if os.system(f"command -v {tool} >/dev/null") != 0), None)

    def build(self, setting, fault, folder):
        library = folder / "plugins" / f"lib{fault.split()[-1]}.so"
        library.parent.mkdir()
        if fault.startswith("no library"):
            odd = fault.split()[-1]
            if odd == "folder":
                library.mkdir()
            elif odd == "pipe":
                os.mkfifo(library)
            else:
                real = next(setting.program.parent.glob("libkosmograph_image.so"), None)
                half = real.read_bytes()[:100_000] if real else b"\x7fELF"
                library.write_bytes({"empty": b"", "text": b"hello\n", "half": half, "zeros": bytes(1 << 16)}[odd])
            return library
        include = ["-I", REPOSITORY / "nodes" / "abi", "-shared", "-fPIC", "-w", "-O1", "-o", library]
        if fault == "throws":
            command = ["c++", "-std=c++17", *include, HOSTILE / "throws.cpp"]
        else:
            command = ["cc", "-std=c11", "-pthread", *include, f"-DFAULT={fault}", HOSTILE / "faulty.c"]
        subprocess.run(command, check=True)
        return library

    def attack(self, setting, number, rng, folder):
        fault = faults()[number]
        library = self.build(setting, fault, folder)
        plugins, out = folder / "plugins", folder / "out"
        (folder / "graph.json").write_text(json.dumps(GRAPH))
        ended = run(setting, ["run", "graph.json", "--json", "--plugins", plugins, "--out", out], folder, patience=4)
        findings = [(category, f"run with {fault}: {what}") for category, what in judge_run(ended, out, stack_may_overflow=True)]
        # What does not need the library is made, whatever it does, unless it was asked to stop.
        made = {path.name for path in out.glob("*.png")} if out.is_dir() else set()
        wanted = {f"{name}_{n:05}_.png" for name in ("before", "beside") for n in (1, 2)}
        if ended.code in (0, 3) and not wanted <= made:
            findings.append(("untold picture", f"run with {fault}: {sorted(wanted - made)} were not made"))
        listed = run(setting, ["plugins", "--json", "--plugins", plugins], folder, patience=20)
        judged = judge_process(listed, codes=(0,), stack_may_overflow=True)
        findings += [(category, f"plugins with {fault}: {what}") for category, what in judged]
        try:
            found = json.loads(listed.stdout)
            if len(found["libraries"]) < 3:
                findings.append(("untrue code", f"plugins with {fault}: the others are not listed"))
        except ValueError:
            findings.append(("garbled", f"plugins with {fault}: {shown(listed.stdout)}"))
        if library.is_file():
            checked = run(setting, ["check-plugin", library], folder, patience=150)
            judged = judge_process(checked, stack_may_overflow=True)
            findings += [(category, f"check-plugin of {fault}: {what}") for category, what in judged]
            if fault in FAILS and checked.code == 0:
                findings.append(("passes", f"check-plugin of {fault} finds nothing: {shown(checked.stdout[-300:])}"))
            if fault == "none" and checked.code != 0:
                findings.append(("passes", f"check-plugin finds something in what is right: {shown(checked.stdout[-300:])}"))
        return findings


KINDS = [Libraries()]
