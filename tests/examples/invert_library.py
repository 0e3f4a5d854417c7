"""A node library in Python: cffi puts the interpreter and the code below into a shared library that exports what
node.h asks for.

    python3 -m pip install cffi numpy
    python3 tests/examples/invert_library.py nodes/abi .
    kosmograph check-plugin ./libpyinvert.so

node.h is the specification; what it says is not repeated here. A Python that links into other programs is wanted
(a libpython3.x.so), and one interpreter serves all such libraries of a process.
"""

import os
import sys
import sysconfig

# What of node.h is used below: "..." leaves the rest of a struct to the header itself.
DECLARATIONS = """
typedef int32_t kg_status;
typedef struct { const char *ptr; size_t len; } kg_str;
typedef struct kg_counted { void (*release)(struct kg_counted *self); ...; } kg_counted;
typedef struct { uint8_t code, bits; uint16_t lanes; } DLDataType;
typedef struct { void *data; int32_t ndim; DLDataType dtype; int64_t *shape, *strides; uint64_t byte_offset; ...; } DLTensor;
typedef struct { DLTensor dl_tensor; ...; } DLManagedTensorVersioned;
typedef struct kg_tensor { kg_counted base; const DLManagedTensorVersioned *dl; ...; } kg_tensor;
typedef struct kg_string kg_string;
typedef struct kg_list kg_list;
typedef struct kg_map kg_map;
typedef struct kg_object kg_object;
typedef struct {
  uint32_t kind;
  union {
    int64_t boolean, integer;
    uint64_t natural;
    double number;
    kg_string *string;
    kg_list *list;
    kg_map *map;
    kg_tensor *tensor;
    kg_object *object;
    kg_counted *counted;
  } as;
  ...;
} kg_value;
typedef struct kg_context {
  int32_t (*progress)(const struct kg_context *self, uint64_t step, uint64_t steps);
  void (*fail)(const struct kg_context *self, kg_str input, kg_str sentence);
  kg_tensor *(*new_tensor)(const struct kg_context *self, DLDataType dtype, int32_t ndim, const int64_t *shape);
  ...;
} kg_context;
typedef struct {
  uint32_t size;
  uint16_t abi_major, abi_minor;
  kg_str descriptor;
  kg_status (*run)(uint32_t node, const kg_context *context, const kg_value *inputs, size_t n_inputs,
                   kg_value *outputs, size_t n_outputs);
  ...;
} kg_library;
static const int KG_OK, KG_ERROR, KG_CANCELLED, KG_NONE, KG_FLOAT, KG_TENSOR, KG_ABI_MAJOR, KG_ABI_MINOR;
const DLTensor *kg_tensor_cpu(kg_tensor *tensor);
"""

# What C calls: the library's one symbol, and the function that the nodes are run by.
EXPORTED = """
const kg_library *kosmograph_library_v1(void);
kg_status pyinvert_run(uint32_t node, const kg_context *context, const kg_value *inputs, size_t n_inputs,
                       kg_value *outputs, size_t n_outputs);
"""

LIBRARY = '''
import json
import locale

import numpy
from pyinvert import ffi, lib

# The interpreter has just changed it, for the whole process, which is the host's.
locale.setlocale(locale.LC_CTYPE, "C")

DESCRIPTOR = json.dumps({"name": "pyinvert", "version": "1.0.0", "nodes": [{
    "class": "PyImageInvert", "doc": "Inverts an image.", "category": "image",
    "inputs": [{"name": "image", "type": "IMAGE"},
               {"name": "strength", "type": "FLOAT", "doc": "0 leaves the picture as it is.",
                "default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}],
    "outputs": [{"name": "image", "type": "IMAGE"}]}]}).encode()
descriptor = ffi.new("char[]", DESCRIPTOR)
library = ffi.new("kg_library *")
library.size = ffi.sizeof("kg_library")
library.abi_major, library.abi_minor = lib.KG_ABI_MAJOR, lib.KG_ABI_MINOR
library.descriptor.ptr, library.descriptor.len = descriptor, len(DESCRIPTOR)
library.run = lib.pyinvert_run


class Refused(Exception):
    """A sentence for the person who runs the workflow, and the input at fault."""

    def __init__(self, sentence, name=""):
        super().__init__(sentence)
        self.name = name


class Cancelled(Exception):
    """The person wants no more of it."""


def text(string):
    """Borrowed text; whatever keeps it alive comes with it."""
    data = string.encode()
    keep = ffi.new("char[]", data)
    return ffi.new("kg_str *", {"ptr": keep, "len": len(data)})[0], keep


def array(dl):
    """The numbers of a tensor in the CPU's memory, without a copy, wherever its strides lead."""
    shape = [dl.shape[axis] for axis in range(dl.ndim)]
    strides = None
    if dl.strides != ffi.NULL:
        strides = [4 * dl.strides[axis] for axis in range(dl.ndim)]
    last = 4 + sum((n - 1) * step for n, step in zip(shape, strides or numpy.zeros(shape, "f4").strides))
    memory = ffi.buffer(ffi.cast("char *", dl.data) + dl.byte_offset, last)
    return numpy.ndarray(shape, numpy.float32, memory, strides=strides)


def payload(value):
    """kg_value.as, which is a word of Python's."""
    return getattr(value, "as")


def read_image(value, name):
    if value.kind != lib.KG_TENSOR:
        raise Refused("an image [B, H, W, C] is wanted", name)
    dl = lib.kg_tensor_cpu(payload(value).tensor)
    if dl == ffi.NULL:
        raise Refused("the image cannot be had in the CPU's memory", name)
    if (dl.dtype.code, dl.dtype.bits, dl.dtype.lanes) != (2, 32, 1):
        raise Refused("the image is not of f32", name)
    if dl.ndim != 4 or 0 in [dl.shape[axis] for axis in range(dl.ndim)]:
        raise Refused("the image is not [B, H, W, C], none of them 0", name)
    return dl


def read_number(value, name, least, most):
    if value.kind != lib.KG_FLOAT:
        raise Refused("a number is wanted", name)
    number = payload(value).number
    if not least <= number <= most:
        raise Refused(f"{number} is outside its range, {least} to {most}", name)
    return number


def image_invert(context, inputs, outputs):
    dl = read_image(inputs[0], "image")
    strength = read_number(inputs[1], "strength", 0.0, 1.0)
    made = context.new_tensor(context, dl.dtype, dl.ndim, dl.shape)
    if made == ffi.NULL:
        raise Refused("there is no memory for the output")
    image, inverted = array(dl), array(ffi.addressof(made.dl.dl_tensor))
    for picture in range(len(image)):
        if context.progress(context, picture, len(image)):
            made.base.release(ffi.addressof(made.base))
            raise Cancelled
        x = image[picture]
        inverted[picture] = x + numpy.float32(strength) * (1 - 2 * x)
    outputs[0].kind = lib.KG_TENSOR
    payload(outputs[0]).tensor = made


@ffi.def_extern(error=1)
def pyinvert_run(node, context, inputs, n_inputs, outputs, n_outputs):
    try:
        if node != 0:
            raise Refused(f"there is no node {node}: the library has 1")
        if (n_inputs, n_outputs) != (2, 1):
            raise Refused(f"PyImageInvert has 2 inputs and 1 output, not {n_inputs} and {n_outputs}")
        image_invert(context, inputs, outputs)
        return lib.KG_OK
    except Cancelled:
        return lib.KG_CANCELLED
    except Exception as error:  # nothing may unwind into whoever calls
        (name, kept), (sentence, keep) = text(getattr(error, "name", "")), text(str(error) or repr(error))
        context.fail(context, name, sentence)
        return lib.KG_ERROR


@ffi.def_extern()
def kosmograph_library_v1():
    return library
'''


def build(header_folder, folder):
    """Compiles libpyinvert.so into `folder`, against the node.h of `header_folder`."""
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(DECLARATIONS)
    ffi.embedding_api(EXPORTED)
    # The interpreter in the library finds the packages of the one that builds it, of a virtual environment's, too.
    packages = [folder for folder in sys.path if folder.endswith("-packages")]
    ffi.embedding_init_code(f"import sys\nsys.path += {packages!r}\n{LIBRARY}")
    # The host opens libraries with RTLD_LOCAL, but Python's own modules look for the interpreter among all symbols.
    interpreter = sysconfig.get_config_var("INSTSONAME")
    source = f'''
        #include <dlfcn.h>
        #include "node.h"
        __attribute__((constructor)) static void show_the_interpreter(void) {{
          dlopen("{interpreter}", RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
        }}'''
    ffi.set_source("pyinvert", source, include_dirs=[os.path.abspath(header_folder)])
    return ffi.compile(tmpdir=folder, target="libpyinvert.*")


if __name__ == "__main__":
    print(build(*sys.argv[1:3]))
