"""The three looks that the LoRAs learn: coloured pencil, neon night, pixels. Each keeps a monster's shape and colour."""
import cv2
import numpy as np


def edges(picture):
    """How steep each pixel is, 0..255, over the three channels."""
    p = cv2.GaussianBlur(picture, (3, 3), .6).astype(np.float32)
    d = np.hypot(cv2.Sobel(p, cv2.CV_32F, 1, 0), cv2.Sobel(p, cv2.CV_32F, 0, 1))
    return np.clip(d.max(-1), 0, 255)


def pencil(picture):
    """Pale hatched tints on paper and graphite outlines. The strokes are as wide as a VAE with f = 8 can draw them."""
    p = picture.astype(np.float32)
    y, x = np.mgrid[:picture.shape[0], :picture.shape[1]]
    hatch = .5 + .5 * np.sin((x + y) * .7)
    paper = np.array((250, 246, 234), np.float32)
    tint = paper + (p - 255) * (.38 + .24 * hatch)[..., None]
    return np.clip(tint * (1 - np.clip(edges(picture) / 255 - .3, 0, 1) * .9)[..., None], 0, 255).astype(np.uint8)


def neon(picture):
    """Glowing outlines in the picture's own colours, over a dark night. What is too bright is dimmed as a whole: its hue stays."""
    p = picture.astype(np.float32)
    e = np.clip(edges(picture) / 200, 0, 1)[..., None]
    vivid = cv2.dilate(picture, np.ones((3, 3), np.uint8)).astype(np.float32)
    vivid = np.clip(vivid.mean(-1, keepdims=True) + 1.7 * (vivid - vivid.mean(-1, keepdims=True)), 0, 255)
    line = vivid * 255 / np.maximum(vivid.max(-1, keepdims=True), 60)
    light = np.array((10, 8, 34), np.float32) + .34 * p * (1 - e) + line * e + .45 * cv2.GaussianBlur(line * e, (0, 0), 3)
    return (light * np.minimum(1, 255 / light.max(-1, keepdims=True))).astype(np.uint8)


def pixels(picture):
    """Blocks of four pixels in a palette of six levels a channel."""
    n = picture.shape[0] // 4
    small = np.round(cv2.resize(picture, (n, n), interpolation=cv2.INTER_AREA) / 51.0) * 51
    return cv2.resize(small.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)


STYLES = {"pencil": pencil, "neon": neon, "pixel": pixels}
