"""What a notebook does with the package kosmograph: draws, cancels, catches errors, writes a graph, has threads, forks.

`mypy --strict` passes on it beside the stub of the node classes, and finds the mistakes that are marked (scripts/package-check).

notebook.py WORKFLOWS [PACK], for tests/tests/python_package.rs and scripts/package-check, which give the package and the
program. PACK has a node that crashes.
"""

import json
import os
import sys
import tempfile
import threading
from pathlib import Path

import kosmograph

text = Path(sys.argv[1]) / "text.json"

result = kosmograph.run(text, sets={"Sampler.steps": 2}, seed=3)
assert len(result.pictures) == 1 and result.pictures[0].path.stat().st_size > 1000, result
assert (result.pictures[0]._repr_png_() or b"")[1:4] == b"PNG"
again = kosmograph.run(text, sets={"Sampler.steps": 2}, seed=4)
assert again.executed < result.executed, "the model was read again"
assert again.pictures[0].path != result.pictures[0].path

# A graph, with its mistakes.
k = kosmograph.Graph()
image = k.EmptyImage(width=64, height=64, batch_size=1, color=255)
k.SaveImage(images=k.ImageInvert(image=image), filename_prefix="inverted")
with tempfile.TemporaryDirectory() as folder:
    k.save(os.path.join(folder, "graph.json"))
    assert len(kosmograph.run(os.path.join(folder, "graph.json")).pictures) == 1
    assert json.load(open(os.path.join(folder, "graph.json")))["2"]["inputs"]["image"] == ["1", 0]
for wrong, said in (
    (lambda: k.node_class("ImageInvertt"), 'did you mean "ImageInvert"'),
    (lambda: k.ImageInvert(picture=image), "has no input 'picture'"),  # type: ignore[call-arg]
    (lambda: k.ImageInvert(), "needs its input image (IMAGE)"),  # type: ignore[call-arg]
    (lambda: k.VAEDecode(samples=image, vae=image), "takes LATENT"),  # type: ignore[arg-type]
    (lambda: kosmograph.Graph().ImageInvert(image=image), "is of another graph"),
):
    try:
        wrong()
    except (AttributeError, TypeError, kosmograph.KosmographError) as error:
        assert said in str(error), error
    else:
        raise AssertionError("no error that has " + said)

assert len(list(model for model in k.CheckpointLoaderSimple(ckpt_name="tiny/sd"))) == 3

# Exceptions with node and input.
try:
    kosmograph.run(text, sets={"Sampler.steps": -5})
except kosmograph.Refused as refused:
    assert refused.node_class == "UNetSample" and refused.input == "steps", (refused, vars(refused))
else:
    raise AssertionError("it was not refused")
try:
    kosmograph.run("nowhere.json")
except FileNotFoundError:
    pass

# A cancel, from the events.
job = kosmograph.submit(text, sets={"Sampler.steps": 900}, seed=5)
waiting = kosmograph.submit(text, sets={"Sampler.steps": 901}, seed=5)
waiting.cancel()
steps = 0
for event in job.events():
    if event["event"] == "progress":
        steps += 1
        job.cancel()
assert 0 < steps < 100, steps
for cancelled in (job, waiting):
    try:
        cancelled.result(60)
    except kosmograph.Cancelled:
        pass
    else:
        raise AssertionError("it was not cancelled")

# Far more jobs than the process is given at once, of which one is cancelled while it waits.
many = [kosmograph.submit(k, seed=None) for _ in range(40)]
many[30].cancel()
assert many[30].done() and not many[39].done()
assert [len(job.result(60).pictures) for job in many if job is not many[30]] == [1] * 39

# Threads share the process.
made: list[kosmograph.Result] = []
runs = [
    threading.Thread(target=lambda seed=seed: made.append(kosmograph.run(text, sets={"Sampler.steps": 2}, seed=seed)))
    for seed in (6, 7, 8)
]
for thread in runs:
    thread.start()
for thread in runs:
    thread.join()
assert len({result.pictures[0].path for result in made}) == 3, made

# A process that was forked, while the parent's is at work, has one of its own, and leaves the parent's alone.
busy = kosmograph.submit(text, sets={"Sampler.steps": 100}, seed=9)
next(event for event in busy.events() if event["event"] == "progress")
child = os.fork()
if child == 0:
    code = 1
    try:
        code = 0 if kosmograph.run(k).pictures else 1
        kosmograph.close()
    finally:
        os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert result.pictures[0].path.exists() and busy.result(600).pictures and kosmograph.run(k).pictures

# A crash costs its job. So does the end of the whole program, and the next job has another.
if len(sys.argv) > 2:
    with kosmograph.Session(python_nodes=sys.argv[2]) as session:
        crash = {"1": {"class_type": "PyCrash", "inputs": {}}, "2": {"class_type": "PyShow", "inputs": {"value": ["1", 0]}}}
        try:
            session.run({**crash, **{"8": {"class_type": "EmptyImage", "inputs": {}}, "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}}}})
        except kosmograph.NodeFailed as failed:
            assert failed.node == "1" and "SIGSEGV" in str(failed), failed
            assert len(failed.result.pictures) == 1
        else:
            raise AssertionError("it did not fail")
        assert session.run(k).pictures
        job = session.submit(text, sets={"Sampler.steps": 900})
        next(event for event in job.events() if event["event"] == "progress")
        assert session._running is not None
        session._running.popen.kill()
        try:
            job.result(60)
        except kosmograph.KosmographError as lost:
            assert "the program ended with code -9" in str(lost), lost
        else:
            raise AssertionError("it was not lost")
        assert session.run(k).pictures

kosmograph.close()
assert not result.pictures[0].path.exists()
print("it draws, keeps its model, refuses, cancels, bears threads, forks and crashes")
