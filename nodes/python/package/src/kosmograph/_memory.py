"""Pictures that cross in memory: an anonymous file of this process, which the program opens by its name below /proc.

The memory is this process's, so that it goes with it, however it ends; and the program's end costs it nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Sequence

if TYPE_CHECKING:
    import numpy
    import torch

#: What the program takes, by its name: how many bytes a number has.
WIDTHS = {"uint8": 1, "float32": 4}
#: Modes of Pillow whose bytes are a picture as they are, and the channels of each.
MODES = {"L": (), "RGB": (3,), "RGBA": (4,)}
#: Modes that Pillow turns into one of those without a loss that would be seen.
TURNED = {"1": "L", "LA": "RGBA", "PA": "RGBA", "P": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "RGBX": "RGB", "La": "RGBA", "RGBa": "RGBA"}


def there_is() -> bool:
    """Whether the system has such memory: Linux does."""
    return hasattr(os, "memfd_create")


class Given:
    """A picture for the program: its numbers in row-major order."""

    def __init__(self, dtype: str, shape: Sequence[int], data: Any) -> None:
        self.dtype, self.shape, self.data = dtype, [int(length) for length in shape], data


def given(place: str, value: Any) -> Given:
    """What `inputs` gives to `place`: an array of numpy, a tensor of torch, or a picture of Pillow.

    Raises TypeError for what is none, and for numbers that are neither bytes nor floats. Shapes are looked at by the
    program, which knows what the place takes.
    """
    here = 'inputs["%s"]' % place
    module = type(value).__module__.split(".")[0]
    if module == "torch" and hasattr(value, "detach"):
        return _of_torch(here, value)
    if module == "PIL" or (hasattr(value, "mode") and hasattr(value, "tobytes")):
        mode = TURNED.get(value.mode, value.mode)
        if mode not in MODES:
            raise TypeError("%s is a picture of mode %s; L, RGB and RGBA are taken" % (here, value.mode))
        picture = value if mode == value.mode else value.convert(mode)
        width, height = picture.size
        return Given("uint8", (height, width, *MODES[mode]), picture.tobytes())
    if hasattr(value, "__array__"):
        return _of_numpy(here, value)
    raise TypeError("%s is a %s; an array of numpy, a tensor of torch or a picture of Pillow is taken" % (here, type(value).__name__))


def _of_numpy(here: str, value: Any) -> Given:
    import numpy

    array = numpy.asarray(value)
    if array.dtype == numpy.uint8:
        array = numpy.ascontiguousarray(array)
        return Given("uint8", array.shape, array.tobytes())
    if array.dtype.kind not in "fb":
        raise TypeError("%s is an array of %s; bytes are given as uint8, and floats from 0 to 1" % (here, array.dtype))
    return Given("float32", array.shape, array.astype(numpy.float32).tobytes())


def _of_torch(here: str, value: Any) -> Given:
    import ctypes

    import torch

    tensor = value.detach().to("cpu")
    if tensor.dtype != torch.uint8:
        if not (tensor.is_floating_point() or tensor.dtype == torch.bool):
            raise TypeError("%s is a tensor of %s; bytes are given as uint8, and floats from 0 to 1" % (here, str(tensor.dtype)[6:]))
        tensor = tensor.to(torch.float32)
    tensor = tensor.contiguous()
    # Without numpy, which torch need not have.
    data = ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size()) if tensor.numel() else b""
    return Given("uint8" if tensor.dtype == torch.uint8 else "float32", tensor.shape, data)


class Memory:
    """One job's. First what is given to it lies there, then what it hands over."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("kosmograph", os.MFD_CLOEXEC)
        self.path = "/proc/%d/fd/%d" % (os.getpid(), self._fd)

    def add(self, picture: Given) -> dict[str, Any]:
        """Where the program finds it."""
        offset = os.lseek(self._fd, 0, os.SEEK_END)
        left = memoryview(picture.data)
        while left:
            left = left[os.write(self._fd, left) :]
        return {"path": self.path, "offset": offset, "dtype": picture.dtype, "shape": picture.shape}

    def take(self, node: str, input: str, offset: int, shape: Sequence[int]) -> Tensor:
        """What lies there, copied: a mapping of Python's holds a descriptor for as long as it is there, and a notebook may
        keep more results than it may have descriptors."""
        length = WIDTHS["float32"]
        for axis in shape:
            length *= axis
        memory = bytearray(length)
        done, left = 0, memoryview(memory)
        while done < length:
            read = os.preadv(self._fd, [left[done:]], offset + done)
            if read == 0:
                raise ValueError("there are %d bytes of %d" % (done, length))
            done += read
        return Tensor(node, input, shape, memory)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Tensor:
    """What an output node was given to save or to show: f32 from 0 to 1, [B, H, W, C], as it was computed.

    It lies in memory of this process alone: it may be changed.
    """

    def __init__(self, node: str, input: str, shape: Sequence[int], memory: bytearray) -> None:
        self.node, self.input, self.shape, self._memory = node, input, tuple(shape), memory

    def numpy(self) -> numpy.ndarray[Any, numpy.dtype[numpy.float32]]:
        """Without a copy."""
        import numpy

        return numpy.frombuffer(self._memory, dtype=numpy.float32).reshape(self.shape)

    def torch(self) -> torch.Tensor:
        """Without a copy."""
        import torch

        return torch.frombuffer(self._memory, dtype=torch.float32).reshape(self.shape)

    def __repr__(self) -> str:
        return "<Tensor %s at the input %s of node %s>" % (list(self.shape), self.input, self.node)
