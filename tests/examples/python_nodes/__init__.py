"""A pack of nodes in Python that does right and wrong, for tests/tests/python_nodes.rs."""

import ctypes
import os
import sys
import time

import comfy.sd
import folder_paths
from comfy.model_management import InterruptProcessingException
from comfy.utils import ProgressBar
from server import PromptServer

NODE_CLASS_MAPPINGS = {}
NODE_DISPLAY_NAME_MAPPINGS = {"PyPlain": "Plain values"}
TEXT = {"required": {"text": ("STRING", {"default": "x", "multiline": True})}}


def node(name, function, inputs=TEXT, types=("STRING",), names=("text",), **more):
    attributes = dict(more, INPUT_TYPES=classmethod(lambda cls: inputs), RETURN_TYPES=types, RETURN_NAMES=names,
                      FUNCTION="work", CATEGORY="tests", work=function)
    NODE_CLASS_MAPPINGS[name] = type(name, (), attributes)


PLAIN = {"required": {"text": ("STRING", {"default": ""}), "count": ("INT", {"default": 99, "min": -10, "max": 10}),
                      "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}),
                      "ratio": ("FLOAT", {"default": 0.5}), "flag": ("BOOLEAN", {"default": False}), "choice": ([1, 2],)}}


def plain(self, **given):
    values = tuple(given[name] for name in ("text", "count", "seed", "ratio", "flag", "choice"))
    return values[:5] + (repr(values),)


node("PyPlain", plain, PLAIN, ("STRING", "INT", "INT", "FLOAT", "BOOLEAN", "STRING"), ())


def show(self, value):
    value = value if isinstance(value, str) and value[:1] in "({[" else repr(value)
    return {"ui": {"shown": [value], "odd": [float("nan")]}}


node("PyShow", show, {"required": {"value": ("*",)}}, (), (), OUTPUT_NODE=True)


def fails(self, text):
    raise ValueError("too much\nand a second line")


def sleeps(self, text):
    print("at work")
    time.sleep(1000)


def busy(self, text):
    print("at work")
    sum(range(10**14))  # one call, which hears of nothing


def forks(self, text):
    return ("child" if os.fork() == 0 else "parent",)


def prints(self, text):
    for _ in range(100_000):
        print("x" * 100)
    return (text,)


def interrupts(self, text):
    raise InterruptProcessingException()


node("PyRaise", fails)
node("PyCrash", lambda self, text: (ctypes.string_at(0),))
node("PySysExit", lambda self, text: sys.exit(3))
node("PyExit", lambda self, text: os._exit(3))
node("PyWrongType", lambda self, text: (5,))
node("PyNoTuple", lambda self, text: text)
node("PyTooFew", lambda self, text: ())
node("PyNothing", lambda self, text: None)
node("PySleep", sleeps)
node("PyBusy", busy)
node("PyNone", lambda self, text: (None,))
node("PyFork", forks)
node("PyPrint", prints)
node("PyInterrupts", interrupts)
node("PyComfy", lambda self, text: (comfy.sd.load_checkpoint_guess_config(text),))
node("PyRefuses", lambda self, text: (text,), VALIDATE_INPUTS=classmethod(lambda cls, text: text + " is not wanted"))


class Own:
    pass


node("PyMake", lambda self, text: (vars(Own()) and None or (text, Own()),), types=("OWN",), names=("own",))
node("PyTake", lambda self, own, after=None: ("%s of %s" % (own[0], vars(own[1])),),
     {"required": {"own": ("OWN",)}, "optional": {"after": ("STRING", {"forceInput": True})}})


class PyShim:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"file": (folder_paths.get_filename_list("checkpoints"),)},
                "hidden": {"id": "UNIQUE_ID", "prompt": "PROMPT", "png": "EXTRA_PNGINFO"}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("STRING",), "work", "tests"

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    def work(self, file, id, prompt, png):
        bar = ProgressBar(4)
        bar.update(2)
        PromptServer.instance.send_sync("tests", {})
        folder, name, counter, _, _ = folder_paths.get_save_image_path("python/a", folder_paths.get_temp_directory(), 8, 8)
        told = {"id": id, "classes": [node["class_type"] for node in prompt.values()],
                "name": "%s_%05d_.txt" % (name, counter), "path": folder_paths.get_full_path("checkpoints", file)}
        return (repr(told),)


NODE_CLASS_MAPPINGS["PyShim"] = PyShim

IMAGE = {"required": {"image": ("IMAGE",)}}


def spoilt(self, image):
    image[0, 0, 0, 0] = float("nan")  # in its own copy: what the host has stays
    return (image,)


def statistics(self, image):
    return ("(%s, %.5f)" % (list(image.shape), float(image.mean())),)


def others(self, image):
    return (image, image[0, :, :, 0], {"samples": image.reshape(1, 4, 8, -1), "noise_mask": image[:, :, :, 0]})


node("PyNaN", spoilt, IMAGE, ("IMAGE",), ("image",))
node("PyFlat", lambda self, image: (image[0, 0],), IMAGE, ("IMAGE",), ("image",))
node("PyChannels", lambda self, image: (image.reshape(2, 3, 8, 16),), IMAGE, ("IMAGE",), ("image",))
node("PyAll", statistics, IMAGE)
node("PyMaskAndLatent", others, IMAGE, ("IMAGE", "MASK", "LATENT"), ())

# ---- lists ----

node("PyList", lambda self, text: ([part for part in text.split(",") if part],), OUTPUT_IS_LIST=(True,))
node("PyOwnList", lambda self, text: ([(part, Own()) for part in text.split(",")],), types=("OWN",), names=("own",), OUTPUT_IS_LIST=(True,))
node("PyNoList", lambda self, text: (text,), OUTPUT_IS_LIST=(True,))
node("PyWrongList", lambda self, text: ([1, -(2**63) - 1],), types=("INT",), names=("count",), OUTPUT_IS_LIST=(True,))
node("PyTwoLists", lambda self, text: ([text],), types=("STRING", "STRING"), names=("a", "b"), OUTPUT_IS_LIST=(True, True))
node("PyAnyOf", lambda self, text, **more: (repr((text, sorted(more.items()))),))
LINK = ("STRING", {"forceInput": True})
node("PyPair", lambda self, one, other, end="": (one + other + end,), {"required": {"one": LINK, "other": LINK}, "optional": {"end": ("STRING",)}})
node("PyAllOf", lambda self, **given: (repr(sorted(given.items())),),
     {"required": {"value": ("*",), "seed": ("INT", {"default": 2**64 - 1, "max": 2**64 - 1}), "choice": ([1, 2],)},
      "optional": {"other": ("STRING", {"forceInput": True})}, "hidden": {"id": "UNIQUE_ID"}}, INPUT_IS_LIST=True)

# ---- questions before the run ----


def changed(cls, text, link=None):
    kind, _, rest = text.partition(":")
    if kind == "file":
        with open(rest) as file:
            return file.read()
    if kind == "nan":
        return float("nan")
    if kind == "object":
        return object()
    if kind == "raise":
        raise ValueError("no idea")
    if kind == "hang":
        time.sleep(1000)
    if kind == "busy":
        sum(range(10**14))
    if kind == "crash":
        ctypes.string_at(0)
    return {"same": [1, "x", {"link": link}]}


node("PyChanged", lambda self, text, link=None: (text,), {"required": {"text": ("STRING",)}, "optional": {"link": LINK}},
     IS_CHANGED=classmethod(changed))


def valid(cls, text, choice, number, link, input_types):
    if text == "raise":
        raise ValueError("no idea")
    if text == "crash":
        os._exit(9)
    if text == "told":
        return repr((choice, number, link, sorted(input_types.items())))
    return {"nothing": None, "five": 5, "no": False, "list": ["a"]}.get(text, True)


node("PyValid", lambda self, text, choice, number, link: (text + choice,),
     {"required": {"text": ("STRING",), "choice": (["a", "b"],), "number": ("INT", {"max": 5}), "link": ("IMAGE",)}},
     VALIDATE_INPUTS=classmethod(valid))
node("PyPass", lambda self, value, text="": (value,), {"required": {"value": ("*",)}, "optional": {"text": ("STRING",)}}, ("*",), ("value",))
node("PyUses", lambda self, value: (repr(value) + value.name,), {"required": {"value": ("*",)}})
node("PyLatentKeys", lambda self, image: (dict(samples=image.reshape(1, 4, 8, -1), kind="x", sizes=[1, [2.5]], own=Own()),), IMAGE, ("LATENT",), ("latent",))
node("PyLatentShow", lambda self, latent: (repr(sorted((key, value if key in ("kind", "sizes") else type(value).__name__) for key, value in latent.items())),),
     {"required": {"latent": ("LATENT",)}})

# ---- lazy inputs ----

LAZY = {"required": {"switch": ("BOOLEAN", {"default": False}), "no": ("*", {"lazy": True}), "yes": ("*", {"lazy": True})},
        "optional": {"extra": ("STRING", {"forceInput": True, "lazy": True})}}


def needs(self, switch, no, yes, extra="absent"):
    name, value = ("yes", yes) if switch else ("no", no)
    if value == "more":
        return ["extra", "nothing of the kind", 5]
    if value == "raise":
        raise ValueError("no idea")
    return [name] if value is None else None


def picks(self, switch, no, yes, extra="absent"):
    return (repr((no, yes, extra)),)


node("PyLazy", picks, LAZY, check_lazy_status=needs)
node("PyLazyNever", picks, LAZY)
