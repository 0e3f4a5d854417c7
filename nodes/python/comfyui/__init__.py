"""Kosmograph's nodes in ComfyUI: put this folder into custom_nodes, and `pip install` the package kosmograph beside it.

Each node runs a workflow of ours in Kosmograph's own process, so that a crash costs the node and not ComfyUI:

    KosmographWorkflow    a saved workflow, with a picture, a prompt and a seed given to it
    KosmosGSubject        Kosmos-G: the subject of a picture, or of two, drawn as the text says
"""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
