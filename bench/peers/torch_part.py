"""One part of a picture in PyTorch on random weights: peers.py runs this in another Python, ../gpu/run.py on a GPU.

Prints the seconds of each call after one that warms up, and the largest resident size. On a GPU in f16, channels_last,
"eager" or "compiled"; on the CPU in f32 or "bf16".
"""

import json
import resource
import sys
import time

import torch
from networks import BUILDERS

part, latent, batch, threads, repeat = sys.argv[1], *map(int, sys.argv[2:6])
device, mode = sys.argv[6:8] if len(sys.argv) > 6 else ("cpu", "eager")
torch.set_num_threads(threads)
torch.manual_seed(0)
network, inputs = BUILDERS[part](latent, batch)
if mode == "bf16":
    network = network.to(torch.bfloat16)
    inputs = [x.to(torch.bfloat16) if x.is_floating_point() else x for x in inputs]
if device != "cpu":
    network = network.to(device, torch.float16, memory_format=torch.channels_last)
    inputs = [x.to(device, torch.float16 if x.is_floating_point() else None) for x in inputs]
    if mode == "compiled":
        network = torch.compile(network)

with torch.no_grad():
    network(*inputs)
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        network(*inputs)
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(json.dumps({"seconds": seconds, "peak_gb": peak}))
