"""The program: the one that this package brings, or the one that KOSMOGRAPH names."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

BUNDLE = Path(__file__).parent / "_bundle"


def program() -> str:
    """The program's path.

    Raises FileNotFoundError where the package was installed without one and none is named.
    """
    named = os.environ.get("KOSMOGRAPH")
    if named:
        return named
    bundled = BUNDLE / "bin" / "kosmograph"
    if bundled.is_file():
        return str(bundled)
    found = shutil.which("kosmograph")
    if found and Path(found).resolve() != Path(sys.argv[0]).resolve():
        return found
    raise FileNotFoundError("this package has no program in it; the variable KOSMOGRAPH can name one")


def main() -> None:
    """The command `kosmograph`, with the program's own arguments."""
    path = program()
    os.execv(path, [path, *sys.argv[1:]])
