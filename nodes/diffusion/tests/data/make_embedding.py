"""Writes embedding.pt, a textual inversion as A1111 saves it with torch.save: two vectors of four numbers under string_to_param.

    python nodes/diffusion/tests/data/make_embedding.py

Only the standard library is used: stand-ins with torch's names give the pickle that torch writes.
"""

import io
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
sys.modules.update({"torch": torch, "torch._utils": utils})


class FloatStorage:
    pass


def _rebuild_tensor_v2(*_):
    pass


def _rebuild_parameter(*_):
    pass


for module, thing in [(torch, FloatStorage), (utils, _rebuild_tensor_v2), (utils, _rebuild_parameter)]:
    thing.__module__, thing.__qualname__ = module.__name__, thing.__name__
    setattr(module, thing.__name__, thing)


class Storage:
    pass


class Tensor:
    def __reduce__(self):
        return utils._rebuild_tensor_v2, (Storage(), 0, (2, 4), (4, 1), False, {})


class Parameter:
    def __reduce__(self):
        return utils._rebuild_parameter, (Tensor(), True, {})


class Pickler(pickle.Pickler):
    def persistent_id(self, thing):
        return ("storage", FloatStorage, "0", "cpu", 8) if isinstance(thing, Storage) else None


data = io.BytesIO()
embedding = {"string_to_token": {"*": 265}, "string_to_param": {"*": Parameter()}, "name": "moody", "step": 499,
             "sd_checkpoint": None, "sd_checkpoint_name": None}
Pickler(data, protocol=2).dump(embedding)
with zipfile.ZipFile(Path(__file__).parent / "embedding.pt", "w") as archive:
    member = lambda name: zipfile.ZipInfo(f"embedding/{name}", (1980, 1, 1, 0, 0, 0))
    archive.writestr(member("data.pkl"), data.getvalue())
    archive.writestr(member("data/0"), struct.pack("<8f", *(i / 4 for i in range(8))))
    archive.writestr(member("version"), b"3\n")
