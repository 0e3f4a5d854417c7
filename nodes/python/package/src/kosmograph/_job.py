"""One job: what happens in it, and what came of it."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator

from ._errors import Cancelled, KosmographError, NodeFailed, Refused
from ._memory import Memory, Tensor

if TYPE_CHECKING:
    import numpy
    import PIL.Image
    import torch


class Picture:
    """A file that a job made, and the numbers that it was made of where they came in memory."""

    def __init__(self, path: str, node: str, tensor: Tensor | None = None, row: int = 0) -> None:
        self.path, self.node, self._tensor, self._row = Path(path), node, tensor, row

    @property
    def in_memory(self) -> bool:
        """Whether `numpy` and `torch` give what was computed, and not what the file has, which is rounded to bytes."""
        return self._tensor is not None

    def pil(self) -> PIL.Image.Image:
        """The file, as Pillow has it, read now."""
        from PIL import Image

        with Image.open(self.path) as image:
            image.load()
            return image.copy()

    def numpy(self) -> numpy.ndarray[Any, numpy.dtype[numpy.float32]]:
        """[H, W, C], f32 from 0 to 1. `in_memory` says where from; of a file Pillow is needed."""
        if self._tensor is not None:
            array: numpy.ndarray[Any, numpy.dtype[numpy.float32]] = self._tensor.numpy()[self._row]
            return array
        import numpy

        bytes_of = numpy.asarray(self.pil())
        array = bytes_of.astype(numpy.float32) / numpy.float32(255.0)
        return array if array.ndim == 3 else array[:, :, None]

    def torch(self) -> torch.Tensor:
        """[1, H, W, C], f32 from 0 to 1: ComfyUI's IMAGE."""
        import torch

        if self._tensor is not None:
            return self._tensor.torch()[self._row : self._row + 1]
        return torch.from_numpy(self.numpy())[None]

    def _repr_png_(self) -> bytes | None:
        return self.path.read_bytes() if self.path.suffix == ".png" else None

    def __repr__(self) -> str:
        return "<Picture %s of node %s>" % (self.path, self.node)


class Result:
    """What a job made. tensors: by output node what it was given, see Tensor; empty where nothing came in memory."""

    def __init__(
        self,
        pictures: list[Picture],
        outputs: dict[str, list[Any]],
        tensors: dict[str, list[Tensor]],
        seconds: float,
        executed: int,
        cached: int,
    ) -> None:
        self.pictures, self.outputs, self.tensors = pictures, outputs, tensors
        self.seconds, self.executed, self.cached = seconds, executed, cached

    def __repr__(self) -> str:
        return "<Result: %d pictures, %d nodes run, %d cached, %.2f s>" % (len(self.pictures), self.executed, self.cached, self.seconds)


class Job:
    """A job that was submitted. Its events are an iterator, for one reader; `result()` waits for its end."""

    def __init__(self, id: str, cancel: Callable[[], None]) -> None:
        self.id, self._cancel = id, cancel
        self._events: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._kept: list[dict[str, Any]] = []
        self._tensors: dict[str, list[Tensor]] = {}
        self._memory: Memory | None = None
        self._code: int | None = None
        self._lost: str | None = None

    # ---- from the session ----

    def _hear(self, event: dict[str, Any]) -> None:
        if event["event"] == "job_done":
            self._end(event["code"])
            return
        if event["event"] == "tensor":
            if self._memory is not None:
                tensor = self._memory.take(event["node"], event["input"], event["offset"], event["shape"])
                self._tensors.setdefault(tensor.node, []).append(tensor)
            return
        if event["event"] in ("error", "output", "done", "interrupted"):
            self._kept.append(event)
        self._events.put(event)

    def _end(self, code: int | None, lost: str | None = None) -> None:
        if not self._ended.is_set():
            if self._memory is not None:
                self._memory.close()
            self._code, self._lost = code, lost
            self._ended.set()
            self._events.put(None)

    # ---- for whoever waits ----

    def cancel(self) -> None:
        """Stops it at the next step, or ends the node that does not listen. A job that waits never begins."""
        self._cancel()

    def done(self) -> bool:
        return self._ended.is_set()

    def events(self) -> Iterator[dict[str, Any]]:
        """What happens, as docs/events.md has it, until the job ends."""
        while True:
            event = self._events.get()
            if event is None:
                self._events.put(None)
                return
            yield event

    def next_event(self, timeout: float) -> dict[str, Any] | None:
        """The next of them, or None where there is none after `timeout` s or the job has ended: for who has to look elsewhere
        in between."""
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            return None
        if event is None:
            self._events.put(None)
        return event

    def result(self, timeout: float | None = None) -> Result:
        """What came of it.

        Raises Refused, NodeFailed (whose `result` has what was made all the same), Cancelled, TimeoutError, and
        KosmographError where the program itself ended.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError("the job %s is not done after %s s" % (self.id, timeout))
        errors = [event for event in self._kept if event["event"] == "error"]
        if self._lost is not None:
            raise KosmographError(self._lost, errors)
        if self._code == 130:
            raise Cancelled("the job %s was cancelled" % self.id)
        if self._code == 2:
            raise Refused(errors)
        result = self._made()
        if errors:
            failed = NodeFailed(errors)
            failed.result = result
            raise failed
        return result

    def _made(self) -> Result:
        outputs: dict[str, list[Any]] = {}
        files: dict[str, list[str]] = {}
        done: dict[str, Any] = {}
        for event in self._kept:
            if event["event"] == "output":
                outputs.setdefault(event["node"], []).append(event["output"])
                files.setdefault(event["node"], []).extend(event["files"])
            elif event["event"] == "done":
                done = event
        pictures: list[Picture] = []
        for node, paths in files.items():
            rows = [(tensor, row) for tensor in self._tensors.get(node, []) for row in range(tensor.shape[0])]
            # A file for each picture of the batch; an animation is one file of many, and has none of its own.
            if len(rows) == len(paths):
                pictures += [Picture(path, node, tensor, row) for path, (tensor, row) in zip(paths, rows)]
            else:
                pictures += [Picture(path, node) for path in paths]
        return Result(pictures, outputs, self._tensors, done.get("seconds", 0.0), done.get("executed", 0), done.get("cached", 0))
