"""What a pack of nodes says of itself -> a descriptor as node.h has it.

A class that cannot be described costs itself alone: it is left out, with the reason.
"""

import inspect

# Values that are more than data, of types that the libraries of the host have: no Python could use them, or make them.
OBJECTS = frozenset(
    "MODEL CLIP VAE CLIP_VISION CLIP_VISION_OUTPUT CONDITIONING CONTROL CONTROL_NET UPSCALE_MODEL KOSMOS FEATURES "
    "IMAGE_ENCODER IMAGE_TOKENS HIDDEN_STATES SAMPLER GUIDER NOISE GLIGEN LATENT_OPERATION STYLE_MODEL".split()
)
DATA = frozenset("IMAGE MASK LATENT SIGMAS AUDIO INT FLOAT STRING BOOLEAN COMBO".split())
WIDGETS = frozenset(("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"))
LOWEST, HIGHEST, ALL_BITS = -(2**63), 2**63 - 1, 2**64 - 1
# A descriptor is read whole, so it cannot be of any size.
MOST_CHOICES = 20000


adapted = None  # of schema.py


class LeftOut(Exception):
    """Why a class is not described."""


def descriptor(name, version, mappings, titles):
    """The descriptor, and what runs: by class, its Python class and how its inputs are read."""
    nodes, left_out, classes = [], [], {}
    for key, node in mappings.items():
        try:
            if not isinstance(key, str) or not key:
                raise LeftOut("its name is no text")
            described, reading = one(key, node, titles.get(key), name)
        except LeftOut as reason:
            left_out.append({"class": str(key), "reason": str(reason)})
        except Exception as error:
            left_out.append({"class": str(key), "reason": "%s: %s" % (type(error).__name__, first_line(error))})
        else:
            nodes.append(described)
            classes[key] = reading
    return {"name": name, "version": version, "nodes": nodes, "left_out": left_out}, classes


class Reading:
    """How one class is called."""

    def __init__(self, node):
        self.node = node
        self.inputs = {}  # name -> type
        self.choices = {}  # name -> {text: the choice as the class has it}
        self.unsigned = set()
        self.hidden = {}  # name -> "PROMPT", "EXTRA_PNGINFO", "UNIQUE_ID", ...
        self.outputs = []  # (name, type, whether it is a list)
        self.takes_lists = False
        self.lazy = set()


def one(key, node, title, pack):
    if callable(getattr(node, "define_schema", None)) and not hasattr(node, "INPUT_TYPES"):
        node, title_of_schema = adapted(node)
        title = title or title_of_schema
    function = getattr(node, "FUNCTION", None)
    if not isinstance(function, str) or not callable(getattr(node, function, None)):
        raise LeftOut("its FUNCTION %r is no method of it" % (function,))
    reading = Reading(node)
    reading.takes_lists = bool(getattr(node, "INPUT_IS_LIST", False))
    lists = getattr(node, "OUTPUT_IS_LIST", None) or ()
    lists = tuple(lists) if isinstance(lists, (tuple, list)) else (lists,)
    given = node.INPUT_TYPES()
    inputs = []
    asks, named, everything = questions(node)
    for group, optional in (("required", False), ("optional", True)):
        for name, what in dict(given.get(group) or {}).items():
            described = read_input(str(name), what, optional, reading)
            if everything or name in named:
                described["unchecked"] = True
            inputs.append(described)
    for name, what in dict(given.get("hidden") or {}).items():
        what = what[0] if isinstance(what, (tuple, list)) and what else what
        reading.hidden[str(name)] = str.__str__(what) if isinstance(what, str) else ""
    types = getattr(node, "RETURN_TYPES", ())
    if isinstance(types, str):
        raise LeftOut("its RETURN_TYPES is a text where a tuple of texts is due")
    names = getattr(node, "RETURN_NAMES", None) or ()
    names = (names,) if isinstance(names, str) else tuple(names)
    outputs = []
    # What it need not be given and gives it may just give on; a type of the pack's own may bring it, too.
    carried = set(reading.inputs.values())
    carries_any = any(kind not in OBJECTS and kind not in DATA for kind in carried)
    for number, what in enumerate(types):
        kind = type_of(what)
        if kind in OBJECTS and kind not in carried and not carries_any:
            raise LeftOut("it gives a %s, which only ComfyUI's own Python can make" % kind)
        label = str(names[number]) if number < len(names) and names[number] else kind
        is_list = number < len(lists) and bool(lists[number])
        reading.outputs.append((label, kind, is_list))
        outputs.append({"name": label, "type": kind, "is_list": is_list})
    is_output = bool(getattr(node, "OUTPUT_NODE", False))
    doc = text_of(getattr(node, "DESCRIPTION", "")).strip()
    described = {
        "class": key,
        "display_name": text_of(title or key),
        "doc": doc or "%s; a node in Python, of the pack %s." % (text_of(title or key), pack),
        "category": text_of(getattr(node, "CATEGORY", "") or pack),
        "inputs": inputs,
        "outputs": outputs,
        # What does not depend on its inputs alone says so each time, by NOT_IDEMPOTENT, or when it is asked, by IS_CHANGED.
        "pure": not bool(getattr(node, "NOT_IDEMPOTENT", False)),
        "asks": asks,
        "input_is_list": reading.takes_lists,
        "any_inputs": takes_any(getattr(node, function)),
        "output_node": is_output,
        "hidden": sorted(set(reading.hidden.values())),
    }
    return described, reading


def takes_any(function):
    """Whether it takes what is linked to it under names that INPUT_TYPES does not have, as many whose page adds inputs do."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)


def questions(node):
    """What the class is asked before it runs; the inputs that VALIDATE_INPUTS names, and whether those are all."""
    validate = getattr(node, "VALIDATE_INPUTS", None)
    asks = {"changed": callable(getattr(node, "IS_CHANGED", None)), "valid": callable(validate), "types": False}
    if not asks["valid"]:
        return asks, frozenset(), False
    try:
        parameters = inspect.signature(validate).parameters.values()
    except (TypeError, ValueError):
        return asks, frozenset(), False
    names = frozenset(parameter.name for parameter in parameters)
    # It looks at the types of links itself: then nobody else does.
    asks["types"] = "input_types" in names
    return asks, names, any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)


def type_of(what):
    """A type's name. Packs make texts that compare as they like, so it is read as what it is."""
    if isinstance(what, (list, tuple)):
        return "COMBO"
    if not isinstance(what, str):
        raise LeftOut("a type of it is %s, and no text" % type(what).__name__)
    name = str.__str__(what)
    return str("".join(name)) or "*"


def read_input(name, what, optional, reading):
    what = tuple(what) if isinstance(what, (tuple, list)) else (what,)
    if not what:
        raise LeftOut("its input %s has no type" % name)
    refuse_missing(what[0])
    options = what[1] if len(what) > 1 and isinstance(what[1], dict) else {}
    kind = type_of(what[0])
    if kind in OBJECTS and not optional:
        raise LeftOut("its input %s is a %s, which only ComfyUI's own Python can use" % (name, kind))
    if kind not in WIDGETS and "," in kind and WIDGETS & set(part.strip() for part in kind.split(",")):
        # A socket, whatever else it may be.
        pass
    if name in reading.inputs:
        raise LeftOut("its input %s stands twice" % name)
    described = {"name": name, "type": kind}
    if options.get("lazy"):
        reading.lazy.add(name)
        described["lazy"] = True
    if optional:
        described["optional"] = True
    tooltip = options.get("tooltip")
    if isinstance(tooltip, str):
        described["doc"] = text_of(tooltip)
    default = options.get("default")
    refuse_missing(default)
    if kind == "INT":
        read_int(name, described, options, default, reading)
    elif kind == "FLOAT":
        read_float(described, options, default)
    elif kind == "STRING":
        if default is not None and not options.get("forceInput"):
            described["default"] = text_of(default if isinstance(default, str) else str(default))
        if options.get("multiline"):
            described["multiline"] = True
    elif kind == "BOOLEAN":
        if default is not None:
            described["default"] = bool(default)
    elif kind == "COMBO":
        listed = what[0] if isinstance(what[0], (list, tuple)) else options.get("options", ())
        read_combo(name, described, list(listed), default, reading)
    reading.inputs[name] = kind
    return described


def refuse_missing(value):
    reason = getattr(type(value), "is_missing_part_of_comfyui", None)
    if reason:
        raise LeftOut("it wants %s, which only ComfyUI has" % value.path)


def read_int(name, described, options, default, reading):
    def whole(value):
        return int(value) if isinstance(value, (int, float)) and value == value and abs(value) < 2**70 else None

    least, most, step = whole(options.get("min")), whole(options.get("max")), whole(options.get("step"))
    default = whole(default)
    if most is not None and most > HIGHEST:
        most, least = min(most, ALL_BITS), max(least or 0, 0)
        reading.unsigned.add(name)
    least = None if least is None else max(least, LOWEST)
    most = None if most is None else max(most, LOWEST)
    if least is not None and most is not None and least > most:
        least, most = most, least
    if default is not None:
        # Many a pack has a default outside of its own range; the editor shows it as the bound.
        default = max(default, LOWEST if least is None else least)
        default = min(default, HIGHEST if most is None else most)
    for key, value in (("min", least), ("max", most), ("default", default)):
        if value is not None:
            described[key] = value
    if step is not None and 0 < step <= HIGHEST:
        described["step"] = step
    if name in ("seed", "noise_seed") or options.get("control_after_generate"):
        described["role"] = "seed"


def read_float(described, options, default):
    def number(value):
        is_number = isinstance(value, (int, float)) and value == value and abs(value) != float("inf")
        return float(value) if is_number else None

    least, most, step = number(options.get("min")), number(options.get("max")), number(options.get("step"))
    default = number(default)
    if least is not None and most is not None and least > most:
        least, most = most, least
    if default is not None:
        default = default if least is None else max(default, least)
        default = default if most is None else min(default, most)
    for key, value in (("min", least), ("max", most), ("default", default)):
        if value is not None:
            described[key] = value
    if step is not None and step > 0:
        described["step"] = step


def read_combo(name, described, listed, default, reading):
    choices = {}
    for choice in listed[:MOST_CHOICES]:
        refuse_missing(choice)
        choices.setdefault(text_of(choice if isinstance(choice, str) else str(choice)), choice)
    if not choices:
        # A list of files may be empty today. The class is there all the same, and fails when it runs.
        choices[""] = ""
    described["choices"] = list(choices)
    if default is not None:
        default = text_of(default if isinstance(default, str) else str(default))
        if default in choices:
            described["default"] = default
    reading.choices[name] = choices


class Different(Exception):
    """A value that is equal to no other, itself included."""


def fingerprint(value, depth=0):
    """A text that is the same for equal values of IS_CHANGED. Of what is no plain value it cannot be known."""
    if isinstance(value, float) and value != value or depth > 16:
        raise Different()
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return "%s %r" % (type(value).__name__, value)
    if isinstance(value, (list, tuple)):
        return "[%s]" % ", ".join(fingerprint(one, depth + 1) for one in value)
    if isinstance(value, (set, frozenset)):
        return "{%s}" % ", ".join(sorted(fingerprint(one, depth + 1) for one in value))
    if isinstance(value, dict):
        pairs = ((fingerprint(key, depth + 1), fingerprint(one, depth + 1)) for key, one in value.items())
        return "{%s}" % ", ".join("%s: %s" % pair for pair in sorted(pairs))
    raise Different()


def text_of(text):
    """As UTF-8 can have it."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


def first_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return text_of(lines[0])[:500] if lines else ""
