"""A node in Python that tries what a confined worker may not do, for tests/tests/serve/sandbox.rs."""

import ctypes
import os
import socket
import subprocess
import tempfile


def tries(how, path):
    if how == "read":
        open(path, "rb").read(1)
    elif how == "write":
        open(path, "w").write("x")
    elif how == "connect":
        socket.create_connection(("127.0.0.1", int(path)), timeout=5)
    elif how == "start":
        subprocess.run([path], check=True)
    elif how == "kill":
        os.kill(int(path), 0)
    elif how == "temporary":
        tempfile.TemporaryFile().write(b"x")
    elif how == "crash":
        ctypes.string_at(0)


class Tries:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"how": ("STRING", {}), "path": ("STRING", {})}}

    @classmethod
    def IS_CHANGED(cls, **_):
        return float("nan")

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "work", "tests", True

    def work(self, how, path):
        try:
            tries(how, path)
        except (PermissionError, OSError) as error:
            return {"ui": {"text": ["refused", str(error)]}}
        return {"ui": {"text": ["done"]}}


NODE_CLASS_MAPPINGS = {"Tries": Tries}
