"""A stand-in of ComfyUI's loader, which is not here: it imports a pack as ComfyUI does, offers the two modules that the
pack asks for, and calls its nodes with their defaults.

comfyui_loader.py PACK PICTURE, for tests/tests/python_package.rs. Needs numpy and Pillow; torch where it is.
"""

import importlib.util
import os
import sys
import types

import numpy
from PIL import Image

steps = []
comfy, utils, management = (types.ModuleType(name) for name in ("comfy", "comfy.utils", "comfy.model_management"))


class ProgressBar:
    def __init__(self, total):
        self.total = total

    def update_absolute(self, value, total=None, preview=None):
        steps.append((value, total))


utils.ProgressBar = ProgressBar
management.throw_exception_if_processing_interrupted = lambda: None
sys.modules.update({"comfy": comfy, "comfy.utils": utils, "comfy.model_management": management})

pack = sys.argv[1]
spec = importlib.util.spec_from_file_location("custom_nodes_pack", os.path.join(pack, "__init__.py"), submodule_search_locations=[pack])
module = importlib.util.module_from_spec(spec)
sys.modules["custom_nodes_pack"] = module
spec.loader.exec_module(module)

image = numpy.asarray(Image.open(sys.argv[2]).convert("RGB")).astype("float32")[None] / 255.0
try:
    import torch

    image = torch.from_numpy(image)
except ImportError:
    pass


def call(name, **given):
    node = module.NODE_CLASS_MAPPINGS[name]
    inputs = node.INPUT_TYPES()
    values = {}
    for key, what in {**inputs["required"], **inputs.get("optional", {})}.items():
        options = what[1] if len(what) > 1 else {}
        default = what[0][0] if isinstance(what[0], list) else options.get("default")
        if key in given or default is not None:
            values[key] = given.get(key, default)
    (result,) = getattr(node(), node.FUNCTION)(**values)
    assert len(result.shape) == 4 and result.shape[3] == 3 and 0.0 <= float(result.min()) < float(result.max()) <= 1.0, result.shape
    return result


assert set(module.NODE_CLASS_MAPPINGS) == set(module.NODE_DISPLAY_NAME_MAPPINGS)
call("KosmosGSubject", image=image, steps=2)
call("KosmosGSubject", image=image, image_2=image, text="<i> and <i>", steps=2)
call("KosmographWorkflow", workflow="subject.json", image=image, sets="Sampler.steps=2")
assert (2, 2) in steps, steps
print("the stand-in of ComfyUI's loader called every node")
