"""`comfy_api.latest`: nodes that say what they are by a schema, turned into what INPUT_TYPES and its neighbours say.

    class Blur(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="Blur", inputs=[io.Image.Input("image")], outputs=[io.Image.Output()])

        @classmethod
        def execute(cls, image):
            return io.NodeOutput(image)

What depends on another value (a choice that brings inputs of its own, inputs that grow) is there as all the inputs that
there can be, optional ones, as "name.inner"; the node is given them as it expects them, in a dict.
"""

import enum
import inspect
import sys
import types

# What types are called there -> in workflows; any other name is the same in capitals.
TYPES = {
    "AnyType": "*", "Vae": "VAE", "Clip": "CLIP", "ClipVision": "CLIP_VISION", "ClipVisionOutput": "CLIP_VISION_OUTPUT",
    "ControlNet": "CONTROL_NET", "StyleModel": "STYLE_MODEL", "UpscaleModel": "UPSCALE_MODEL", "ModelPatch": "MODEL_PATCH",
    "LatentUpscaleModel": "LATENT_UPSCALE_MODEL", "LatentOperation": "LATENT_OPERATION", "AudioEncoder": "AUDIO_ENCODER",
    "AudioEncoderOutput": "AUDIO_ENCODER_OUTPUT", "HookKeyframes": "HOOK_KEYFRAMES", "TimestepsRange": "TIMESTEPS_RANGE",
    "FlowControl": "FLOW_CONTROL", "BoundingBox": "BOUNDING_BOX", "PhotoMaker": "PHOTOMAKER", "Point": "POINT", "Gligen": "GLIGEN",
    "FaceAnalysis": "FACE_ANALYSIS", "WanCameraEmbedding": "WAN_CAMERA_EMBEDDING", "LossMap": "LOSS_MAP", "SEGS": "SEGS",
}
PLAIN = "Image Mask Latent Conditioning Sampler Sigmas Noise Guider Clip Model Vae Audio Video Hooks Webcam BBOX SVG Tracks Mesh Voxel Color".split()
MOST_GROWN = 100


class FolderType(str, enum.Enum):
    input = "input"
    output = "output"
    temp = "temp"


class NumberDisplay(str, enum.Enum):
    number = "number"
    slider = "slider"


class UploadType(str, enum.Enum):
    image = "image_upload"
    audio = "audio_upload"
    video = "video_upload"
    model = "file_upload"


class Hidden(str, enum.Enum):
    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"
    dynprompt = "DYNPROMPT"
    auth_token_comfy_org = "AUTH_TOKEN_COMFY_ORG"
    api_key_comfy_org = "API_KEY_COMFY_ORG"


class Input:
    io_type = "*"
    order = ("display_name", "optional", "tooltip", "lazy")

    def __init__(self, id, *given, **named):
        # Of a schema's arguments those that mean nothing here are taken, too.
        self.id = id
        self.options = dict(zip(self.order, given), **named)
        self.optional = bool(self.options.pop("optional", False))
        self.lazy = bool(self.options.get("lazy"))
        self.tooltip = self.options.get("tooltip")

    def kind(self):
        return self.io_type

    def listed(self, name=None, optional=False):
        """[(name, optional, what INPUT_TYPES would say)]"""
        options = {OLD.get(key, key): value for key, value in self.options.items() if value is not None}
        options.update(options.pop("extra_dict", None) or {})
        return [(name or self.id, optional or self.optional, (self.kind(), options))]


OLD = {"force_input": "forceInput", "display_mode": "display", "dynamic_prompts": "dynamicPrompts", "widget_type": "widgetType"}


class WidgetInput(Input):
    order = Input.order + ("default", "min", "max", "step")


class BooleanInput(Input):
    order = Input.order + ("default", "label_on", "label_off")


class StringInput(Input):
    order = Input.order + ("multiline", "placeholder", "default")


class ComboInput(Input):
    io_type = "COMBO"
    order = ("options",) + Input.order + ("default",)

    def listed(self, name=None, optional=False):
        listed = self.options.get("options")
        if isinstance(listed, type) and issubclass(listed, enum.Enum):
            listed = [one.value for one in listed]
        options = dict(self.options, options=list(listed or ()))
        if isinstance(options.get("default"), enum.Enum):
            options["default"] = options["default"].value
        return [(name or self.id, optional or self.optional, ("COMBO", options))]


class Output:
    io_type = "*"

    def __init__(self, id=None, display_name=None, tooltip=None, is_output_list=False, **_):
        self.id, self.display_name, self.tooltip, self.is_output_list = id, display_name, tooltip, bool(is_output_list)

    def kind(self):
        return self.io_type


def comfy_type(name, io_type, input=Input):
    made = type(name, (), {"io_type": io_type, "Type": object})
    made.Input = type("Input", (input,), {"io_type": io_type, "Parent": made})
    made.Output = type("Output", (Output,), {"io_type": io_type, "Parent": made})
    return made


def Custom(io_type):
    return comfy_type("Custom", io_type)


def comfytype(io_type, **_):
    """The decorator that makes a class a type."""

    def decorate(made):
        made.io_type = io_type
        for part, base in (("Input", Input), ("Output", Output)):
            setattr(made, part, type(part, (getattr(made, part, base),), {"io_type": io_type, "Parent": made}))
        return made

    return decorate


def names_of(kinds):
    kinds = kinds if isinstance(kinds, (list, tuple)) else [kinds]
    return ",".join(kind.io_type for kind in kinds if kind is not None) or "*"


class MultiType:
    class Input(Input):
        def __init__(self, id, types=(), *given, **named):
            # A widget's input may stand for the name: then it is that widget, and a link may bring the other types.
            self.widget = id if isinstance(id, Input) else None
            kinds = list(types)
            if self.widget is not None:
                id, kinds = self.widget.id, [self.widget] + kinds
                named.setdefault("optional", self.widget.optional)
            super().__init__(id, *given, **named)
            self.io_type = names_of(kinds)

        def listed(self, name=None, optional=False):
            return self.widget.listed(name, optional) if self.widget is not None else super().listed(name, optional)


class MatchType:
    class Template:
        def __init__(self, template_id, allowed_types=None):
            self.template_id = template_id
            self.io_type = "*" if allowed_types is None else names_of(allowed_types)

    class Input(Input):
        def __init__(self, id, template, *given, **named):
            super().__init__(id, *given, **named)
            self.io_type = template.io_type

    class Output(Output):
        def __init__(self, template, *given, **named):
            super().__init__(*given, **named)
            self.io_type = template.io_type


class DynamicCombo:
    class Option:
        def __init__(self, key, inputs=()):
            self.key, self.inputs = key, list(inputs)

    class Input(Input):
        def __init__(self, id, options=(), *given, **named):
            super().__init__(id, *given, **named)
            self.choices = list(options)

        def listed(self, name=None, optional=False):
            name = name or self.id
            options = dict(self.options, options=[option.key for option in self.choices])
            found = {name: (name, optional or self.optional, ("COMBO", options))}
            for option in self.choices:
                for inner in option.inputs:
                    for one in inner.listed("%s.%s" % (name, inner.id), True):
                        found.setdefault(one[0], one)
            return list(found.values())


class Autogrow:
    class TemplatePrefix:
        def __init__(self, input, prefix="", min=1, max=10):
            self.input, self.min = input, min
            self.names = ["%s%d" % (prefix, number) for number in range(max if max < MOST_GROWN else MOST_GROWN)]

    class TemplateNames:
        def __init__(self, input, names=(), min=1):
            self.input, self.min, self.names = input, min, list(names)[:MOST_GROWN]

    class Input(Input):
        def __init__(self, id, template, *given, **named):
            super().__init__(id, *given, **named)
            self.template = template

        def listed(self, name=None, optional=False):
            name, found = name or self.id, []
            for number, one in enumerate(self.template.names):
                found += self.template.input.listed("%s.%s" % (name, one), optional or number >= self.template.min)
            return found


class Schema:
    def __init__(self, node_id, display_name=None, category="sd", inputs=(), outputs=(), hidden=(), description="", **more):
        self.node_id, self.display_name, self.category, self.description = node_id, display_name, category, description
        self.inputs, self.outputs, self.hidden = list(inputs or ()), list(outputs or ()), list(hidden or ())
        self.is_input_list = bool(more.get("is_input_list"))
        self.is_output_node = bool(more.get("is_output_node"))
        self.not_idempotent = bool(more.get("not_idempotent"))
        self.enable_expand = bool(more.get("enable_expand"))
        self.more = more


class NodeOutput:
    def __init__(self, *args, ui=None, expand=None, block_execution=None):
        self.args, self.ui, self.expand, self.block_execution = args, ui, expand, block_execution

    @property
    def result(self):
        return self.args or None

    def __getitem__(self, at):
        return self.args[at]


class ComfyNode:
    """What nodes of a schema derive from."""

    SCHEMA = None
    hidden = types.SimpleNamespace(**{one.name: None for one in Hidden})
    resources = None

    @classmethod
    def define_schema(cls):
        raise NotImplementedError("it has no define_schema")

    @classmethod
    def GET_SCHEMA(cls):
        if "SCHEMA" not in cls.__dict__ or cls.SCHEMA is None:
            cls.SCHEMA = cls.define_schema()
        return cls.SCHEMA

    @classmethod
    def execute(cls, **_):
        raise NotImplementedError("it has no execute")


class ComfyExtension:
    async def on_load(self):
        pass

    async def get_node_list(self):
        return []


def overrides(node, name):
    own = getattr(node, name, None)
    return own if callable(own) and getattr(ComfyNode, name, None) is not own else None


def adapted(node):
    """A class as ComfyUI's older nodes are, which does what `node`, of a schema, does."""
    # One that builds on a class of ComfyUI's has no GET_SCHEMA.
    schema = node.GET_SCHEMA() if hasattr(node, "GET_SCHEMA") else node.define_schema()
    groups = {"required": {}, "optional": {}}
    for input in schema.inputs:
        for name, optional, what in input.listed():
            groups["optional" if optional else "required"][name] = what
    hidden = {one.name: one.value for one in map(Hidden, schema.hidden)}
    if schema.is_output_node:
        hidden.update(prompt="PROMPT", extra_pnginfo="EXTRA_PNGINFO")
    nested = [input.id for input in schema.inputs if isinstance(input, (DynamicCombo.Input, Autogrow.Input))]

    def given(named, whole=True):
        """The class as it is called this once, and its inputs; as a `whole` with a dict for what brings none."""
        values = {name: named.pop(name) for name in list(named) if name in hidden}
        called = type(node.__name__, (node,), {"hidden": types.SimpleNamespace(**dict.fromkeys((one.name for one in Hidden)))})
        for name, value in values.items():
            setattr(called.hidden, name, value[0] if schema.is_input_list and isinstance(value, (list, tuple)) else value)
        return called, nest(named, nested, whole)

    def run(self, **named):
        called, inputs = given(named)
        return waiting(called.execute(**inputs)) if is_coroutine(node.execute) else flat(called.execute(**inputs))

    run.__signature__ = inspect.signature(node.execute)
    more = {}
    for old, new in (("IS_CHANGED", "fingerprint_inputs"), ("VALIDATE_INPUTS", "validate_inputs"), ("check_lazy_status", "check_lazy_status")):
        if overrides(node, new):
            more[old] = asked(node, new, given)
    described = dict(
        INPUT_TYPES=classmethod(lambda cls: dict(groups, hidden=hidden)),
        RETURN_TYPES=tuple(output.kind() for output in schema.outputs),
        RETURN_NAMES=tuple(output.display_name or output.id or output.kind() for output in schema.outputs),
        OUTPUT_IS_LIST=tuple(output.is_output_list for output in schema.outputs),
        INPUT_IS_LIST=schema.is_input_list, OUTPUT_NODE=schema.is_output_node, NOT_IDEMPOTENT=schema.not_idempotent,
        DESCRIPTION=schema.description or "", CATEGORY=schema.category or "", FUNCTION="run", run=run, **more)
    return type(node.__name__, (), described), schema.display_name


def asked(node, name, given):
    """One of the questions of `node`, with the parameters that it has: which they are says what it looks at."""
    def ask(*_, **named):
        called, inputs = given(named, name == "check_lazy_status")
        return getattr(called, name)(**inputs)

    if name == "check_lazy_status":
        return ask
    ask.__signature__ = inspect.signature(getattr(node, name))
    return staticmethod(ask)


def nest(named, nested, whole):
    """"a.b": value -> "a": {"b": value}; a choice that brings inputs is in its own dict, under its own name."""
    if not nested:
        return named
    inputs = {}
    for name, value in named.items():
        parts = name.split(".")
        if parts[0] not in nested:
            inputs[name] = value
            continue
        inside = inputs.setdefault(parts[0], {})
        for part in parts[1:-1]:
            there = inside.get(part)
            if not isinstance(there, dict):
                # A choice that stands inside of another.
                there = inside[part] = {} if there is None else {part: there}
            inside = there
        inside[parts[-1]] = value
    for name in nested if whole else ():
        inputs.setdefault(name, {})
    return inputs


def is_coroutine(function):
    return inspect.iscoroutinefunction(getattr(function, "__func__", function))


async def waiting(result):
    return flat(await result)


def flat(result):
    """What `execute` gave, as older nodes give it."""
    if not isinstance(result, NodeOutput):
        return result
    answer = {"result": result.args}
    if result.expand is not None:
        answer["expand"] = result.expand
    ui = result.ui
    if ui is not None:
        answer["ui"] = ui.as_dict() if hasattr(ui, "as_dict") else ui
    if result.block_execution is not None:
        raise RuntimeError("it blocks what comes behind it (%s), which is not done for Python here" % result.block_execution)
    return answer


# ---- what a node shows ----


class SavedResult(dict):
    def __init__(self, filename, subfolder, type):
        type = getattr(type, "value", type)
        super().__init__(filename=filename, subfolder=subfolder, type=type)
        self.filename, self.subfolder, self.type = filename, subfolder, type


class Shown:
    key = "images"

    def __init__(self, results, animated=False, **_):
        self.results = results if isinstance(results, list) else [results]
        self.animated = animated

    def as_dict(self):
        shown = {self.key: self.results}
        return dict(shown, animated=(True,)) if self.animated else shown


class SavedAudios(Shown):
    key = "audio"


class PreviewText:
    def __init__(self, value, **_):
        self.value = value

    def as_dict(self):
        return {"text": (self.value,)}


def saved(images, class_name, prefix, cls=None):
    import nodes

    hidden = getattr(cls, "hidden", None)
    saver = getattr(nodes, class_name)()
    return [SavedResult(**one) for one in saver.save_images(
        images, prefix, getattr(hidden, "prompt", None), getattr(hidden, "extra_pnginfo", None))["ui"]["images"]]


class PreviewImage(Shown):
    def __init__(self, image, animated=False, cls=None, **_):
        super().__init__(saved(image, "PreviewImage", "ComfyUI", cls), animated)


class PreviewMask(PreviewImage):
    def __init__(self, mask, animated=False, cls=None, **_):
        super().__init__(mask.reshape((-1, 1) + tuple(mask.shape[-2:])).movedim(1, -1).expand(-1, -1, -1, 3), animated, cls)


class ImageSaveHelper:
    @staticmethod
    def save_images(images, filename_prefix, folder_type=FolderType.output, cls=None, **_):
        kind = getattr(folder_type, "value", folder_type)
        return saved(images, "PreviewImage" if kind == "temp" else "SaveImage", filename_prefix, cls)

    @staticmethod
    def get_save_images_ui(images, filename_prefix, cls=None, **_):
        return Shown(saved(images, "SaveImage", filename_prefix, cls))


# ---- modules ----


def install(module, missing):
    """Makes comfy_api.latest and its neighbours; `module(name)` makes one, `missing(path)` what is not here."""
    module("comfy_api.latest")
    io = module("comfy_api.latest._io")
    for name in PLAIN:
        setattr(io, name, comfy_type(name, TYPES.get(name, name.upper())))
    for name, io_type in TYPES.items():
        setattr(io, name, comfy_type(name, io_type))
    for name, input in (("Int", WidgetInput), ("Float", WidgetInput), ("Boolean", BooleanInput), ("String", StringInput)):
        setattr(io, name, comfy_type(name, name.upper(), input))
    io.Combo = io.MultiCombo = comfy_type("Combo", "COMBO", ComboInput)
    for one in (Custom, comfytype, MultiType, MatchType, DynamicCombo, Autogrow, Schema, NodeOutput, ComfyNode, Hidden, FolderType,
                NumberDisplay, UploadType, Input, WidgetInput, Output):
        setattr(io, one.__name__, one)
    ui = module("comfy_api.latest._ui")
    for one in (SavedResult, SavedAudios, PreviewText, PreviewImage, PreviewMask, ImageSaveHelper):
        setattr(ui, one.__name__, one)
    ui.SavedImages = ui.PreviewVideo = ui.PreviewUI3D = Shown
    for version in ("latest", "v0_0_1", "v0_0_2"):
        latest = sys.modules.get("comfy_api." + version) or module("comfy_api." + version)
        latest.io = latest.IO = io
        latest.ui = latest.UI = ui
        latest.ComfyExtension = ComfyExtension
        for name in ("Input", "InputImpl", "Types", "ComfyAPI", "ComfyAPISync"):
            setattr(latest, name, missing("comfy_api.%s.%s" % (version, name)))


def mappings(module):
    """The classes of a pack with `comfy_entrypoint`, and their titles."""
    import asyncio

    async def classes():
        extension = module.comfy_entrypoint()
        extension = await extension if inspect.isawaitable(extension) else extension
        await extension.on_load()
        return await extension.get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(classes())}
