"""Pictures that cross in memory between Python and the package's program: notebook_pictures.py WORKFLOWS, for
tests/tests/python_package.rs. Needs numpy and Pillow; torch where it is.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import kosmograph
import numpy
from PIL import Image

workflows = Path(sys.argv[1])
subject = json.loads((workflows / "subject.json").read_text())
file = workflows / "input" / "monster-1.png"
few = {"Sampler.steps": 2}
shared = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


def refused(said, node=None, input=None, **given):
    try:
        kosmograph.run(subject, **{"sets": few, "seed": 3, **given})
    except (kosmograph.Refused, TypeError) as error:
        assert said in str(error), error
        assert node is None or (error.node_class, error.input) == (node, input), vars(error)
    else:
        raise AssertionError("it was not refused: " + said)


# What came of a file and what was computed are one picture, but for what bytes cut off.
drawn = kosmograph.run(subject, sets=dict(few, **{"Subject.image": str(file)}), seed=3)
(picture,) = drawn.pictures
array = picture.numpy()
assert picture.in_memory and array.dtype == numpy.float32 and array.shape == (*reversed(picture.pil().size), 3)
assert numpy.abs(array.clip(0, 1) * 255 - numpy.asarray(picture.pil())).max() < 1 + 1e-3  # SaveImage cuts off, as ComfyUI
assert len(numpy.unique(array)) > 256, "these are bytes"
(tensor,) = drawn.tensors[picture.node]
assert tensor.shape == (1, *array.shape) and tensor.input == "images"
array[0, 0, 0] = 0.5  # it is this process's own

# A workflow's own folder has its pictures, as for `kosmograph run`.
beside = kosmograph.run(workflows / "subject.json", sets=few, seed=3)
assert numpy.array_equal(beside.pictures[0].numpy()[1:], array[1:])

# A picture of this process in the place of the file: the same picture comes of it, whatever it is held in.
bytes_of = numpy.asarray(Image.open(file).convert("RGB"))
ways = [bytes_of, bytes_of[None].astype("float64") / 255.0, Image.open(file).convert("RGB"), numpy.asfortranarray(bytes_of)]
try:
    import torch

    ways += [torch.from_numpy(bytes_of.copy()), (torch.from_numpy(bytes_of.copy()) / 255.0).permute(2, 0, 1).contiguous().permute(1, 2, 0)]
except ImportError:
    torch = None
for way in ways:
    again = kosmograph.run(subject, inputs={"Subject": way}, sets=few, seed=3)
    assert numpy.array_equal(again.pictures[0].numpy()[1:], array[1:]), type(way)
assert again.executed < drawn.executed - 1, "equal pictures are computed with once: %r" % again
other = kosmograph.run(subject, inputs={"Subject": 255 - bytes_of}, sets=few, seed=3)
assert not numpy.array_equal(other.pictures[0].numpy(), array)
if torch is not None:
    assert torch.equal(other.pictures[0].torch()[0], torch.from_numpy(other.pictures[0].numpy()))

# At an input, and a batch; masks; transparency.
k = kosmograph.Graph()
noise = numpy.random.default_rng(1).random((3, 20, 30, 3), dtype=numpy.float32)
blank = k.EmptyImage(width=30, height=20)
k.SaveImage(images=k.ImageInvert(image=blank), filename_prefix="batch")
batch = kosmograph.run(k, inputs={"ImageInvert.image": noise})
assert [picture.in_memory for picture in batch.pictures] == [True] * 3
assert numpy.array_equal(batch.tensors["3"][0].numpy(), 1 - noise)
assert numpy.array_equal(batch.pictures[2].numpy(), 1 - noise[2])
k = kosmograph.Graph()
image, mask = k.LoadImage(image="nowhere.png")
k.SaveImage(images=k.MaskToImage(mask=mask), filename_prefix="mask")
k.SaveImage(images=image, filename_prefix="image")
seen = numpy.concatenate([noise[0], noise[1, :, :, :1]], axis=2)
both = kosmograph.run(k, inputs={"LoadImage": seen})
shown = {picture.path.name.split("_")[0]: picture.numpy() for picture in both.pictures}
assert numpy.array_equal(shown["image"], noise[0]) and numpy.allclose(shown["mask"][..., 0], 1 - seen[..., 3], atol=1e-6)
k = kosmograph.Graph()
k.SaveImage(images=k.MaskToImage(mask=k.InvertMask(mask=k.SolidMask(value=0.0, width=8, height=8))), filename_prefix="mask")
given = kosmograph.run(k, inputs={"InvertMask.mask": noise[0, :, :, 0]})
assert numpy.allclose(given.pictures[0].numpy()[..., 0], 1 - noise[0, :, :, 0], atol=1e-6)

# An animation is one file of many pictures: the numbers are there, the file has none of its own.
k = kosmograph.Graph()
k.SaveAnimatedWEBP(images=k.ImageInvert(image=k.EmptyImage(width=30, height=20)))
moving = kosmograph.run(k, inputs={"ImageInvert.image": noise})
assert [picture.in_memory for picture in moving.pictures] == [False] and moving.tensors["3"][0].shape == noise.shape

# What is no picture, or no place for one.
nan = bytes_of / 255.0
nan[3, 3, 1] = numpy.nan
refused("1 of the %d numbers that are given are not finite" % nan.size, "LoadImage", None, inputs={"Subject": nan})
refused("1, 3 or 4 channels, which come last", "LoadImage", None, inputs={"Subject": bytes_of.transpose(2, 0, 1)})
refused("floats go from 0 to 1", "LoadImage", None, inputs={"Subject": bytes_of.astype("float32")})
refused("it takes a file; give the picture", "LoadImage", "image", inputs={"Subject.image": bytes_of})
refused("it takes MODEL, and no picture", "UNetSample", "model", inputs={"Sampler.model": bytes_of})
refused("this one gives MODEL, CLIP, VAE", "CheckpointLoaderSimple", None, inputs={"Checkpoint": bytes_of})
refused('inputs["Subject"] is an array of int64', inputs={"Subject": bytes_of.astype("int64")})
refused('inputs["Subject"] is a list', inputs={"Subject": [1, 2]})
refused('inputs["Subject"] is a picture of mode I;16', inputs={"Subject": Image.new("I;16", (8, 8))})
refused('sets["Subject.image"] is a ndarray', sets={"Subject.image": bytes_of})
refused('did you mean "Subject"', inputs={"Subjec.image": bytes_of})
refused('inputs["Subjec"]: no node has the id, title or class "Subjec"; did you mean "Subject"', inputs={"Subjec": bytes_of})

# Bars, where tqdm is.
try:
    import tqdm
except ImportError:
    pass
else:
    words = io.StringIO()
    with contextlib.redirect_stderr(words):
        kosmograph.run(workflows / "text.json", sets={"Sampler.steps": 3}, seed=10, progress=True)
    assert "Sampler: 100%" in words.getvalue() and "Save: 100%" in words.getvalue(), words.getvalue()

# The memory stays when the program goes, in either way, and nothing of it has a name.
kept = kosmograph.run(subject, inputs={"Subject": bytes_of}, sets=few, seed=4)
before = kept.pictures[0].numpy().copy()
session = kosmograph._session.default()
session._running.popen.kill()
session._running.popen.wait()
assert numpy.array_equal(kept.pictures[0].numpy(), before)
kosmograph.close()
assert numpy.array_equal(kept.pictures[0].numpy(), before) and not kept.pictures[0].path.exists()
assert not os.path.isdir("/dev/shm") or not [name for name in set(os.listdir("/dev/shm")) - shared if "kosmograph" in name]
descriptors = [os.readlink("/proc/self/fd/" + fd) for fd in os.listdir("/proc/self/fd") if os.path.islink("/proc/self/fd/" + fd)]
assert not [target for target in descriptors if "memfd:kosmograph" in target], descriptors
print("pictures cross in memory")
