"""A workflow written in Python: node classes are functions, made of the program's catalogue.

    k = kosmograph.Graph()
    model, clip, vae = k.CheckpointLoaderSimple(ckpt_name="tiny/sd")
    k.save("workflow.json")
"""

from __future__ import annotations

import inspect
import json
import os
from typing import Any, Callable, Generic, Iterator, Mapping, TypeVar

from ._classes import Classes
from ._errors import KosmographError


T = TypeVar("T", covariant=True)


class Socket(Generic[T]):
    """One output of a node: given as an input, it is a link. T is its type, where the wheel's stub says it."""

    __slots__ = ("index", "name", "node", "type")

    def __init__(self, node: "Node", index: int, name: str, type: str) -> None:
        self.node, self.index, self.name, self.type = node, index, name, type

    def __repr__(self) -> str:
        return "<%s %s of node %s>" % (self.type, self.name, self.node.id)


class Node:
    """A node of a graph. Its outputs unpack (`model, clip, vae = node`), or have names and numbers."""

    def __init__(self, id: str, class_type: str, inputs: dict[str, Any], outputs: list[tuple[str, str]]) -> None:
        self.id, self.class_type, self.inputs = id, class_type, inputs
        self.outputs: list[Socket[Any]] = [Socket(self, index, name, kind) for index, (name, kind) in enumerate(outputs)]

    def __iter__(self) -> Iterator[Socket[Any]]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)

    def __getitem__(self, key: int | str) -> Socket[Any]:
        if isinstance(key, int):
            return self.outputs[key]
        for output in self.outputs:
            if output.name == key:
                return output
        raise KeyError("%s has no output %r; it has %s" % (self.class_type, key, [output.name for output in self.outputs]))

    def __repr__(self) -> str:
        return "<node %s, %s>" % (self.id, self.class_type)


class Graph(Classes):
    """See the module. `catalogue` is ComfyUI's object_info; without one the program is asked, once for each session."""

    def __init__(self, session: Any = None, catalogue: Mapping[str, Any] | None = None) -> None:
        self._session, self._catalogue = session, catalogue
        self.nodes: list[Node] = []

    @property
    def catalogue(self) -> Mapping[str, Any]:
        if self._catalogue is None:
            from . import _session

            self._catalogue = (self._session or _session.default()).catalogue()
        return self._catalogue

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.catalogue]

    def __getattr__(self, class_type: str) -> Callable[..., Node]:
        if class_type.startswith("_"):
            raise AttributeError(class_type)
        return self.node_class(class_type)

    def node_class(self, class_type: str) -> Callable[..., Node]:
        """The function that adds a node of the class, also of one whose name is no name in Python ("Image Resize")."""
        info = self.catalogue.get(class_type)
        if info is None:
            import difflib

            near = difflib.get_close_matches(class_type, list(self.catalogue), 1)
            raise AttributeError('no library has the class "%s"%s' % (class_type, '; did you mean "%s"?' % near[0] if near else ""))
        required, optional = info["input"].get("required", {}), info["input"].get("optional", {})
        known = {**required, **optional}
        outputs = list(zip(info["output_name"], info["output"]))

        def add(**inputs: Any) -> Node:
            for name in inputs:
                if name not in known:
                    raise TypeError("%s has no input %r; it has %s" % (class_type, name, ", ".join(known)))
            for name, what in required.items():
                options = what[1] if len(what) > 1 else {}
                if name not in inputs and "default" not in options and not (isinstance(what[0], list) and what[0]):
                    raise TypeError("%s needs its input %s (%s)" % (class_type, name, what[0] if isinstance(what[0], str) else "COMBO"))
            wired = {}
            for name, value in inputs.items():
                if isinstance(value, Node):
                    if len(value) != 1:
                        raise TypeError("input %s of %s: node %s has %d outputs; one of them is meant" % (name, class_type, value.id, len(value)))
                    value = value[0]
                if isinstance(value, Socket):
                    if value.node not in self.nodes:
                        raise KosmographError("input %s of %s: %r is of another graph" % (name, class_type, value))
                    _fits(value, known[name][0], name, class_type)
                wired[name] = value
            node = Node(str(len(self.nodes) + 1), class_type, wired, outputs)
            self.nodes.append(node)
            return node

        add.__name__ = add.__qualname__ = class_type
        add.__doc__ = info.get("description") or class_type
        parameters = []
        for name, what in known.items():
            options = what[1] if len(what) > 1 else {}
            default = options.get("default", None if name in optional else inspect.Parameter.empty)
            if name.isidentifier():
                parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default))
        add.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return add

    def to_dict(self) -> dict[str, Any]:
        """The workflow in the API format."""

        def value(given: Any) -> Any:
            return [given.node.id, given.index] if isinstance(given, Socket) else given

        return {
            node.id: {"class_type": node.class_type, "inputs": {name: value(given) for name, given in node.inputs.items()}}
            for node in self.nodes
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON, which `kosmograph run` and ComfyUI read."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.to_dict(), file, indent=2, ensure_ascii=False)


def _fits(socket: Socket[Any], wanted: Any, name: str, class_type: str) -> None:
    if isinstance(wanted, list):
        wanted = "COMBO"
    kinds = {kind.strip() for kind in str(wanted).split(",")}
    given = {kind.strip() for kind in socket.type.split(",")}
    plain = {"STRING", "COMBO"}
    if "*" in kinds | given or kinds & given or (kinds & plain and given & plain):
        return
    raise TypeError("input %s of %s takes %s, and %r is a %s" % (name, class_type, wanted, socket, socket.type))
