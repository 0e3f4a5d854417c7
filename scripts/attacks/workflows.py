"""Mutated workflows, in the API's format and in the editor's, and every widget of every class at its ends."""

import copy
import functools
import json
import subprocess

from . import mutate
from .judge import judge_place, judge_process, judge_run
from .runner import REPOSITORY, Kind, run


@functools.cache
def classes(program):
    """What `kosmograph nodes --json` says: class -> its inputs and outputs."""
    said = subprocess.run([program, "nodes", "--json"], capture_output=True, cwd=REPOSITORY, check=True)
    return json.loads(said.stdout)


def inputs_of(info):
    """Name -> (type or choices, options), required ones first."""
    return {name: (spec[0], spec[1] if len(spec) > 1 else {})
            for part in ("required", "optional") for name, spec in info["input"].get(part, {}).items()}


def is_widget(kind):
    return isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN")


@functools.cache
def bases():
    """The repository's workflows, small: one step, few pixels."""
    found = []
    for path in sorted((REPOSITORY / "workflows").glob("*.json")):
        graph = json.loads(path.read_text())
        for node in graph.values():
            small = {"steps": 1, "width": 64, "height": 64}
            node["inputs"].update({key: number for key, number in small.items() if key in node["inputs"]})
        found.append(graph)
    return found


def as_the_editor_saves(graph, known):
    """The graph as the editor's page saves it: values in lists, links by number."""
    nodes, links, numbers = [], [], {key: i + 1 for i, key in enumerate(graph)}
    for key, node in graph.items():
        specs = inputs_of(known[node["class_type"]])
        saved = {"id": numbers[key], "type": node["class_type"], "mode": 0, "pos": [0, 0], "size": [1, 1], "flags": {}, "order": 0,
                 "properties": {}, "inputs": [], "outputs": [], "widgets_values": []}
        for name, (kind, options) in specs.items():
            given = node["inputs"].get(name, options.get("default"))
            if isinstance(given, list) and len(given) == 2 and given[0] in numbers:
                links.append([len(links) + 1, numbers[given[0]], given[1], numbers[key], len(saved["inputs"]), str(kind)])
                saved["inputs"].append({"name": name, "type": kind if isinstance(kind, str) else "COMBO", "link": len(links)})
            elif is_widget(kind):
                saved["widgets_values"].append(given)
                if options.get("control_after_generate"):
                    saved["widgets_values"].append("fixed")
        for i, kind in enumerate(known[node["class_type"]]["output"]):
            out = [link[0] for link in links if link[1] == numbers[key] and link[2] == i]
            saved["outputs"].append({"name": str(kind), "type": kind, "links": out})
        nodes.append(saved)
    return {"last_node_id": len(nodes), "last_link_id": len(links), "nodes": nodes, "links": links, "groups": [], "config": {},
            "extra": {}, "version": 0.4}


def run_workflow(setting, folder, data, *extra):
    """Runs the bytes as a workflow, and judges."""
    (folder / "workflow.json").write_bytes(data)
    before, out = set(folder.rglob("*")), folder / "out"
    ended = run(setting, ["run", "workflow.json", "--json", "--out", out, "--models", REPOSITORY / "models", "--input",
                          REPOSITORY / "workflows" / "input", *extra], folder)
    return judge_run(ended, out) + judge_place(folder, before, out)


class Workflows(Kind):
    name = "workflows"

    def count(self, setting):
        return 1500

    def attack(self, setting, number, rng, folder):
        known = classes(setting.program)
        graph = copy.deepcopy(rng.choice(bases()))
        if rng.random() < 0.5:
            graph = as_the_editor_saves(graph, known)
        for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
            if rng.random() < 0.15 and "nodes" not in graph and graph:
                node = graph[rng.choice(list(graph))]
                if isinstance(node, dict):
                    node["class_type"] = rng.choice(list(known))
            else:
                mutate.change(graph, rng)
        data = mutate.as_json(graph)
        if rng.random() < 0.1:
            data = mutate.change_bytes(data, rng)
        if rng.random() < 0.02:
            data = rng.choice([b"", b"[" * 100000, b'{"a":' * 50000, b"\xff\xfe", b"\xef\xbb\xbf" + data, data + data, b"{}", b"null"])
        findings = run_workflow(setting, folder, data, *(["--seed", "1..3"] if rng.random() < 0.1 else []))
        if number % 5 == 0:
            findings += judge_process(run(setting, ["check", "workflow.json", "--models", REPOSITORY / "models"], folder))
        return findings


# A prompt of moderate and of large size, and what is not text.
ENDS = {
    "STRING": ["", " ", "x" * 20_000, "word " * 40_000, "\0", "../../x", "%date:y%", "(" * 2000, 5, None, [], {"a": 1}],
    "BOOLEAN": [True, False, 0, 1, "true", None, []],
    "INT": [0, -1, 1, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -2**63, 1.5, 1e30, float("nan"), float("inf"),
            "5", None, True, []],
    "FLOAT": [0, -0.0, -1, 1e-9, 1e-18, 5e-324, 1e38, 1e308, 2**63, float("nan"), float("inf"), float("-inf"), "0.5", None, True, []],
}


@functools.cache
def widgets(program):
    """Every (class, input, value) to be tried."""
    tried = []
    for name, info in sorted(classes(program).items()):
        for widget, (kind, options) in inputs_of(info).items():
            if not is_widget(kind):
                continue
            if isinstance(kind, list):
                values = [*kind[:1], *kind[-1:], "", "no such choice", 0, None, []]
            else:
                values = list(ENDS[kind])
                for end in ("min", "max"):
                    if end in options:
                        step = options.get("step") or (1 if kind == "INT" else 0.01)
                        values += [options[end], options[end] - step, options[end] + step]
            tried += [(name, widget, value) for value in values]
    return tried


class Widgets(Kind):
    """Each value in a graph of the fewest nodes that feeds the class and shows what it makes."""

    name = "widgets"

    def count(self, setting):
        return len(widgets(setting.program))

    def attack(self, setting, number, rng, folder):
        name, widget, value = widgets(setting.program)[number]
        graph, known = {}, classes(setting.program)
        key = feed(graph, known, name)
        graph[key]["inputs"][widget] = value
        show(graph, known, key)
        return run_workflow(setting, folder, mutate.as_json(graph))


# Values without which a class cannot run, or would run long.
SMALL = {"width": 64, "height": 64, "steps": 1, "ckpt_name": "tiny/sd", "unet_name": "tiny/unet/dreambooth", "vae_name": "tiny/sd",
         "lora_name": "tiny/loras/neon.safetensors", "control_net_name": "tiny/controlnet/tiny-canny", "image": "monster-1.png",
         "text": "a monster", "clip_name": "tiny/sd", "model_name": "tiny/kosmos", "kosmos_name": "tiny/kosmos"}
# What makes a value of each type; of the classes that do, these need the least.
MAKERS = {"IMAGE": "EmptyImage", "MASK": "SolidMask", "LATENT": "EmptyLatentImage", "MODEL": "CheckpointLoaderSimple",
          "CLIP": "CheckpointLoaderSimple", "VAE": "CheckpointLoaderSimple", "CONDITIONING": "CLIPTextEncode",
          "CONTROL_NET": "ControlNetLoader", "KOSMOS": "KosmosLoader"}


def feed(graph, known, name, depth=0):
    """Adds a node of the class with everything that it needs; returns its id."""
    key = str(len(graph) + 1)
    node = graph[key] = {"class_type": name, "inputs": {}}
    for wanted, (kind, options) in inputs_of(known[name]).items():
        if is_widget(kind):
            default = options.get("default", kind[0] if isinstance(kind, list) and kind else "")
            is_file = wanted.endswith("_name") or wanted == "image"
            usable = is_file or (not isinstance(kind, list) and kind != "FLOAT")
            node["inputs"][wanted] = SMALL.get(wanted, default) if usable else default
        elif wanted not in known[name]["input"].get("optional", {}) and depth < 8:
            for one in kind.split(","):
                maker = MAKERS.get(one) or next((c for c, info in sorted(known.items()) if one in info["output"]), None)
                if maker:
                    node["inputs"][wanted] = [feed(graph, known, maker, depth + 1), known[maker]["output"].index(one)]
                    break
    return key


# What takes a value of the type, and the input's name, on the way to a picture.
SHOWN_BY = {"LATENT": ("VAEDecode", "samples"), "MASK": ("MaskToImage", "mask"), "MODEL": ("KSampler", "model"),
            "CONDITIONING": ("KSampler", "positive"), "CLIP": ("CLIPTextEncode", "clip"), "VAE": ("VAEDecode", "vae"),
            "IMAGE": ("SaveImage", "images")}


def show(graph, known, key):
    """Adds what saves a picture of the node's first output."""
    for _ in range(6):
        info = known[graph[key]["class_type"]]
        if info.get("output_node"):
            return
        output = info["output"][0] if info["output"] else None
        shown = SHOWN_BY.get(output) or next(
            ((name, wanted) for name, other in sorted(known.items()) if name != graph[key]["class_type"]
             for wanted, (kind, _) in inputs_of(other).items() if isinstance(kind, str) and output in kind.split(",")), None)
        if shown is None:
            return
        follower = feed(graph, known, shown[0])
        graph[follower]["inputs"][shown[1]] = [key, 0]
        key = follower


KINDS = [Workflows(), Widgets()]
