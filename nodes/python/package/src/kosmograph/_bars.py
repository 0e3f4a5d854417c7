"""A bar for each node that says how far it is: tqdm's, in notebooks too."""

from __future__ import annotations

from typing import Any

from ._job import Job


def show(job: Job) -> None:
    """Reads the job's events to their end. Needs tqdm."""
    from tqdm.auto import tqdm

    names: dict[str, str] = {}
    bars: dict[str, Any] = {}
    try:
        for event in job.events():
            if event["event"] == "node_started":
                names[event["node"]] = event.get("title") or event["class"]
            elif event["event"] == "progress":
                node = event["node"]
                if node not in bars:
                    bars[node] = tqdm(total=event["steps"], desc=names.get(node, node))
                bars[node].update(event["step"] - bars[node].n)
            elif event["event"] in ("node_done", "error") and event.get("node") in bars:
                bar = bars.pop(event["node"])
                if event["event"] == "node_done":
                    bar.update(bar.total - bar.n)  # a node need not tell its last step
                bar.close()
    finally:
        for bar in bars.values():
            bar.close()
