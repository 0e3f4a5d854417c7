"""Kosmograph in Python: workflows are run by the program that comes with this package, in a process of its own.

    import kosmograph

    result = kosmograph.run("workflow.json", sets={"Sampler.steps": 4}, seed=3)
    result.pictures[0].numpy()

A node that crashes costs its job, with an exception that names it, and not this process. docs/python.md of the project
walks through it.
"""

from ._errors import Cancelled, KosmographError, NodeFailed, Refused
from ._graph import Graph, Node, Socket
from ._job import Job, Picture, Result
from ._memory import Tensor
from ._session import Session, close, run, submit

__all__ = [
    "Cancelled",
    "Graph",
    "Job",
    "KosmographError",
    "Node",
    "NodeFailed",
    "Picture",
    "Refused",
    "Result",
    "Session",
    "Socket",
    "Tensor",
    "close",
    "run",
    "submit",
]
__version__ = "0.1.0"
