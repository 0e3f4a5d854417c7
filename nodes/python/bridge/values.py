"""Values that come and go: [tag, ...] in JSON, the numbers of tensors as descriptors of memory that both sides map."""

import fcntl
import math
import mmap
import os
import sys

CHUNK = 1 << 26
SEALS = 0x0001 | 0x0002 | 0x0004 | 0x0008  # no more seals, not shorter, not longer, not written
ADD_SEALS = 1033
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
# What a tensor of a type must be: how many axes there are, and which of them may be missing in front.
AXES = {"IMAGE": 4, "MASK": 3, "SIGMAS": 1}


LATENT_KEYS = frozenset(("samples", "noise_mask", "batch_index"))


class Wrong(Exception):
    """What is wrong with a value, as the end of a sentence."""


class Arrays:
    """torch where the user's Python has it, else numpy."""

    def __init__(self):
        self._torch = self._numpy = None
        self._looked = False

    def look(self):
        if not self._looked:
            self._looked = True
            try:
                import torch

                self._torch = torch
            except ImportError:
                pass
            try:
                import numpy

                self._numpy = numpy
            except ImportError:
                pass
        return self._torch, self._numpy

    def read(self, fd, dtype, shape):
        """A tensor over the memory. It is the node's to change: the host's stays as it is."""
        torch, numpy = self.look()
        count = 1
        for length in shape:
            count *= length
        if torch is None and numpy is None:
            os.close(fd)
            raise Wrong("is a tensor, and %s has neither torch nor numpy (--python PATH names one that has)" % (sys.executable or "this Python"))
        try:
            memory = mmap.mmap(fd, count * BYTES[dtype], access=mmap.ACCESS_COPY) if count else bytearray()
        finally:
            os.close(fd)
        if torch is not None:
            kind = getattr(torch, dtype)
            return torch.frombuffer(memory, dtype=kind).reshape(shape) if count else torch.empty(shape, dtype=kind)
        if dtype == "bfloat16":
            raise Wrong("is of bfloat16, which numpy does not have")
        kind = numpy.dtype(dtype)
        return numpy.frombuffer(memory, dtype=kind).reshape(shape) if count else numpy.empty(shape, dtype=kind)

    def is_tensor(self, value):
        torch, numpy = self.look()
        if torch is not None and isinstance(value, torch.Tensor):
            return True
        return numpy is not None and isinstance(value, numpy.ndarray)

    def crosses(self, value):
        """Whether it comes back as what it was: of numpy, where there is torch, and of other numbers than f32 it does not."""
        torch, numpy = self.look()
        if torch is not None:
            return isinstance(value, torch.Tensor) and value.dtype == torch.float32
        return self.is_tensor(value) and value.dtype == numpy.float32

    def plain(self, value, kind):
        """[shape, bytes] of a tensor as f32, compact; held against what `kind` must be."""
        torch, numpy = self.look()
        if not self.is_tensor(value):
            raise Wrong("is %s, where a tensor is due" % shown(value))
        if torch is not None and isinstance(value, torch.Tensor):
            if value.is_complex():
                raise Wrong("is a tensor of complex numbers")
            tensor = value.detach()
            if tensor.is_sparse:
                tensor = tensor.to_dense()
            tensor = tensor.to(device="cpu", dtype=torch.float32).contiguous()
            tensor = add_axis(tensor, kind)
            if kind in AXES and not bool(torch.isfinite(tensor).all()):
                raise Wrong(not_finite(int((~torch.isfinite(tensor)).sum()), tensor.numel()))
            shape = list(tensor.shape)
            check(shape, kind)
            return shape, memory_of_torch(tensor), tensor
        if value.dtype.kind not in "fiub":
            raise Wrong("is an array of %s, where numbers are due" % value.dtype)
        array = numpy.ascontiguousarray(value, dtype=numpy.float32).reshape(value.shape)
        array = add_axis(array, kind)
        if kind in AXES and not bool(numpy.isfinite(array).all()):
            raise Wrong(not_finite(int((~numpy.isfinite(array)).sum()), array.size))
        shape = list(array.shape)
        check(shape, kind)
        return shape, memoryview(array.reshape(-1)).cast("B") if array.size else memoryview(b""), array


def memory_of_torch(tensor):
    """Its numbers, without numpy, which torch need not have."""
    import ctypes

    length = tensor.numel() * 4
    if not length:
        return memoryview(b"")
    return memoryview((ctypes.c_char * length).from_address(tensor.data_ptr())).cast("B")


def add_axis(tensor, kind):
    # Masks without a batch are as common as those with one, and ComfyUI's nodes take both.
    if kind == "MASK" and len(tensor.shape) == 2:
        return tensor.reshape((1,) + tuple(tensor.shape))
    if kind == "MASK" and len(tensor.shape) == 4 and tensor.shape[1] == 1:
        return tensor.reshape((tensor.shape[0],) + tuple(tensor.shape[2:]))
    return tensor


def check(shape, kind):
    axes = AXES.get(kind)
    if axes is not None and len(shape) != axes:
        wanted = {"IMAGE": "[B, H, W, C]", "MASK": "[B, H, W]", "SIGMAS": "[N]"}[kind]
        raise Wrong("has the shape %s, where %s is due" % (shape, wanted))
    if kind == "IMAGE" and shape[3] not in (1, 3, 4):
        raise Wrong("has the shape %s: a picture has 1, 3 or 4 channels, and they come last" % shape)
    if kind in ("IMAGE", "MASK") and 0 in shape:
        raise Wrong("has the shape %s: there is nothing in it" % shape)


def not_finite(wrong, all_of_them):
    return "has %d of %d numbers that are not finite (NaN or infinite)" % (wrong, all_of_them)


def shared(bytes_of):
    """A descriptor of memory with these bytes, which nobody can change any more."""
    fd = os.memfd_create("kosmograph", 0x0001 | 0x0002)  # closed in programs that are started; may be sealed
    try:
        written, length = 0, len(bytes_of)
        while written < length:
            written += os.write(fd, bytes_of[written : written + CHUNK])
        fcntl.fcntl(fd, ADD_SEALS, SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def shown(value):
    """What a sentence calls a value."""
    if value is None:
        return "None"
    if isinstance(value, (bool, int, float)):
        return "the %s %r" % (type(value).__name__, value)
    if isinstance(value, str):
        return "a text"
    return "a %s" % type(value).__name__


class Lent:
    """A value that no Python can use: a MODEL of Kosmograph's own, what another pack keeps. It can be given on."""

    unavailable = Wrong
    returned = []  # numbers of those that nobody here has any more

    def __init__(self, number, kind):
        self.__dict__.update(number=number, kind=kind)

    def __getattr__(self, name):
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        raise self._not_here()

    def _not_here(self):
        return self.unavailable("it uses a %s of Kosmograph's own or of another pack, which Python can give on and no more" % self.kind)

    def _fail(self, *_, **__):
        raise self._not_here()

    __call__ = __iter__ = __len__ = __getitem__ = __setitem__ = __contains__ = __setattr__ = _fail

    def __bool__(self):
        return True

    def __copy__(self):
        return self

    def __deepcopy__(self, _):
        return self

    def __repr__(self):
        return "<a %s, which is not here>" % self.kind

    def __del__(self):
        self.returned.append(self.number)


class Values:
    def __init__(self, arrays):
        self.arrays = arrays
        self.kept = {}
        self.next = 1

    # ---- what comes ----

    def decode(self, wire, fds):
        tag = wire[0]
        if tag == "none":
            return None
        if tag == "float":
            return float(wire[1])
        if tag in ("bool", "int", "text"):
            return wire[1]
        if tag == "tensor":
            return self.arrays.read(fds[wire[1]], wire[2], wire[3])
        if tag == "list":
            return [self.decode(item, fds) for item in wire[1]]
        if tag == "map":
            return {key: self.decode(item, fds) for key, item in wire[1]}
        if tag == "kept":
            if wire[1] not in self.kept:
                raise Wrong("is a value that this process does not hold any more")
            return self.kept[wire[1]]
        return Lent(wire[1], wire[2])

    def release(self, numbers):
        for number in numbers:
            self.kept.pop(number, None)

    # ---- what goes ----

    def encode(self, value, kind, fds):
        if value is None:
            # As in ComfyUI: what is not there goes on to whoever takes it, and means something to Python alone.
            return self.keep(value)
        if isinstance(value, Lent):
            return ["lent", value.number]
        if kind in ("IMAGE", "MASK", "SIGMAS") and not isinstance(value, (list, tuple)):
            return self.tensor(value, kind, fds)
        if kind == "LATENT":
            return self.latent(value, fds)
        if kind == "AUDIO" and isinstance(value, dict) and self.arrays.is_tensor(value.get("waveform")):
            pairs = [["waveform", self.tensor(value["waveform"], "*", fds)]]
            return ["map", pairs + [[clean(str(key)), self.whatever(other, fds)] for key, other in value.items() if key != "waveform"]]
        if kind in ("STRING", "COMBO", "BOOLEAN", "INT", "FLOAT") and not self.is_plain(value, kind):
            # Many a class gives a list, or a number for a text, under such a name, and its neighbours in the pack take it.
            return self.keep(value)
        if kind in ("STRING", "COMBO"):
            return ["text", clean(value)]
        if kind == "BOOLEAN":
            return ["bool", bool(value)]
        if kind == "INT":
            return self.integer(value)
        if kind == "FLOAT":
            return self.number(value)
        # A type of the pack's own, or any.
        if isinstance(value, bool):
            return ["bool", value]
        if isinstance(value, int) and -(2**63) <= value < 2**63:
            return ["int", value]
        if isinstance(value, float):
            return ["float", repr(value)]
        if isinstance(value, str):
            return ["text", clean(value)]
        if kind == "*" and self.arrays.crosses(value) and len(value.shape) in (3, 4):
            return self.tensor(value, "IMAGE" if len(value.shape) == 4 and value.shape[3] in (1, 3, 4) else "*", fds)
        if kind == "*" and isinstance(value, dict) and self.arrays.is_tensor(value.get("samples")):
            return self.latent(value, fds)
        return self.keep(value)

    def is_plain(self, value, kind):
        """Whether a value can be one of that type, also outside of Python."""
        if kind in ("STRING", "COMBO"):
            return isinstance(value, str)
        if self.arrays.is_tensor(value):
            # A number in a tensor is a number; several are not.
            return all(length == 1 for length in value.shape)
        if isinstance(value, float) and kind == "INT":
            return value.is_integer()
        if isinstance(value, (bool, int)) or type(value).__name__ in ("bool_", "bool"):
            return True
        return kind != "BOOLEAN" and hasattr(value, "__float__") and not isinstance(value, str)

    def encode_list(self, value, kind, fds):
        """A list of values of that type; what else can be gone through is one too."""
        if isinstance(value, (str, bytes, dict)) or not hasattr(value, "__iter__"):
            raise Wrong("is %s, where OUTPUT_IS_LIST says that a list is due" % shown(value))
        items = []
        for number, item in enumerate(value):
            try:
                items.append(self.encode(item, kind, fds))
            except Wrong as wrong:
                raise Wrong("has at %d what %s" % (number, wrong)) from None
        return ["list", items]

    def keep(self, value):
        number, self.next = self.next, self.next + 1
        self.kept[number] = value
        return ["kept", number]

    def tensor(self, value, kind, fds):
        shape, memory, owner = self.arrays.plain(value, kind)
        fds.append(shared(memory))
        del owner
        return ["tensor", len(fds) - 1, "float32", shape]

    def latent(self, value, fds):
        if not isinstance(value, dict) or "samples" not in value:
            raise Wrong("is %s, where {\"samples\": tensor} is due" % shown(value))
        pairs = [["samples", self.tensor(value["samples"], "samples", fds)]]
        shape = pairs[0][1][3]
        if len(shape) != 4:
            raise Wrong("has samples of the shape %s, where [B, C, h, w] is due" % shape)
        mask = value.get("noise_mask")
        if mask is not None:
            pairs.append(["noise_mask", self.tensor(mask, "MASK", fds)])
        numbers = value.get("batch_index")
        if numbers is not None:
            pairs.append(["batch_index", ["list", [self.integer(number) for number in numbers]]])
        for key, other in value.items():
            if key not in LATENT_KEYS and isinstance(key, str) and other is not None:
                pairs.append([clean(key), self.whatever(other, fds)])
        return ["map", pairs]

    def whatever(self, value, fds, depth=0):
        """What else lies in a latent: data as it is, anything else kept here."""
        if isinstance(value, bool):
            return ["bool", value]
        if isinstance(value, int) and -(2**63) <= value < 2**63:
            return ["int", value]
        if isinstance(value, float) and math.isfinite(value):
            return ["float", repr(value)]
        if isinstance(value, str):
            return ["text", clean(value)]
        if isinstance(value, list) and depth < 8:
            return ["list", [self.whatever(one, fds, depth + 1) for one in value]]
        return self.keep(value)

    def integer(self, value):
        if isinstance(value, float) and not value.is_integer():
            raise Wrong("is the float %r, where a whole number is due" % value)
        try:
            number = int(value.item() if hasattr(value, "item") else value if not isinstance(value, str) else "")
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise Wrong("is %s, where a whole number is due" % shown(value)) from None
        if not -(2**63) <= number < 2**64:
            raise Wrong("is %d, which has more than 64 bits" % number)
        return ["int", number]

    def number(self, value):
        try:
            number = float(value.item() if hasattr(value, "item") else value if not isinstance(value, str) else "")
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise Wrong("is %s, where a number is due" % shown(value)) from None
        if math.isnan(number) or math.isinf(number):
            raise Wrong("is %r, which is no finite number" % number)
        return ["float", repr(number)]


def clean(text):
    """As UTF-8 can have it."""
    return text.encode("utf-8", "replace").decode("utf-8")
