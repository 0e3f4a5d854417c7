#!/usr/bin/env python3
"""A host for node libraries in Python: ctypes, and numpy or torch for the pixels.

    python3 host.py LIBRARY [CLASS] [--torch]

Loads the library, prints its nodes, runs CLASS (default: the first node) on a small picture with
everything else at its default, checks that the picture came back inverted, and prints it.

nodes/abi/node.h is the specification; the structures below mirror it. Pixels are never copied on
their way in or out: both directions are DLPack.
"""

import argparse
import ctypes as c
import gc
import json
import os

# ---- node.h and dlpack.h ------------------------------------------------------------------------

KG_OK, KG_ERROR, KG_CANCELLED = 0, 1, 2
KG_NONE, KG_BOOL, KG_INT, KG_FLOAT, KG_STRING, KG_LIST, KG_MAP, KG_TENSOR, KG_OBJECT = range(9)


class Str(c.Structure):
    _fields_ = [("ptr", c.c_void_p), ("len", c.c_size_t)]

    def __str__(self):
        return c.string_at(self.ptr, self.len).decode() if self.ptr else ""


COUNT_FN = c.CFUNCTYPE(None, c.c_void_p)


class Counted(c.Structure):
    _fields_ = [("size", c.c_uint32), ("reserved", c.c_uint32),
                ("retain", COUNT_FN), ("release", COUNT_FN)]


class Payload(c.Union):
    _fields_ = [("integer", c.c_int64), ("natural", c.c_uint64), ("number", c.c_double),
                ("counted", c.c_void_p)]


class Value(c.Structure):
    _fields_ = [("kind", c.c_uint32), ("reserved", c.c_uint32), ("payload", Payload)]


class DLDevice(c.Structure):
    _fields_ = [("device_type", c.c_int32), ("device_id", c.c_int32)]


class DLDataType(c.Structure):
    _fields_ = [("code", c.c_uint8), ("bits", c.c_uint8), ("lanes", c.c_uint16)]


class DLTensor(c.Structure):
    _fields_ = [("data", c.c_void_p), ("device", DLDevice), ("ndim", c.c_int32),
                ("dtype", DLDataType), ("shape", c.POINTER(c.c_int64)),
                ("strides", c.POINTER(c.c_int64)), ("byte_offset", c.c_uint64)]


class DLManagedTensorVersioned(c.Structure):
    _fields_ = [("major", c.c_uint32), ("minor", c.c_uint32), ("manager_ctx", c.c_void_p),
                ("deleter", COUNT_FN), ("flags", c.c_uint64), ("dl_tensor", DLTensor)]


TO_DLPACK_FN = c.CFUNCTYPE(c.c_void_p, c.c_void_p)


class Tensor(c.Structure):
    _fields_ = [("base", Counted), ("dl", c.POINTER(DLManagedTensorVersioned)),
                ("to_dlpack", TO_DLPACK_FN)]


NO_MEMORY_FN = c.CFUNCTYPE(c.c_void_p)


class Context(c.Structure):
    _fields_ = [
        ("size", c.c_uint32), ("reserved", c.c_uint32),
        ("log", c.CFUNCTYPE(None, c.c_void_p, c.c_uint32, Str)),
        ("progress", c.CFUNCTYPE(c.c_int32, c.c_void_p, c.c_uint64, c.c_uint64)),
        ("fail", c.CFUNCTYPE(None, c.c_void_p, Str, Str)),
        ("property", c.CFUNCTYPE(None, c.c_void_p, Str, c.POINTER(Str))),
        ("output", c.CFUNCTYPE(None, c.c_void_p, Str)),
        # This host makes tensors alone. NULL is an answer: there is no memory for the others.
        ("new_string", NO_MEMORY_FN), ("new_list", NO_MEMORY_FN), ("new_map", NO_MEMORY_FN),
        ("new_tensor", c.CFUNCTYPE(c.c_void_p, c.c_void_p, DLDataType, c.c_int32,
                                   c.POINTER(c.c_int64))),
        # It offers nothing beyond that.
        ("extension", NO_MEMORY_FN),
    ]


class Library(c.Structure):
    _fields_ = [
        ("size", c.c_uint32), ("abi_major", c.c_uint16), ("abi_minor", c.c_uint16),
        ("descriptor", Str),
        ("run", c.CFUNCTYPE(c.c_int32, c.c_uint32, c.POINTER(Context), c.POINTER(Value),
                            c.c_size_t, c.POINTER(Value), c.c_size_t)),
        ("extension", c.c_void_p),
    ]


assert (c.sizeof(Value), c.sizeof(Tensor), c.sizeof(Context), c.sizeof(Library)) == (16, 40, 88, 40)

# ---- Counted things of this host ----------------------------------------------------------------

alive = {}  # address → [count, the structure, whatever it points at]


@COUNT_FN
def retain(address):
    alive[address][0] += 1


@COUNT_FN
def release(address):
    alive[address][0] -= 1
    if alive[address][0] == 0:
        del alive[address]


def counted(structure, *keep):
    """Gives a structure its one reference; returns its address."""
    structure.base = Counted(c.sizeof(structure), 0, retain, release)
    address = c.addressof(structure)
    alive[address] = [1, structure, keep]
    return address


# ---- Tensors: an array of numpy or torch as a kg_tensor, and back --------------------------------

capsule_new = c.pythonapi.PyCapsule_New
capsule_new.restype, capsule_new.argtypes = c.py_object, [c.c_void_p, c.c_char_p, c.c_void_p]
capsule_pointer = c.pythonapi.PyCapsule_GetPointer
capsule_pointer.restype, capsule_pointer.argtypes = c.c_void_p, [c.py_object, c.c_char_p]
# The destructor gets a capsule that is already dying: an address, never a Python object.
capsule_is_valid = c.PYFUNCTYPE(c.c_int, c.c_void_p, c.c_char_p)(
    ("PyCapsule_IsValid", c.pythonapi))
dying_pointer = c.PYFUNCTYPE(c.c_void_p, c.c_void_p, c.c_char_p)(
    ("PyCapsule_GetPointer", c.pythonapi))

VERSIONED = b"dltensor_versioned"


def new_tensor(array):
    """A kg_tensor over the memory of an array, which it keeps alive."""
    try:
        capsule = array.__dlpack__(max_version=(1, 0))
        view = DLManagedTensorVersioned.from_address(capsule_pointer(capsule, VERSIONED)).dl_tensor
    except (TypeError, ValueError):  # older than DLPack 1: the tensor alone, at the capsule's begin
        capsule = array.__dlpack__()
        view = DLTensor.from_address(capsule_pointer(capsule, b"dltensor"))
    managed = DLManagedTensorVersioned(major=1, minor=0, flags=1, dl_tensor=view)
    # The capsule is not consumed but kept: it frees its view when it is dropped.
    return counted(Tensor(dl=c.pointer(managed), to_dlpack=to_dlpack), capsule, array, managed)


@TO_DLPACK_FN
def to_dlpack(address):
    retain(address)
    managed = DLManagedTensorVersioned()
    c.pointer(managed)[0] = alive[address][1].dl[0]
    managed.manager_ctx, managed.deleter = address, delete_dlpack
    alive[c.addressof(managed)] = [1, managed, None]
    return c.addressof(managed)


@COUNT_FN
def delete_dlpack(address):
    tensor = alive.pop(address)[1].manager_ctx
    release(tensor)


@c.PYFUNCTYPE(None, c.c_void_p)
def delete_unused(capsule):
    """A capsule that nobody consumed still has its name, and its tensor must be given back."""
    if capsule_is_valid(capsule, VERSIONED):
        address = dying_pointer(capsule, VERSIONED)
        DLManagedTensorVersioned.from_address(address).deleter(address)


class FromLibrary:
    """A kg_tensor as numpy.from_dlpack and torch.from_dlpack want it."""

    def __init__(self, value):
        assert value.kind == KG_TENSOR, f"a tensor is wanted, but the kind is {value.kind}"
        self.tensor = Tensor.from_address(value.payload.counted)

    def __dlpack__(self, **_):
        managed = self.tensor.to_dlpack(c.addressof(self.tensor))
        return capsule_new(managed, VERSIONED, c.cast(delete_unused, c.c_void_p))

    def __dlpack_device__(self):
        device = self.tensor.dl[0].dl_tensor.device
        return device.device_type, device.device_id


# ---- A call --------------------------------------------------------------------------------------


class NodeFailure(Exception):
    """The sentence of a node, and the input at fault."""


def run(library, node, inputs, n_outputs, empty_tensor):
    """Runs a node; `empty_tensor` makes an array of a shape for what the node allocates."""
    failure = ["it gave no reason", ""]
    properties = {"device": "cpu"}
    texts = []

    def fail(_, input, sentence):
        failure[:] = str(sentence), str(input)

    def know(_, name, value):
        texts.append(c.create_string_buffer(properties.get(str(name), "").encode()))
        value[0] = Str(c.addressof(texts[-1]), len(texts[-1]) - 1)

    def tensor(_, dtype, ndim, shape):
        is_f32 = (dtype.code, dtype.bits, dtype.lanes) == (2, 32, 1)
        return new_tensor(empty_tensor(shape[:ndim])) if is_f32 else None

    functions = {
        "log": lambda _, level, message: print(f"log {level}: {message}"),
        "progress": lambda _, step, steps: 0,
        "fail": fail,
        "property": know,
        "output": lambda _, text: print(f"output: {text}"),
        "new_tensor": tensor,
    }
    types = dict(Context._fields_)
    functions = {name: types[name](function) for name, function in functions.items()}
    nothing = NO_MEMORY_FN(lambda: None)
    context = Context(size=c.sizeof(Context), new_string=nothing, new_list=nothing,
                      new_map=nothing, extension=nothing, **functions)
    outputs = (Value * n_outputs)()
    arguments = (Value * len(inputs))(*inputs)
    status = library.run(node, c.byref(context), arguments, len(inputs), outputs, n_outputs)
    if status != KG_OK:
        for value in outputs:
            give_back(value)
        raise NodeFailure(*failure)
    return list(outputs)


def give_back(value):
    if value.kind >= KG_STRING:
        Counted.from_address(value.payload.counted).release(value.payload.counted)


def load(path):
    """The library and its descriptor."""
    shared = c.CDLL(os.path.abspath(path))
    shared.kosmograph_library_v1.restype = c.POINTER(Library)
    library = shared.kosmograph_library_v1()[0]
    assert library.abi_major == 1 and library.size >= c.sizeof(Library), "another boundary"
    return library, json.loads(str(library.descriptor))


def value_of(input, image):
    """The picture for an IMAGE, the default for everything else."""
    if input["type"] == "IMAGE":
        return Value(KG_TENSOR, 0, Payload(counted=new_tensor(image)))
    if input["type"] == "FLOAT":
        return Value(KG_FLOAT, 0, Payload(number=input["default"]))
    if input["type"] == "INT":
        return Value(KG_INT, 0, Payload(integer=input["default"]))
    if input["type"] == "BOOLEAN":
        return Value(KG_BOOL, 0, Payload(integer=input["default"]))
    raise SystemExit(f"this host has no value for {input['name']}, {input['type']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library")
    parser.add_argument("node", nargs="?", help="the class to run; the first one of the library")
    parser.add_argument("--torch", action="store_true", help="with torch's tensors, not numpy's")
    arguments = parser.parse_args()

    import numpy
    pixels = numpy.linspace(0, 1, 2 * 3 * 3, dtype=numpy.float32).reshape(1, 2, 3, 3)
    image, from_dlpack = pixels, numpy.from_dlpack
    empty = lambda shape: numpy.zeros(shape, numpy.float32)
    if arguments.torch:
        import torch
        image, from_dlpack, empty = torch.from_numpy(pixels), torch.from_dlpack, torch.zeros

    library, descriptor = load(arguments.library)
    nodes = descriptor["nodes"]
    for node in nodes:
        print(node["class"], [input["name"] for input in node["inputs"]], sep=": ")
    names = [node["class"] for node in nodes]
    index = names.index(arguments.node) if arguments.node else 0
    node = nodes[index]

    inputs = [value_of(input, image) for input in node["inputs"]]
    outputs = run(library, index, inputs, len(node["outputs"]), empty)
    result = from_dlpack(FromLibrary(outputs[0]))
    for value in outputs + inputs:
        give_back(value)
    print(f"{node['class']} gives {type(result).__module__}'s array of shape {tuple(result.shape)}:")
    print(result)
    assert numpy.allclose(numpy.asarray(result), 1 - pixels), "the picture is not inverted"

    # A node says what is wrong, and where.
    try:
        run(library, index, [Value() for _ in inputs], len(node["outputs"]), empty)
    except NodeFailure as failure:
        sentence, input = failure.args
        print(f"without a picture: {input}: {sentence}")
    else:
        raise AssertionError("the node ran without a picture")

    del result
    gc.collect()
    assert not alive, f"{len(alive)} things were never released"
    print("every reference was given back")


if __name__ == "__main__":
    main()
