"""`python -m kosmograph stubs` is the package's own; all else is the program's."""

import sys

from . import _program, _stubs

if sys.argv[1:2] == ["stubs"]:
    _stubs.main(sys.argv[2:])
else:
    _program.main()
