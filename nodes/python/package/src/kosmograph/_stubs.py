"""The catalogue as a stub: `python -m kosmograph stubs` prints it, and with --install puts it where editors look.

Each class becomes a method of Graph with its inputs, their types, defaults and documentation; what it gives are sockets of
a type, so that a checker finds a LATENT at an input for an IMAGE.
"""

from __future__ import annotations

import argparse
import keyword
from pathlib import Path
from typing import Any, Iterable, Mapping

#: More choices than these say less than the word str.
MOST_CHOICES = 60
#: What values of a widget are, in Python.
PLAIN = {"INT": "int", "FLOAT": "float", "STRING": "str", "BOOLEAN": "bool"}

HEAD = '''# Made by `python -m kosmograph stubs`, of %d classes: not to be changed by hand.
from typing import Any, Generic, Iterator, Literal, Tuple, TypeVar, Union

from ._graph import Node, Socket

_T = TypeVar("_T", covariant=True)

class One(Node, Generic[_T]):
    """A node with one output: it can be given where the output can."""

    def __iter__(self) -> Iterator[Socket[_T]]: ...
    def __getitem__(self, key: Union[int, str]) -> Socket[_T]: ...

'''


def text(catalogue: Mapping[str, Any]) -> str:
    """The stub of the classes whose names are names in Python; others are for Graph.node_class."""
    kinds: set[str] = set()
    results: list[str] = []
    methods: list[str] = []
    for class_type, info in sorted(catalogue.items()):
        if not _is_name(class_type):
            continue
        outputs = [_socket(kind, kinds) for kind in info["output"]]
        if len(outputs) > 1:
            # Unpacked it is a tuple; a Node it is, too.
            gives = "_%s" % class_type
            results.append("class %s(Tuple[%s], Node): ...  # type: ignore[misc]\n" % (gives, ", ".join(outputs)))
        else:
            gives = "One[%s]" % outputs[0][len("Socket[") : -1] if outputs else "Node"
        methods.append(_method(class_type, info, gives, kinds))
    markers = "".join("class %s: ...\n" % kind for kind in sorted(kinds))
    return HEAD % len(methods) + markers + "\n" + "".join(results) + "\nclass Classes:\n" + "\n".join(methods)


def _method(class_type: str, info: Mapping[str, Any], gives: str, kinds: set[str]) -> str:
    required, optional = info["input"].get("required", {}), info["input"].get("optional", {})
    parameters, documents, unnamed = [], [], False
    for name, what in {**required, **optional}.items():
        options = what[1] if len(what) > 1 else {}
        if not _is_name(name):
            unnamed = True
            continue
        has_value = name in optional or "default" in options or (isinstance(what[0], list) and bool(what[0]))
        kind = _taken(what[0], kinds)
        if name in optional:
            kind = "Union[%s, None]" % kind
        parameters.append("%s: %s%s" % (name, kind, " = ..." if has_value else ""))
        documents.append(_line(name, options))
    stars = ["*"] if parameters else []
    signature = ", ".join(["self", *stars, *parameters] + (["**more: Any"] if unnamed else []))
    words = [str(info.get("description") or info.get("display_name") or class_type), "", *documents]
    document = "\n        ".join("\n".join(words).rstrip().replace("\\", "\\\\").replace('"""', "'''").splitlines())
    return '    def %s(%s) -> %s:\n        """%s"""\n' % (class_type, signature, gives, document.rstrip('"'))


def _line(name: str, options: Mapping[str, Any]) -> str:
    said = " ".join(str(options.get("tooltip", "")).split())
    limits = ", ".join("%s %r" % (key, options[key]) for key in ("default", "min", "max") if key in options and options[key] != "")
    return "%s: %s%s" % (name, said, (" (%s)" % limits) if limits else "")


def _taken(kind: Any, kinds: set[str]) -> str:
    """What an input takes: values, where it is a widget, and links."""
    if isinstance(kind, list):
        choices = [choice for choice in kind if isinstance(choice, str)]
        listed = "Literal[%s], " % ", ".join(map(repr, choices)) if 0 < len(choices) <= MOST_CHOICES else ""
        return "Union[%sstr, Socket[Any], One[Any]]" % listed
    one_of = [part.strip() for part in str(kind).split(",")]
    if "*" in one_of:
        return "Any"
    types: list[str] = [PLAIN[part] for part in one_of if part in PLAIN]
    for part in one_of:
        marker = _marker(part, kinds)
        types += ["Socket[%s]" % marker, "One[%s]" % marker]
    return "Union[%s]" % ", ".join(types)


def _socket(kind: Any, kinds: set[str]) -> str:
    if isinstance(kind, list):
        return "Socket[Any]"
    one_of = [part.strip() for part in str(kind).split(",")]
    # One that may be of several types, or of any, is let through: the plan looks at it.
    return "Socket[%s]" % (_marker(one_of[0], kinds) if len(one_of) == 1 and one_of[0] != "*" else "Any")


def _marker(kind: str, kinds: set[str]) -> str:
    if kind in ("COMBO", "STRING"):
        # Texts and choices go into each other.
        kind = "STRING"
    if not _is_name(kind):
        return "Any"
    kinds.add(kind)
    return kind


def _is_name(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("_")


def main(arguments: Iterable[str]) -> None:
    """The command `python -m kosmograph stubs`."""
    from ._session import Session

    parser = argparse.ArgumentParser(prog="python -m kosmograph stubs", description="The node classes, for editors and type checkers")
    for option in ("--models", "--plugins", "--python-nodes"):
        parser.add_argument(option, action="append", default=[], metavar="DIR", help="as of kosmograph run")
    parser.add_argument("--install", action="store_true", help="put it beside the package, where editors look, instead of printing it")
    asked = parser.parse_args(list(arguments))
    made = text(Session(models=asked.models, plugins=asked.plugins, python_nodes=asked.python_nodes).catalogue())
    if asked.install:
        place = Path(__file__).with_name("_classes.pyi")
        place.write_text(made, encoding="utf-8")
        print(place)
    else:
        print(made, end="")
