"""Computes what the tests of this folder compare with: OpenCV's edges, Pillow's decoding.

    pip install numpy pillow==12.3.0 opencv-python-headless
    python nodes/image/tests/data/make.py

Made with Pillow 12.3.0, OpenCV 5.0.0. The files are committed; the tests need no Python.
"""

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, ImageSequence

HERE = Path(__file__).parent
PHOTOGRAPHS = HERE / "../../../../tests/golden/image_preprocess"


def pattern(height, width, channels, step=31):
    """A picture without symmetry; the tests make the same one."""
    i = np.arange(height * width * channels, dtype=np.int64)
    return ((i * i * 7 + i * step) % 256).astype(np.uint8).reshape(height, width, channels)


def edges():
    pictures = {"pattern_37x53": np.repeat(pattern(53, 37, 1), 3, axis=2)}
    for path in sorted(PHOTOGRAPHS.glob("*.png")):
        if not path.name.startswith("expected"):
            pictures[path.stem] = np.array(Image.open(path).convert("RGB"))
    for name, rgb in pictures.items():
        grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        for low, high in [(100, 200), (25, 76)]:
            found = cv2.Canny(grey, low, high)
            out = Image.fromarray(found).convert("1", dither=Image.Dither.NONE)
            out.save(HERE / f"edges/{name}_{low}_{high}.png", optimize=True)
    # The conversion to grey: levels 0, 15 … 255 of each colour, summed with weights that tell where a difference is.
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(1, -1, 3)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).reshape(-1)
    Image.fromarray(grey.reshape(18 * 3, -1)).save(HERE / "edges/grey_levels.png", optimize=True)


def pictures():
    folder = HERE / "pictures"
    rgb, small = pattern(11, 13, 3), pattern(6, 5, 4, 17)
    # JPEG and smooth pictures go together.
    y, x = np.mgrid[0:24, 0:17]
    smooth = np.stack([x * 15, y * 10, (x + y) * 6], axis=-1).astype(np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6

    Image.fromarray(rgb).save(folder / "rgb.png")
    Image.fromarray(small).save(folder / "rgba.png")
    Image.fromarray(rgb[..., 0]).save(folder / "grey.png")
    Image.fromarray(np.ascontiguousarray(small[..., :2]), "LA").save(folder / "grey_alpha.png")
    Image.fromarray(rgb).save(folder / "turned.png", exif=turned)
    Image.fromarray(rgb).convert("1").save(folder / "one_bit.png")
    Image.fromarray(rgb[:1, :1]).save(folder / "one_pixel.png")
    wide = pattern(6, 5, 3, 3).astype(np.uint16) * 256 + pattern(6, 5, 3)
    cv2.imwrite(str(folder / "rgb_16_bit.png"), wide[..., ::-1])
    Image.fromarray(wide[..., 0].copy()).save(folder / "grey_16_bit.png")
    palette = Image.fromarray(rgb).quantize(8)
    palette.save(folder / "palette.png", transparency=3)
    Image.fromarray(smooth).save(folder / "baseline.jpg", quality=95, subsampling=0)
    Image.fromarray(smooth).save(folder / "subsampled.jpg", quality=80)
    Image.fromarray(smooth).save(folder / "progressive.jpg", quality=90, progressive=True)
    Image.fromarray(smooth).save(folder / "turned.jpg", quality=95, subsampling=0, exif=turned)
    Image.fromarray(smooth[..., 1]).save(folder / "grey.jpg", quality=95)
    Image.fromarray(smooth).convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    Image.fromarray(small).save(folder / "lossless.webp", lossless=True, exact=True)
    Image.fromarray(smooth).save(folder / "lossy.webp", quality=90)
    Image.fromarray(rgb).save(folder / "rgb.bmp")
    Image.fromarray(rgb).save(folder / "rgb.tiff", compression="tiff_lzw")
    Image.fromarray(smooth).quantize(64).save(folder / "still.gif")
    frames = [Image.fromarray(pattern(6, 5, 3, step)) for step in (3, 5, 9)]
    more = {"save_all": True, "append_images": frames[1:], "duration": 50}
    frames[0].save(folder / "animated.gif", **more)
    frames[0].save(folder / "animated.png", **more)
    frames[0].save(folder / "animated.webp", lossless=True, **more)

    expected = {}
    for path in sorted(folder.iterdir()):
        # ComfyUI's LoadImage.
        pixels, masks = [], []
        for frame in ImageSequence.Iterator(Image.open(path)):
            frame = ImageOps.exif_transpose(frame)
            if frame.mode == "I;16":
                # Pillow cuts at 255 where it means to convert; the upper byte is what the picture shows.
                frame = Image.fromarray((np.array(frame) >> 8).astype(np.uint8))
            pixels.append(np.array(frame.convert("RGB")))
            if "A" in frame.getbands():
                masks.append(np.array(frame.getchannel("A")))
            elif frame.mode == "P" and "transparency" in frame.info:
                masks.append(np.array(frame.convert("RGBA").getchannel("A")))
        expected[path.name] = {"shape": list(np.array(pixels).shape), "rgb": np.array(pixels).reshape(-1).tolist(),
                               "alpha": np.array(masks).reshape(-1).tolist() if masks else None}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(case)}" for name, case in expected.items())
    (HERE / "pictures.json").write_text("{\n" + lines + "\n}\n")


edges()
pictures()
