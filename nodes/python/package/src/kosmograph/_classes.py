"""Where type checkers find the node classes: the wheel has a stub beside this file, which `_stubs` makes of the catalogue.

When a program runs there is nothing here, and Graph makes each function when it is asked for.
"""


class Classes:
    """Every class of the catalogue, as a function."""
