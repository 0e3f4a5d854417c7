"""What can go wrong, each with the sentences of the program."""

from __future__ import annotations

from typing import Any, Mapping, Sequence


class KosmographError(Exception):
    """The base of all of them. `events` are the error events of the job, as docs/events.md has them."""

    def __init__(self, message: str, events: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.events = list(events)


class _Named(KosmographError):
    """The first problem's place: the node's id, class and title, and the input; None where it has none."""

    def __init__(self, events: Sequence[Mapping[str, Any]]) -> None:
        first: Mapping[str, Any] = events[0] if events else {}
        self.node: str | None = first.get("node")
        self.node_class: str | None = first.get("class")
        self.title: str | None = first.get("title")
        self.input: str | None = first.get("input")
        self.kind: str | None = first.get("kind")
        super().__init__("\n".join(_sentence(event) for event in events) or "the program gives no reason", events)


class Refused(_Named):
    """The workflow or what it was to be run with is wrong; nothing was run."""


class NodeFailed(_Named):
    """A node failed. `result` has what did not depend on it."""

    result: Any = None


class Cancelled(KosmographError):
    """The job was cancelled."""


def _sentence(event: Mapping[str, Any]) -> str:
    place = ""
    if event.get("node"):
        place = "node %s (%s)" % (event["node"], event.get("title") or event.get("class") or "?")
        if event.get("input"):
            place += ', input "%s"' % event["input"]
        place += ": "
    nearest = '; did you mean "%s"?' % event["nearest"] if event.get("nearest") else ""
    return place + str(event.get("message", "")) + nearest
