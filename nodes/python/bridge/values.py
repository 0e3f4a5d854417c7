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
        raise Wrong("is a %s of Kosmograph's own, which no Python can use" % wire[1])

    def release(self, numbers):
        for number in numbers:
            self.kept.pop(number, None)

    # ---- what goes ----

    def encode(self, value, kind, fds):
        if value is None:
            # As in ComfyUI: what is not there goes on to whoever takes it, and means something to Python alone.
            return self.keep(value)
        if kind in ("IMAGE", "MASK", "SIGMAS"):
            return self.tensor(value, kind, fds)
        if kind == "LATENT":
            return self.latent(value, fds)
        if kind in ("STRING", "COMBO"):
            if isinstance(value, str):
                return ["text", clean(value)]
            raise Wrong("is %s, where a text is due" % shown(value))
        if kind == "BOOLEAN":
            if isinstance(value, (bool, int)) or type(value).__name__ == "bool_":
                return ["bool", bool(value)]
            raise Wrong("is %s, where True or False is due" % shown(value))
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
        if kind == "*" and self.arrays.is_tensor(value) and len(value.shape) in (3, 4):
            return self.tensor(value, "IMAGE" if len(value.shape) == 4 and value.shape[3] in (1, 3, 4) else "*", fds)
        if kind == "*" and isinstance(value, dict) and self.arrays.is_tensor(value.get("samples")):
            return self.latent(value, fds)
        return self.keep(value)

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
        return ["map", pairs]

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
