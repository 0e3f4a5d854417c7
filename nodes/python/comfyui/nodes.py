"""The nodes: pure Python, on the package kosmograph."""

import json
import os
import tempfile

import kosmograph


def workflows():
    """The names of the workflows that come with the package, or lie where KOSMOGRAPH_WORKFLOWS says."""
    folder = os.environ.get("KOSMOGRAPH_WORKFLOWS") or os.path.join(os.path.dirname(kosmograph.__file__), "_bundle", "workflows")
    if not os.path.isdir(folder):
        return folder, []
    return folder, sorted(name for name in os.listdir(folder) if name.endswith(".json"))


def saved(image, folder, name):
    """The first picture of an IMAGE as a PNG; its path."""
    import numpy
    from PIL import Image

    array = numpy.asarray(image[0].cpu() if hasattr(image[0], "cpu") else image[0])
    path = os.path.join(folder, name + ".png")
    Image.fromarray((array.clip(0.0, 1.0) * 255.0 + 0.5).astype("uint8")).save(path)
    return path


def image_of(result):
    """An IMAGE of all pictures that have the size of the first."""
    if not result.pictures:
        raise RuntimeError("the workflow made no picture")
    try:
        import torch

        tensors = [picture.torch()[..., :3] for picture in result.pictures]
        return torch.cat([tensor for tensor in tensors if tensor.shape == tensors[0].shape])
    except ImportError:
        import numpy

        arrays = [picture.numpy()[None, ..., :3].astype("float32") / 255.0 for picture in result.pictures]
        return numpy.concatenate([array for array in arrays if array.shape == arrays[0].shape])


def run(workflow, sets, seed):
    """Runs it, shows its progress in ComfyUI's bar, and hears of ComfyUI's cancel."""
    from comfy.model_management import throw_exception_if_processing_interrupted
    from comfy.utils import ProgressBar

    job = kosmograph.submit(workflow, sets=sets, seed=seed)
    bar = None
    try:
        for event in job.events():
            if event["event"] == "progress":
                bar = bar or ProgressBar(event["steps"])
                bar.update_absolute(event["step"], event["steps"])
            throw_exception_if_processing_interrupted()
    except BaseException:
        job.cancel()
        raise
    return job.result()


class KosmographWorkflow:
    """A saved workflow of either format, as one node."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "workflow": (workflows()[1] or ["none was found"], {"tooltip": "a workflow that comes with Kosmograph"}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}),
                "sets": ("STRING", {"default": "", "multiline": True, "tooltip": "a line each: NODE.INPUT=VALUE; NODE is an id, a title or a class"}),
            },
            "optional": {
                "image": ("IMAGE",),
                "image_input": ("STRING", {"default": "Subject.image", "tooltip": "where the picture goes: NODE.INPUT"}),
                "path": ("STRING", {"default": "", "tooltip": "a workflow's file, instead"}),
            },
        }

    RETURN_TYPES, RETURN_NAMES = ("IMAGE",), ("images",)
    FUNCTION, CATEGORY = "work", "kosmograph"

    def work(self, workflow, seed, sets, image=None, image_input="Subject.image", path=""):
        given = {}
        for line in filter(None, (line.strip() for line in sets.splitlines())):
            place, is_set, value = line.partition("=")
            if not is_set:
                raise ValueError("sets: %r is not NODE.INPUT=VALUE" % line)
            given[place] = value
        with tempfile.TemporaryDirectory() as folder:
            if image is not None:
                given[image_input] = saved(image, folder, "image")
            return (image_of(run(path or os.path.join(workflows()[0], workflow), given, seed)),)


class KosmosGSubject:
    """Kosmos-G: <i> in the text stands for the picture, and with two of them for each in its turn."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image": ("IMAGE",),
                "text": ("STRING", {"default": "<i> on the beach", "multiline": True}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 1000}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}),
            },
            "optional": {
                "image_2": ("IMAGE",),
                "checkpoint": ("STRING", {"default": "", "tooltip": "its name; the small model's where it is empty"}),
                "kosmos": ("STRING", {"default": "", "tooltip": "the name of Kosmos-G's model"}),
            },
        }

    RETURN_TYPES, RETURN_NAMES = ("IMAGE",), ("images",)
    FUNCTION, CATEGORY = "work", "kosmograph"

    def work(self, image, text, steps, seed, image_2=None, checkpoint="", kosmos=""):
        name = "subject.json" if image_2 is None else "two_subjects.json"
        sets = {"Prompt.text": text, "Sampler.steps": steps}
        if checkpoint:
            sets["Checkpoint.ckpt_name"] = checkpoint
        if kosmos:
            sets["Kosmos-G.kosmos_name"] = kosmos
        with tempfile.TemporaryDirectory() as folder:
            if image_2 is None:
                sets["Subject.image"] = saved(image, folder, "image")
            else:
                sets["First subject.image"] = saved(image, folder, "image")
                sets["Second subject.image"] = saved(image_2, folder, "image_2")
            with open(os.path.join(workflows()[0], name), encoding="utf-8") as file:
                return (image_of(run(json.load(file), sets, seed)),)


NODE_CLASS_MAPPINGS = {"KosmographWorkflow": KosmographWorkflow, "KosmosGSubject": KosmosGSubject}
NODE_DISPLAY_NAME_MAPPINGS = {"KosmographWorkflow": "Kosmograph workflow", "KosmosGSubject": "Kosmos-G subject"}
