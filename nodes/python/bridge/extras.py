"""More of ComfyUI's modules than every pack needs: what many import beyond folder_paths and a bar of progress."""

import enum
import os

TYPE_NAMES = (
    "STRING IMAGE MASK LATENT BOOLEAN INT FLOAT COMBO CONDITIONING SAMPLER SIGMAS GUIDER NOISE CLIP CONTROL_NET VAE MODEL LORA_MODEL "
    "LOSS_MAP STYLE_MODEL CLIP_VISION CLIP_VISION_OUTPUT GLIGEN AUDIO WEBCAM POINT FACE_ANALYSIS BBOX SEGS VIDEO UPSCALE_MODEL"
).split()


def install(shim, unavailable):
    """`shim` makes modules; `unavailable` is what is raised where something is not here."""
    typing = shim.package("comfy.comfy_types")
    of_nodes = shim.package("comfy.comfy_types.node_typing")
    for module in (typing, of_nodes):
        module.IO, module.ComfyNodeABC, module.CheckLazyMixin = IO, ComfyNodeABC, CheckLazyMixin
        module.InputTypeDict = module.InputTypeOptions = module.HiddenInputTypeDict = module.FileLocator = dict
    helpers = shim.package("node_helpers")
    helpers.pillow, helpers.image_alpha_fix, helpers.hasher = pillow, image_alpha_fix, hasher
    import comfy.utils

    for one in (lanczos, bislerp, get_attr, set_attr, state_dict_prefix_replace, save_torch_file):
        setattr(comfy.utils, one.__name__, one)
    shim.package("comfy_extras")
    masks = shim.package("comfy_extras.nodes_mask")
    masks.composite = composite
    latents = shim.package("comfy_extras.nodes_latent")
    latents.LatentBatch = LatentBatch
    import nodes

    for name in CORE:
        setattr(nodes, name, core(name, unavailable))
    nodes.ImageBatch, nodes.ImageInvert, nodes.LoadImage, nodes.LoadImageMask = ImageBatch, ImageInvert, LoadImage, LoadImageMask


class IO(str, enum.Enum):
    """The types' names."""

    ANY = "*"
    NUMBER = "FLOAT,INT"
    PRIMITIVE = "STRING,FLOAT,INT,BOOLEAN"
    _ignore_ = ["one"]
    for one in TYPE_NAMES:
        vars()[one] = one

    def __str__(self):
        return self.value


class ComfyNodeABC:
    DESCRIPTION = CATEGORY = ""
    INPUT_IS_LIST = OUTPUT_NODE = EXPERIMENTAL = DEPRECATED = False


class CheckLazyMixin:
    def check_lazy_status(self, **named):
        return [name for name, value in named.items() if value is None]


# ---- node_helpers ----


def pillow(open_it, given):
    """`open_it(given)`; what is cut short is read as far as it goes."""
    try:
        return open_it(given)
    except (OSError, SyntaxError, ValueError):
        from PIL import ImageFile

        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
        try:
            return open_it(given)
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def image_alpha_fix(destination, source):
    """Both with as many channels: what is missing is opaque, what is too much is left away."""
    import torch

    wanted, there = destination.shape[-1], source.shape[-1]
    if there > wanted:
        return destination, source[..., :wanted]
    if wanted > there:
        opaque = torch.ones(source.shape[:-1] + (wanted - there,), dtype=source.dtype, device=source.device)
        return destination, torch.cat([source, opaque], dim=-1)
    return destination, source


def hasher():
    import hashlib

    return hashlib.sha256


# ---- comfy.utils ----


def lanczos(samples, width, height):
    import comfy.utils

    return comfy.utils.common_upscale(samples, width, height, "lanczos", "disabled")


def bislerp(samples, width, height):
    """[B, C, H, W] at another size: channels are a vector, whose direction goes along the sphere between two neighbours, and
    whose length linearly; along one axis and then along the other."""
    import torch

    def between(one, other, at):
        """[B, C, N] and [B, C, N], `at` [N] in 0..1."""
        lengths = [part.norm(dim=1, keepdim=True) for part in (one, other)]
        units = [part / length.clamp(min=1e-12) for part, length in zip((one, other), lengths)]
        cosine = (units[0] * units[1]).sum(1, keepdim=True).clamp(-1, 1)
        angle = torch.acos(cosine)
        sine = torch.sin(angle)
        on_sphere = (torch.sin((1 - at) * angle) * units[0] + torch.sin(at * angle) * units[1]) / sine.clamp(min=1e-12)
        # The same direction, or opposite ones, between which there is no shortest way.
        straight = (1 - at) * units[0] + at * units[1]
        direction = torch.where(sine < 1e-5, straight, on_sphere)
        return direction * ((1 - at) * lengths[0] + at * lengths[1])

    def along(values, length):
        """The last axis of [B, C, H, W] at another length."""
        there = values.shape[-1]
        place = ((torch.arange(length, dtype=torch.float32) + 0.5) * there / length - 0.5).clamp(0, there - 1)
        low = place.floor().long()
        high = (low + 1).clamp(max=there - 1)
        return between(values[..., low], values[..., high], place - low)

    kind, values = samples.dtype, samples.float()
    values = along(values, width)
    return along(values.transpose(-1, -2), height).transpose(-1, -2).contiguous().to(kind)


def get_attr(of, path):
    for name in path.split("."):
        of = getattr(of, name)
    return of


def set_attr(of, path, value):
    *above, last = path.split(".")
    of = get_attr(of, ".".join(above)) if above else of
    before = getattr(of, last)
    setattr(of, last, value)
    return before


def state_dict_prefix_replace(state, prefixes, filter_keys=False):
    """The weights with other beginnings of their names; those that have none of them only without `filter_keys`."""
    out = {} if filter_keys else state
    for old, new in prefixes.items():
        for key in [key for key in state if key.startswith(old)]:
            out[new + key[len(old) :]] = state.pop(key)
    return out


def save_torch_file(state, path, metadata=None):
    from safetensors.torch import save_file

    save_file(state, path, **({"metadata": metadata} if metadata is not None else {}))


# ---- comfy_extras ----


def composite(destination, source, x, y, mask=None, multiplier=8, resize_source=False):
    """`source` [B, C, h, w] put on `destination` [B, C, H, W] with its upper left corner at (x, y), as far as it is inside; places
    are multiples of `multiplier` cells' pixels. Where `mask` is 0 the destination shows through."""
    import comfy.utils
    import torch

    functional = torch.nn.functional
    source = source.to(destination.device)
    if resize_source:
        source = functional.interpolate(source, size=tuple(destination.shape[-2:]), mode="bilinear")
    source = comfy.utils.repeat_to_batch_size(source, destination.shape[0])
    x = max(-source.shape[-1] * multiplier, min(x, destination.shape[-1] * multiplier)) // multiplier
    y = max(-source.shape[-2] * multiplier, min(y, destination.shape[-2] * multiplier)) // multiplier
    if mask is None:
        mask = torch.ones_like(source[:, :1])
    else:
        mask = mask.to(destination.device, copy=True).reshape((-1, 1) + tuple(mask.shape[-2:]))
        mask = functional.interpolate(mask, size=tuple(source.shape[-2:]), mode="bilinear")
        mask = comfy.utils.repeat_to_batch_size(mask, source.shape[0])
    top, left = max(0, y), max(0, x)
    bottom, right = min(destination.shape[-2], y + source.shape[-2]), min(destination.shape[-1], x + source.shape[-1])
    if bottom > top and right > left:
        part = (slice(top - y, bottom - y), slice(left - x, right - x))
        there = destination[..., top:bottom, left:right]
        share = mask[(Ellipsis,) + part]
        destination[..., top:bottom, left:right] = share * source[(Ellipsis,) + part] + (1 - share) * there
    return destination


class LatentBatch:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples1": ("LATENT",), "samples2": ("LATENT",)}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "batch", "latent/batch"

    def batch(self, samples1, samples2):
        import comfy.utils
        import torch

        one, other = samples1["samples"], samples2["samples"]
        if one.shape[1:] != other.shape[1:]:
            other = comfy.utils.common_upscale(other, one.shape[3], one.shape[2], "bilinear", "center")
        numbers = [latent.get("batch_index", list(range(len(latent["samples"])))) for latent in (samples1, samples2)]
        return (dict(samples1, samples=torch.cat((one, other)), batch_index=numbers[0] + numbers[1]),)


# ---- nodes ----

# Of ComfyUI's own nodes that packs build on: what they take and give, and their method, which only ComfyUI has.
CORE = {
    "CheckpointLoaderSimple": ("ckpt_name:COMBO", "MODEL CLIP VAE", "load_checkpoint"),
    "LoraLoader": ("model:MODEL clip:CLIP lora_name:COMBO strength_model:FLOAT strength_clip:FLOAT", "MODEL CLIP", "load_lora"),
    "LoraLoaderModelOnly": ("model:MODEL lora_name:COMBO strength_model:FLOAT", "MODEL", "load_lora_model_only"),
    "VAELoader": ("vae_name:COMBO", "VAE", "load_vae"),
    "UNETLoader": ("unet_name:COMBO weight_dtype:COMBO", "MODEL", "load_unet"),
    "CLIPLoader": ("clip_name:COMBO type:COMBO", "CLIP", "load_clip"),
    "DualCLIPLoader": ("clip_name1:COMBO clip_name2:COMBO type:COMBO", "CLIP", "load_clip"),
    "CLIPTextEncode": ("text:STRING clip:CLIP", "CONDITIONING", "encode"),
    "CLIPSetLastLayer": ("clip:CLIP stop_at_clip_layer:INT", "CLIP", "set_last_layer"),
    "ConditioningCombine": ("conditioning_1:CONDITIONING conditioning_2:CONDITIONING", "CONDITIONING", "combine"),
    "ConditioningConcat": ("conditioning_to:CONDITIONING conditioning_from:CONDITIONING", "CONDITIONING", "concat"),
    "ConditioningAverage": (
        "conditioning_to:CONDITIONING conditioning_from:CONDITIONING conditioning_to_strength:FLOAT", "CONDITIONING", "addWeighted"),
    "ConditioningZeroOut": ("conditioning:CONDITIONING", "CONDITIONING", "zero_out"),
    "ConditioningSetTimestepRange": ("conditioning:CONDITIONING start:FLOAT end:FLOAT", "CONDITIONING", "set_range"),
    "ConditioningSetMask": ("conditioning:CONDITIONING mask:MASK strength:FLOAT set_cond_area:COMBO", "CONDITIONING", "append"),
    "ControlNetLoader": ("control_net_name:COMBO", "CONTROL_NET", "load_controlnet"),
    "ControlNetApply": ("conditioning:CONDITIONING control_net:CONTROL_NET image:IMAGE strength:FLOAT", "CONDITIONING", "apply_controlnet"),
    "ControlNetApplyAdvanced": (
        "positive:CONDITIONING negative:CONDITIONING control_net:CONTROL_NET image:IMAGE strength:FLOAT start_percent:FLOAT "
        "end_percent:FLOAT", "CONDITIONING CONDITIONING", "apply_controlnet"),
    "VAEDecode": ("samples:LATENT vae:VAE", "IMAGE", "decode"),
    "VAEDecodeTiled": ("samples:LATENT vae:VAE tile_size:INT", "IMAGE", "decode"),
    "VAEEncode": ("pixels:IMAGE vae:VAE", "LATENT", "encode"),
    "VAEEncodeTiled": ("pixels:IMAGE vae:VAE tile_size:INT", "LATENT", "encode"),
    "VAEEncodeForInpaint": ("pixels:IMAGE vae:VAE mask:MASK grow_mask_by:INT", "LATENT", "encode"),
    "CLIPVisionLoader": ("clip_name:COMBO", "CLIP_VISION", "load_clip"),
    "CLIPVisionEncode": ("clip_vision:CLIP_VISION image:IMAGE", "CLIP_VISION_OUTPUT", "encode"),
    "StyleModelLoader": ("style_model_name:COMBO", "STYLE_MODEL", "load_style_model"),
    "KSampler": (
        "model:MODEL seed:INT steps:INT cfg:FLOAT sampler_name:COMBO scheduler:COMBO positive:CONDITIONING negative:CONDITIONING "
        "latent_image:LATENT denoise:FLOAT", "LATENT", "sample"),
    "KSamplerAdvanced": (
        "model:MODEL add_noise:COMBO noise_seed:INT steps:INT cfg:FLOAT sampler_name:COMBO scheduler:COMBO positive:CONDITIONING "
        "negative:CONDITIONING latent_image:LATENT start_at_step:INT end_at_step:INT return_with_leftover_noise:COMBO", "LATENT", "sample"),
}


def core(name, unavailable):
    takes, gives, function = CORE[name]

    def types(cls):
        pairs = (pair.split(":") for pair in takes.split())
        return {"required": {name: ([""],) if kind == "COMBO" else (kind,) for name, kind in pairs}}

    def fail(self, *_, **__):
        raise unavailable("it wants nodes.%s.%s, which only ComfyUI has" % (name, function))

    return type(name, (), {"INPUT_TYPES": classmethod(types), "RETURN_TYPES": tuple(gives.split()), "FUNCTION": function,
                           "CATEGORY": "", function: fail})


class ImageBatch:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image1": ("IMAGE",), "image2": ("IMAGE",)}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "batch", "image"

    def batch(self, image1, image2):
        import comfy.utils
        import torch

        if image1.shape[1:3] != image2.shape[1:3]:
            image2 = comfy.utils.common_upscale(image2.movedim(-1, 1), image1.shape[2], image1.shape[1], "bilinear", "center").movedim(1, -1)
        return (torch.cat((image1, image2)),)


class ImageInvert:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "invert", "image"

    def invert(self, image):
        return (1.0 - image,)


class LoadImage:
    """A picture of the input folder, and what is transparent of it as a mask."""

    @classmethod
    def INPUT_TYPES(cls):
        import folder_paths

        folder = folder_paths.get_input_directory()
        files = sorted(name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name))) if os.path.isdir(folder) else []
        return {"required": {"image": (folder_paths.filter_files_content_types(files, ["image"]), {"image_upload": True})}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE", "MASK"), "load_image", "image"

    def load_image(self, image):
        import folder_paths
        import torch
        from PIL import Image, ImageOps, ImageSequence

        opened = pillow(Image.open, folder_paths.get_annotated_filepath(image))
        pictures, masks = [], []
        for frame in ImageSequence.Iterator(opened):
            frame = pillow(ImageOps.exif_transpose, frame)
            if frame.mode == "I":
                frame = frame.point(lambda value: value * (1 / 255))
            if pictures and frame.size != (pictures[0].shape[2], pictures[0].shape[1]):
                continue
            pictures.append(numbers(frame.convert("RGB")).reshape(1, frame.height, frame.width, 3))
            clear = "A" in frame.getbands() or "transparency" in frame.info
            masks.append(1.0 - numbers(frame.convert("RGBA").getchannel("A"))[None] if clear else torch.zeros((1, 64, 64)))
            if opened.format == "MPO":
                break
        return torch.cat(pictures), torch.cat(masks)

    @classmethod
    def IS_CHANGED(cls, image, **_):
        import folder_paths

        with open(folder_paths.get_annotated_filepath(image), "rb") as file:
            return hasher()(file.read()).hexdigest()

    @classmethod
    def VALIDATE_INPUTS(cls, image, **_):
        import folder_paths

        return folder_paths.exists_annotated_filepath(image) or "there is no picture %s" % image


class LoadImageMask(LoadImage):
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": dict(super().INPUT_TYPES()["required"], channel=(["alpha", "red", "green", "blue"],))}

    RETURN_TYPES, CATEGORY = ("MASK",), "mask"

    def load_image(self, image, channel):
        import folder_paths
        import torch
        from PIL import Image, ImageOps

        picture = pillow(ImageOps.exif_transpose, pillow(Image.open, folder_paths.get_annotated_filepath(image)))
        if channel == "alpha" and not ("A" in picture.getbands() or "transparency" in picture.info):
            return (torch.zeros((1, 64, 64)),)
        part = numbers(picture.convert("RGBA").getchannel(channel[0].upper()))[None]
        return (1.0 - part if channel == "alpha" else part,)


def numbers(picture):
    """[H, W, …] of bytes as 0..1."""
    import numpy
    import torch

    return torch.from_numpy(numpy.array(picture).astype(numpy.float32) / 255.0)
