"""Computes what the tests of latent_resize.rs compare with: "bislerp" from its definition.

    pip install numpy
    python nodes/diffusion/tests/data/make_bislerp.py

The file is committed; the tests need no Python.
"""

import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def slerp(a, b, t):
    """One pair of vectors, in f64."""
    na, nb = np.linalg.norm(a), np.linalg.norm(b)
    ua, ub = (a / na if na else a * 0), (b / nb if nb else b * 0)
    dot = float(ua @ ub)
    if dot > 1 - 1e-5:
        return a
    if dot < 1e-5 - 1:
        return a * (1 - t) + b * t
    omega = np.arccos(dot)
    return (np.sin((1 - t) * omega) * ua + np.sin(t * omega) * ub) / np.sin(omega) * (na * (1 - t) + nb * t)


def bislerp_rows(x, width):
    """[B, C, h, w] to [B, C, h, width]."""
    old = x.shape[3]
    out = np.zeros((*x.shape[:3], width))
    for i in range(width):
        position = min(max(old / width * (i + 0.5) - 0.5, 0), old - 1)
        first = int(position)
        second = min(first + 1, old - 1)
        for b in range(x.shape[0]):
            for y in range(x.shape[2]):
                out[b, :, y, i] = slerp(x[b, :, y, first], x[b, :, y, second], position - first)
    return out


def bislerp(x, height, width):
    x = bislerp_rows(x, width)
    return bislerp_rows(x.transpose(0, 1, 3, 2), height).transpose(0, 1, 3, 2)


cases = []
for shape, sizes in {(1, 4, 5, 7): [(8, 11), (5, 7), (3, 4), (10, 14)], (1, 4, 9, 4): [(13, 2), (1, 1)]}.items():
    i = np.arange(np.prod(shape), dtype=np.int64)
    source = (((i * i * 7 + i * 31) % 256) / 64.0 - 2.0).astype(np.float32).reshape(shape)
    for height, width in sizes:
        for crop in [False, True]:
            x = source
            if crop:
                old, new = shape[3] / shape[2], width / height
                cut_x = round((shape[3] - shape[3] * (new / old)) / 2) if old > new else 0
                cut_y = round((shape[2] - shape[2] * (old / new)) / 2) if old < new else 0
                x = x[:, :, cut_y : shape[2] - cut_y, cut_x : shape[3] - cut_x]
            if 0 in x.shape:
                continue
            out = bislerp(x.astype(np.float64), height, width)
            cases.append({"from": list(shape), "to": [height, width], "crop": crop,
                          "values": [round(float(v), 6) for v in out.reshape(-1)]})
lines = ",\n".join(json.dumps(case) for case in cases)
(HERE / "bislerp.json").write_text(f"[\n{lines}\n]\n")
