import json
import os
import sys
import urllib.request

sys.path.pop(0)
from comfy_script.runtime import Workflow, load  # noqa: E402

load(os.environ["SERVER"])
from comfy_script.runtime import nodes  # noqa: E402

graph = json.load(open(os.environ["WORKFLOW"]))
seed = next(node["inputs"]["seed"] for node in graph.values() if "seed" in node["inputs"])
with Workflow(wait=True):
    model, clip, vae = nodes.CheckpointLoaderSimple("tiny/sd")
    good, bad = nodes.CLIPTextEncode("a cat", clip), nodes.CLIPTextEncode("", clip)
    latent = nodes.KSampler(model, seed, 2, 7.0, "euler", "normal", good, bad, nodes.EmptyLatentImage(64, 64, 1), 1.0)
    saved = nodes.SaveImage(nodes.VAEDecode(latent, vae), "script")
saved.wait()
ids = json.load(urllib.request.urlopen(os.environ["SERVER"] + "/history?max_items=1"))
output = next(iter(next(iter(ids.values()))["outputs"].values()))["images"][0]
picture = urllib.request.urlopen(f"{os.environ['SERVER']}/view?filename={output['filename']}")
open(os.environ["RESULT"], "wb").write(picture.read())
