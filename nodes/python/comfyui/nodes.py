"""The nodes: pure Python, on the package kosmograph."""

import os

import kosmograph


def workflows():
    """The names of the workflows that come with the package, or lie where KOSMOGRAPH_WORKFLOWS says."""
    folder = os.environ.get("KOSMOGRAPH_WORKFLOWS") or os.path.join(os.path.dirname(kosmograph.__file__), "_bundle", "workflows")
    if not os.path.isdir(folder):
        return folder, []
    return folder, sorted(name for name in os.listdir(folder) if name.endswith(".json"))


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

        arrays = [picture.numpy()[None, ..., :3] for picture in result.pictures]
        return numpy.concatenate([array for array in arrays if array.shape == arrays[0].shape])


def run(workflow, inputs, sets, seed):
    """Runs it, shows its progress in ComfyUI's bar, and hears of ComfyUI's cancel. Pictures go and come in memory."""
    from comfy.model_management import throw_exception_if_processing_interrupted
    from comfy.utils import ProgressBar

    job = kosmograph.submit(workflow, inputs=inputs, sets=sets, seed=seed)
    bar = None
    try:
        while True:
            # Not only when something happens: a model that is read says nothing.
            event = job.next_event(0.1)
            if event is None and job.done():
                break
            if event and event["event"] == "progress":
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
                "image_input": ("STRING", {"default": "Subject", "tooltip": "where the picture goes: a node that loads one, or NODE.INPUT"}),
                "path": ("STRING", {"default": "", "tooltip": "a workflow's file, instead"}),
            },
        }

    RETURN_TYPES, RETURN_NAMES = ("IMAGE",), ("images",)
    FUNCTION, CATEGORY = "work", "kosmograph"

    def work(self, workflow, seed, sets, image=None, image_input="Subject", path=""):
        given = {}
        for line in filter(None, (line.strip() for line in sets.splitlines())):
            place, is_set, value = line.partition("=")
            if not is_set:
                raise ValueError("sets: %r is not NODE.INPUT=VALUE" % line)
            given[place] = value
        inputs = {image_input: image} if image is not None else {}
        return (image_of(run(path or os.path.join(workflows()[0], workflow), inputs, given, seed)),)


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
        if image_2 is None:
            inputs = {"Subject": image[:1]}
        else:
            inputs = {"First subject": image[:1], "Second subject": image_2[:1]}
        return (image_of(run(os.path.join(workflows()[0], name), inputs, sets, seed)),)


NODE_CLASS_MAPPINGS = {"KosmographWorkflow": KosmographWorkflow, "KosmosGSubject": KosmosGSubject}
NODE_DISPLAY_NAME_MAPPINGS = {"KosmographWorkflow": "Kosmograph workflow", "KosmosGSubject": "Kosmos-G subject"}
