"""One part of a picture by OpenVINO on the CPU, in f32 or with the hint bf16, on random weights: peers.py runs this in another Python.

PyTorch's network is converted once, by another process, and kept as a file (weights and all), so that what this one
holds is what a user of OpenVINO would. Prints what torch_part.py prints.
"""

import json
import pathlib
import resource
import subprocess
import sys
import time

part, latent, batch, threads, repeat, folder = sys.argv[1], *map(int, sys.argv[2:6]), pathlib.Path(sys.argv[6])
precision = sys.argv[7]
model = folder / f"{part}-{latent}-{batch}.xml"


def convert():
    import openvino
    import torch
    from networks import BUILDERS

    torch.manual_seed(0)
    network, inputs = BUILDERS[part](latent, batch)
    with torch.no_grad():
        converted = openvino.convert_model(network, example_input=inputs)
    for port, example in zip(converted.inputs, inputs):
        port.get_node().set_partial_shape(openvino.PartialShape(list(example.shape)))
    converted.validate_nodes_and_infer_types()
    folder.mkdir(parents=True, exist_ok=True)
    openvino.save_model(converted, model, compress_to_fp16=False)


def measure():
    import numpy
    import openvino

    # Left to itself it would compute in bf16 where the processor can: the others do as they are told.
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    generator = numpy.random.default_rng(0)
    inputs = []
    for port in compiled.inputs:
        kind = port.element_type.to_dtype()
        whole = numpy.issubdtype(kind, numpy.integer)
        inputs.append(numpy.full(port.shape, 500, kind) if whole else generator.standard_normal(port.shape).astype(kind))
    request = compiled.create_infer_request()
    request.infer(inputs, share_inputs=True, share_outputs=True)
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        request.infer(inputs, share_inputs=True, share_outputs=True)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"seconds": seconds, "peak_gb": peak}))


if len(sys.argv) > 8:
    convert()
else:
    if not model.exists():
        subprocess.run([sys.executable, *sys.argv, "convert"], check=True)
    measure()
