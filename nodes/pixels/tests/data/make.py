"""Computes what the tests of this crate compare with: Pillow's resize and torch's interpolate.

    pip install torch numpy pillow==12.3.0
    python nodes/pixels/tests/data/make.py

Made with torch 2.15.0 on a processor with AVX-512 (AVX2 gives the same) and Pillow 12.3.0. The files are committed; the tests need no
Python.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent


def pattern(count):
    """Numbers without symmetry; the tests make the same ones."""
    i = np.arange(count, dtype=np.int64)
    return i * i * 7 + i * 31


def fnv(data):
    """FNV-1a of 64 bits."""
    sum = 0xCBF29CE484222325
    for byte in data:
        sum = (sum ^ byte) * 0x100000001B3 % 2**64
    return f"{sum:016x}"


def write(name, cases):
    lines = ",\n".join(json.dumps(case) for case in cases)
    (HERE / name).write_text(f"[\n{lines}\n]\n")


def pillow():
    cases = []
    filters = {"nearest": Image.NEAREST, "box": Image.BOX, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC,
               "lanczos": Image.LANCZOS}
    # Of the last two Pillow 13 makes other pictures.
    sizes = [((7, 9), (3, 4)), ((4, 5), (7, 8)), ((9, 7), (13, 16)), ((9, 7), (7, 20)), ((9, 7), (3, 9)), ((41, 30), (5, 30)),
             ((41, 30), (5, 33))]
    for (height, width), (to_height, to_width) in sizes:
        for channels, mode in [(1, "L"), (3, "RGB"), (4, "RGBA")]:
            levels = (pattern(height * width * channels) % 256).astype(np.uint8)
            picture = Image.frombytes(mode, (width, height), levels.tobytes())
            for name, filter in filters.items():
                out = picture.resize((to_width, to_height), filter)
                levels = out.tobytes()
                case = {"filter": name, "from": [height, width, channels], "to": [to_height, to_width],
                        "fnv": fnv(levels)}
                cases.append(case | ({"levels": list(levels)} if len(levels) < 80 else {}))
    write("pillow.json", cases)


def interpolate():
    cases = []
    # Up to 128 pixels in height and width together torch computes otherwise than above.
    sizes = [((9, 7), (4, 5)), ((9, 7), (13, 16)), ((9, 7), (7, 20)), ((13, 11), (3, 9)), ((4, 5), (64, 64)), ((1, 1), (9, 7)),
             ((33, 57), (128, 200)), ((64, 64), (128, 128)), ((100, 100), (90, 90)), ((200, 200), (100, 31)),
             ((3, 30), (5, 705)), ((2, 20), (1, 470)), ((16, 4), (500, 246)), ((90, 70), (64, 65)), ((90, 70), (64, 64))]
    for (height, width), to in sizes:
        for channels, interleaved in [(1, False), (4, False), (3, True), (4, True)]:
            values = ((pattern(height * width * channels) % 65521) / 65521).astype(np.float32)
            if interleaved:
                x = torch.from_numpy(values.reshape(1, height, width, channels)).movedim(-1, 1)
            else:
                x = torch.from_numpy(values.reshape(1, channels, height, width))
            for mode in ["nearest-exact", "bilinear", "area", "bicubic"]:
                out = torch.nn.functional.interpolate(x, size=to, mode=mode)
                out = out.movedim(1, -1).contiguous() if interleaved else out
                out = out.numpy()
                case = {"mode": mode, "from": [height, width, channels], "to": to, "interleaved": interleaved,
                        "fnv": fnv(out.astype("<f4").tobytes())}
                if out.size < 80:
                    case["values"] = [float(v) for v in out.reshape(-1)]
                cases.append(case)
    write("torch.json", cases)


pillow()
interpolate()
