"""Signals and kill -9 at any moment of a run."""

import json
import os
import signal
import time
from pathlib import Path

from .judge import STOP, judge_files, judge_process, judge_run, pictures
from .runner import REPOSITORY, Kind, catches, run, send


def children(process):
    """The ids of the process's children."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if int(Path("/proc", entry, "stat").read_text().rsplit(")", 1)[1].split()[1]) == process:
                    found.append(int(entry))
            except (OSError, ValueError, IndexError):
                pass
    return found


def long_workflow(folder, rng):
    """One that loads, tokenises, samples, decodes, filters and saves, in an order and of a size that differ."""
    graph = json.loads((REPOSITORY / "workflows" / f"{rng.choice(['text', 'subject', 'control', 'variants'])}.json").read_text())
    for node in graph.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = rng.choice([3, 10, 40])
        if node["class_type"] == "EmptyLatentImage":
            node["inputs"]["batch_size"] = rng.choice([1, 3])
    # Pictures that are large, filtered, and take a while to be written: one after the other, and several of one node.
    graph["load"] = {"class_type": "LoadImage", "inputs": {"image": "monster-1.png"}}
    graph["big"] = {"class_type": "ImageScale", "inputs": {"image": ["load", 0], "width": rng.choice([512, 2048]), "height": 1024,
                                                           "upscale_method": rng.choice(["lanczos", "bicubic"]), "crop": "disabled"}}
    graph["soft"] = {"class_type": "ImageBlur", "inputs": {"image": ["big", 0], "blur_radius": rng.choice([1, 25]), "sigma": 5.0}}
    graph["both"] = {"class_type": "ImageBatch", "inputs": {"image1": ["big", 0], "image2": ["soft", 0]}}
    for name in ("big", "both"):
        graph[f"save {name}"] = {"class_type": "SaveImage", "inputs": {"images": [name, 0], "filename_prefix": name}}
    (folder / "workflow.json").write_text(json.dumps(graph))


def await_moment(folder, child, rng):
    """Until a time after the start, or until so many events and a little more; returns it in words."""
    if rng.random() < 0.4:
        delay = rng.choice([rng.uniform(0, 0.05), rng.uniform(0, 0.5), rng.uniform(0, 2)])
        time.sleep(delay)
        return f"{delay:.3f} s after the start"
    events, delay = rng.randrange(60), rng.choice([0, 0.002, 0.01, 0.05, 0.2])
    while child.poll() is None and (folder / "stdout").read_bytes().count(b"\n") < events:
        time.sleep(0.0005)
    time.sleep(delay)
    return f"{delay} s after event {events}"


def arguments(folder):
    return ["run", "workflow.json", "--json", "--out", folder / "out", "--models", REPOSITORY / "models", "--input",
            REPOSITORY / "workflows" / "input"]


class Signals(Kind):
    """SIGINT, SIGTERM and SIGHUP: the run ends within two seconds, and says that it was interrupted."""

    name = "signals"
    alone = True

    def count(self, setting):
        return 120

    def attack(self, setting, number, rng, folder):
        long_workflow(folder, rng)
        which = rng.choice([signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
        took = {"when": "never"}

        def during(child, mark, ended):
            took["when"] = await_moment(folder, child, rng)
            took["after"] = time.monotonic() - ended.began
            if child.poll() is None:
                took["caught"] = catches(child.pid, which)
                begin = time.monotonic()
                # As a terminal does it: to the whole group, or as a person or a service does, to the program alone.
                try:
                    (os.killpg if number % 2 else send)(child.pid, which)
                except ProcessLookupError:
                    return
                try:
                    child.wait(STOP + 10)
                except Exception:  # noqa: BLE001 the runner says that it hangs
                    return
                took["seconds"] = time.monotonic() - begin

        ended = run(setting, arguments(folder), folder, patience=30, during=during)
        findings = judge_run(ended, folder / "out")
        # Before the program had any handler it ends as every program would.
        if ended.code == -which and not took.get("caught") and took["after"] < 0.1:
            findings = [finding for finding in findings if finding[0] != "died"]
        if took.get("seconds", 0) > STOP:
            findings.append(("slow to stop", f"{took['seconds']:.1f} s after {which.name}, {took['when']}"))
        if took.get("caught") and ended.code not in (0, 130):
            findings.append(("exit code", f"{ended.code} after {which.name}, {took['when']}"))
        return findings


class Kills(Kind):
    """kill -9, of the program and of what it started: no process, no half picture, and the next run clears up."""

    name = "kills"

    def count(self, setting):
        return 60

    def attack(self, setting, number, rng, folder):
        long_workflow(folder, rng)
        killed = []

        def during(child, mark, ended):
            await_moment(folder, child, rng)
            if child.poll() is not None:
                return
            # Every other time a child of it, as the system does when memory runs out.
            for process in children(child.pid)[:1] if number % 2 else [child.pid]:
                killed.append(process)
                send(process, signal.SIGKILL)

        ended = run(setting, arguments(folder), folder, patience=40, during=during)
        out = folder / "out"
        if killed and number % 2 == 0 and ended.code == -signal.SIGKILL:
            # Nobody was left to tell anything or to clear up.
            findings = [("orphan", f"processes {ended.orphans} were left")] if ended.orphans else []
            findings += [finding for finding in judge_files(out) if finding[0] != "temporary file"]
        else:
            findings = judge_run(ended, out)
        before = {path.name for path in pictures(out)[0]}
        (folder / "workflow.json").write_text(json.dumps({
            "e": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
            "s": {"class_type": "SaveImage", "inputs": {"images": ["e", 0], "filename_prefix": "next"}}}))
        again = run(setting, arguments(folder), folder)
        after = {path.name for path in pictures(out)[0]}
        findings += judge_process(again, codes=(0,)) + judge_files(out)
        if after - before != {"next_00001_.png"}:
            findings.append(("untrue code", f"the next run made {sorted(after - before)}"))
        return findings


KINDS = [Signals(), Kills()]
