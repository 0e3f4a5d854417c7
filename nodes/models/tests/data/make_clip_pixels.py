"""Computes what the tests of clip_pixels.rs compare with: torch's antialiased bicubic resize of the short side, the middle cut out,
8 bits, CLIP's mean and deviation.

    pip install torch numpy
    python nodes/models/tests/data/make_clip_pixels.py

Made with torch 2.15.0. The file is committed; the tests need no Python.
"""

import json
from pathlib import Path

import numpy as np
import torch

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def pixels(image, size, crop):
    height, width = image.shape[2:]
    if (height, width) != (size, size):
        factor = size / min(height, width)
        to = (round(factor * height), round(factor * width)) if crop else (size, size)
        image = torch.nn.functional.interpolate(image, size=to, mode="bicubic", antialias=True)
        top, left = (image.shape[2] - size) // 2, (image.shape[3] - size) // 2
        image = image[:, :, top : top + size, left : left + size]
    image = (255 * image).clip(0, 255).round() / 255
    return (image - MEAN) / STD


cases = []
for height, width, size in [(9, 14, 4), (23, 8, 6), (5, 7, 8), (6, 6, 6), (31, 30, 3)]:
    i = np.arange(height * width * 3, dtype=np.int64)
    source = ((i * i * 7 + i * 31) % 256).astype(np.float32).reshape(1, height, width, 3) / 255
    image = torch.from_numpy(source).movedim(-1, 1)
    for crop in [True, False]:
        out = pixels(image, size, crop)
        cases.append({"from": [height, width], "size": size, "crop": crop,
                      "values": [round(float(v), 5) for v in out.reshape(-1)]})
lines = ",\n".join(json.dumps(case) for case in cases)
(Path(__file__).parent / "clip_pixels.json").write_text(f"[\n{lines}\n]\n")
