"""Computes what ../hints.rs compares with: torch's blur and sharpening, OpenCV's edges at more thresholds, and the hints of the
preprocessors that use OpenCV's area and pyramid resizing and Gaussian blur.

    pip install torch numpy pillow opencv-python-headless
    python nodes/image/tests/data/make_hints.py

Made with torch 2.15.0, OpenCV 5.0.0, Pillow 13.0.0. The file hints.json is committed; the tests need no Python. Pictures are compared
by a hash (FNV-1a, 64 bits) of their levels.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

HERE = Path(__file__).parent
PHOTOGRAPHS = HERE / "../../../../tests/golden/image_preprocess"


def fnv(levels):
    value = 0xCBF29CE484222325
    for byte in np.ascontiguousarray(levels, dtype=np.uint8).tobytes():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def pattern(height, width, channels):
    i = np.arange(height * width * channels, dtype=np.int64)
    return ((i * i * 7 + i * 31) % 256).astype(np.uint8).reshape(height, width, channels)


def convolve(x, kernel, radius):
    kernel = kernel.repeat(x.shape[1], 1, 1).unsqueeze(1)
    padded = torch.nn.functional.pad(x, (radius,) * 4, "reflect")
    return torch.nn.functional.conv2d(padded, kernel, groups=x.shape[1])


def gaussian(radius, sigma):
    """Over the square -1..1, as ComfyUI's ImageBlur has it."""
    axis = torch.linspace(-1, 1, 2 * radius + 1)
    squared = axis[:, None] ** 2 + axis[None, :] ** 2
    kernel = torch.exp(-squared / (2 * sigma * sigma))
    return kernel / kernel.sum()


def filters():
    cases = []
    source = pattern(9, 7, 3)
    x = torch.from_numpy(source.astype(np.float32) / 255.0)[None].movedim(-1, 1)
    for radius, sigma in [(1, 1.0), (2, 0.3), (6, 10.0), (5, 0.1)]:
        kernel = gaussian(radius, sigma)
        blurred = convolve(x, kernel, radius).movedim(1, -1)
        for alpha in [0.0, 0.5, 2.0]:
            sharp = kernel * -(alpha * 10)
            sharp[radius, radius] += 1.0 - sharp.sum()
            sharpened = convolve(x, sharp, radius).clamp(0, 1).movedim(1, -1)
            cases.append({"radius": radius, "sigma": sigma, "alpha": alpha,
                          "blurred": [round(float(v), 7) for v in blurred.reshape(-1)],
                          "sharpened": [round(float(v), 7) for v in sharpened.reshape(-1)]})
    return cases


def shrunk(rgb, resolution):
    height, width = rgb.shape[:2]
    factor = resolution / min(height, width)
    size = (int(np.round(width * factor)), int(np.round(height * factor)))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)


def to_64s(rgb, resolution):
    """As Kosmos-G's authors bring a hint to size."""
    factor = resolution / max(rgb.shape[:2])
    height, width = (int(np.round(side * factor / 64.0)) * 64 for side in rgb.shape[:2])
    method = cv2.INTER_LANCZOS4 if factor > 1 else cv2.INTER_AREA
    return cv2.resize(rgb, (width, height), interpolation=method)


def xdog(rgb, threshold):
    narrow = cv2.GaussianBlur(rgb.astype(np.float32), (0, 0), 0.5)
    wide = cv2.GaussianBlur(rgb.astype(np.float32), (0, 0), 5.0)
    brightness = (255 - np.min(wide - narrow, axis=2)).clip(0, 255).astype(np.uint8)
    return np.where(2 * (255 - brightness.astype(int)) > threshold, 255, 0).astype(np.uint8)


def hints():
    edges, found = [], []
    for path in sorted(PHOTOGRAPHS.glob("*.png")):
        if path.name.startswith("expected"):
            continue
        rgb = np.array(Image.open(path).convert("RGB"))
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        for low, high in [(0, 0), (1, 2), (10, 40), (50, 100), (51, 153), (100, 100), (102, 204), (200, 300), (255, 255), (500, 900)]:
            levels = cv2.Canny(grey, low, high)
            edges.append({"picture": path.stem, "low": low, "high": high, "white": int((levels > 0).sum()), "hash": fnv(levels)})
        for resolution in [min(rgb.shape[:2]), 100, 64, min(rgb.shape[:2]) // 2]:
            small = shrunk(rgb, resolution)
            grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
            case = {"picture": path.stem, "resolution": resolution, "width": small.shape[1], "resized": fnv(small)}
            for threshold in [0, 60, 100, 255]:
                method = cv2.THRESH_BINARY + (cv2.THRESH_OTSU if threshold in (0, 255) else 0)
                case[f"binary_{threshold}"] = fnv(cv2.threshold(grey, threshold, 255, method)[1])
            case["scribble"] = fnv(np.where(small.min(axis=2) < 127, 0, 255))
            for threshold in [8, 32, 64]:
                case[f"xdog_{threshold}"] = fnv(xdog(small, threshold))
            found.append(case)
        for resolution in [128, max(rgb.shape[:2]), 512, 768]:
            out = to_64s(rgb, resolution)
            found.append({"picture": path.stem, "longer": resolution, "width": out.shape[1], "resized": fnv(out)})
        for halvings in [1, 2, 3, 5]:
            height, width = (int(np.round(side / 64.0)) * 64 for side in rgb.shape[:2])
            size = (width >> halvings, height >> halvings)
            out = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
            for _ in range(halvings):
                out = cv2.pyrUp(out)
            if size[0] <= rgb.shape[1] and size[1] <= rgb.shape[0]:
                found.append({"picture": path.stem, "halvings": halvings, "width": out.shape[1], "tile": fnv(out)})
    return edges, found


edges, found = hints()
lines = {"filters": filters(), "edges": edges, "hints": found}
text = ",\n".join(f'"{key}": [\n' + ",\n".join(json.dumps(case) for case in cases) + "\n]" for key, cases in lines.items())
(HERE / "hints.json").write_text("{\n" + text + "\n}\n")
