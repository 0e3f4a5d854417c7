"""Computes what the nodes of classes.rs are to give, with numpy and Pillow, from the definitions: python make_classes.py > classes.json

Nothing here comes from this library. Made with numpy 2.4.6, Pillow 13.0.0, Python 3.11.
"""

import json
import re

import numpy as np
from PIL import Image

f = np.float32


def picture(shape, seed=0):
    """The pictures of the tests: levels without symmetry, i² · 7 + i · (31 + 2 · seed) + seed modulo 256."""
    i = np.arange(int(np.prod(shape)), dtype=np.int64)
    return (((i * i * 7 + i * (31 + 2 * seed) + seed) % 256).astype(f) / f(255)).reshape(shape)


def given(kind, shape, seed=0):
    return {kind: list(shape), "seed": seed}


cases = []


def case(cls, inputs, *outputs):
    told = []
    for output in outputs:
        if isinstance(output, np.ndarray):
            told.append({"shape": list(output.shape), "values": [round(float(v), 7) for v in output.ravel()]})
        else:
            told.append(output)
    cases.append({"class": cls, "inputs": inputs, "outputs": told})


def taps(source, target, kind):
    """Positions and weights of torch's interpolate without antialiasing, align_corners=False."""
    rows = np.zeros((target, source))
    for i in range(target):
        x = (i + 0.5) * source / target - 0.5
        if kind == "bilinear":
            x = max(x, 0)
            first = int(x)
            pairs = [(first, 1 - (x - first)), (first + 1, x - first)]
        else:
            a, first = -0.75, int(np.floor(x))
            near = lambda d: (a + 2) * d**3 - (a + 3) * d**2 + 1
            far = lambda d: a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            t = x - first
            pairs = [(first - 1, far(t + 1)), (first, near(t)), (first + 1, near(1 - t)), (first + 2, far(2 - t))]
        for at, weight in pairs:
            rows[i, min(max(at, 0), source - 1)] += weight
    return rows


def antialiased(source, target, kind):
    """The same with antialiasing: the filter is stretched by what falls together."""
    if source == target:
        return np.eye(source)
    scale = source / target
    stretch = max(scale, 1)
    reach = {"bilinear": 1, "bicubic": 2}[kind] * stretch

    def weight(x):
        x = abs(x)
        if kind == "bilinear":
            return max(0, 1 - x)
        a = -0.5
        if x < 1:
            return ((a + 2) * x - (a + 3)) * x * x + 1
        return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0

    rows = np.zeros((target, source))
    for i in range(target):
        centre = (i + 0.5) * scale
        first, last = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), source)
        for at in range(first, last):
            rows[i, at] = weight((at - centre + 0.5) / stretch)
        rows[i] /= rows[i].sum()
    return rows


def resized(images, height, width, kind, table=taps):
    """[B, H, W, C] or [B, H, W]."""
    rows, columns = table(images.shape[1], height, kind), table(images.shape[2], width, kind)
    return np.einsum("yh,bhw...,xw->byx...", rows, images.astype(np.float64), columns)


def levels(images):
    return np.clip(255 * images, 0, 255).astype(np.uint8)


def pillow(images, width, height, how, before=None):
    out = []
    for image in levels(images):
        image = Image.fromarray(image, "RGB")
        for size in [before, (width, height)]:
            image = image.resize(size, how) if size else image
        out.append(np.asarray(image))
    return np.stack(out).astype(f) / f(255)


# Composites.
a, b = picture((2, 4, 5, 3)), picture((1, 3, 2, 3), 3)
A, B = given("image", (2, 4, 5, 3)), given("image", (1, 3, 2, 3), 3)
out = a.copy()
out[:, 2:4, 4:5] = b[:, :2, :1]
case("ImageCompositeMasked", {"destination": A, "source": B, "x": 4, "y": 2}, out)
case("ImageCompositeMasked", {"destination": A, "source": B, "x": 9, "y": 0}, a)
mask = picture((1, 2, 2), 1)
small = resized(mask, 3, 2, "bilinear")[..., None]
out = a.astype(np.float64)
out[:, 1:4, 2:4] = small * b + (1 - small) * out[:, 1:4, 2:4]
case("ImageCompositeMasked", {"destination": A, "source": B, "x": 2, "y": 1, "mask": given("mask", (1, 2, 2), 1)}, out)
case("ImageCompositeMasked", {"destination": A, "source": B, "resize_source": True},
     np.repeat(resized(b, 4, 5, "bilinear"), 2, 0))
rgba = picture((1, 2, 2, 4), 5)
case("ImageCompositeMasked", {"destination": given("image", (1, 2, 2, 4), 5), "source": given("image", (1, 1, 1, 3), 9)},
     np.concatenate([np.concatenate([picture((3,), 9), [1]]), rgba.ravel()[4:]]).reshape(1, 2, 2, 4))
latent, other = picture((1, 4, 3, 3)), picture((1, 4, 2, 2), 7)
out = latent.copy()
out[:, :, 1:3, 2:3] = other[:, :, :, :1]
case("LatentCompositeMasked", {"destination": given("latent", (1, 4, 3, 3)), "source": given("latent", (1, 4, 2, 2), 7), "x": 16, "y": 8}, out)
part = picture((1, 2, 2), 2)[:, None]
out = latent.copy()
out[:, :, :2, :2] = part * other + (1 - part) * out[:, :, :2, :2]
case("LatentCompositeMasked", {"destination": given("latent", (1, 4, 3, 3)), "source": given("latent", (1, 4, 2, 2), 7),
                              "mask": given("mask", (1, 2, 2), 2)}, out)

# Blends: the W3C's formulas.
one, two = picture((1, 3, 4, 3)).astype(np.float64), picture((1, 3, 4, 3), 4).astype(np.float64)
root = np.where(one <= 0.25, ((16 * one - 12) * one + 4) * one, np.sqrt(one))
blends = {
    "normal": two,
    "multiply": one * two,
    "screen": one + two - one * two,
    "overlay": np.where(one <= 0.5, 2 * one * two, one * 2 + two * 2 - 2 * one * two - 1),
    "soft_light": np.where(two <= 0.5, one - (1 - 2 * two) * one * (1 - one), one + (2 * two - 1) * (root - one)),
    "difference": one - two,
}
for mode, blended in blends.items():
    case("ImageBlend", {"image1": given("image", (1, 3, 4, 3)), "image2": given("image", (1, 3, 4, 3), 4),
                        "blend_factor": 0.75, "blend_mode": mode}, np.clip(0.25 * one + 0.75 * blended, 0, 1))
# A picture of 2 x 6 is cut to 2 x 3, around its centre: (6 - 6 · (4 / 3) / 3) / 2 rounds to 2 and leaves two columns.
cut = picture((1, 2, 6, 3), 6)[:, :, 2:4]
case("ImageBlend", {"image1": given("image", (1, 3, 4, 3)), "image2": given("image", (1, 2, 6, 3), 6), "blend_factor": 1.0,
                    "blend_mode": "normal"}, np.clip(resized(cut, 3, 4, "bicubic"), 0, 1))

# Porter and Duff, over colours that are multiplied by their opacity.
source, destination = one[0], two[0]
source_mask, destination_mask = picture((1, 3, 4), 8), picture((1, 3, 4), 11)
s, d = (1 - m[0].astype(np.float64)[..., None] for m in (source_mask, destination_mask))
S, D = source * s, destination * d
fractions = {  # Of the source and of the destination.
    "CLEAR": (0, 0), "SRC": (1, 0), "DST": (0, 1), "SRC_OVER": (1, 1 - s), "DST_OVER": (1 - d, 1), "SRC_IN": (d, 0), "DST_IN": (0, s),
    "SRC_OUT": (1 - d, 0), "DST_OUT": (0, 1 - s), "SRC_ATOP": (d, 1 - s), "DST_ATOP": (1 - d, s), "XOR": (1 - d, 1 - s),
}
results = {mode: (S * p + D * q, s * p + d * q) for mode, (p, q) in fractions.items()}
both = s + d - s * d
results |= {
    "ADD": (np.minimum(S + D, 1), np.minimum(s + d, 1)),
    "MULTIPLY": (S * D, s * d),
    "SCREEN": (S + D - S * D, both),
    "DARKEN": (S * (1 - d) + D * (1 - s) + np.minimum(S, D), both),
    "LIGHTEN": (S * (1 - d) + D * (1 - s) + np.maximum(S, D), both),
    "OVERLAY": (np.where(2 * D < d, 2 * S * D, s * d - 2 * (d - S) * (s - D)), both),
}
for mode, (colour, alpha) in results.items():
    colour = np.where(alpha > 1e-5, colour / np.where(alpha > 1e-5, alpha, 1), 0)
    case("PorterDuffImageComposite",
         {"source": given("image", (1, 3, 4, 3)), "source_alpha": given("mask", (1, 3, 4), 8), "destination": given("image", (1, 3, 4, 3), 4),
          "destination_alpha": given("mask", (1, 3, 4), 11), "mode": mode},
         np.clip(colour, 0, 1)[None], (1 - alpha[..., 0])[None])

# Alpha.
case("JoinImageWithAlpha", {"image": given("image", (1, 2, 3, 3)), "alpha": given("mask", (2, 2, 3), 1)},
     np.concatenate([np.repeat(picture((1, 2, 3, 3)), 2, 0), 1 - picture((2, 2, 3), 1)[..., None]], -1))
case("JoinImageWithAlpha", {"image": given("image", (1, 4, 6, 3)), "alpha": given("mask", (1, 2, 3), 1)},
     np.concatenate([picture((1, 4, 6, 3)), 1 - resized(picture((1, 2, 3), 1), 4, 6, "bilinear")[..., None]], -1))
case("SplitImageWithAlpha", {"image": given("image", (2, 2, 2, 4))}, picture((2, 2, 2, 4))[..., :3], 1 - picture((2, 2, 2, 4))[..., 3])
case("SplitImageWithAlpha", {"image": given("image", (1, 2, 2, 3))}, picture((1, 2, 2, 3)), np.zeros((1, 2, 2)))

# Order.
p, P = picture((3, 2, 4, 3)), given("image", (3, 2, 4, 3))
case("ImageFromBatch", {"image": P, "batch_index": 1, "length": 9}, p[1:])
case("ImageFromBatch", {"image": P, "batch_index": 7, "length": 2}, p[2:])
case("RepeatImageBatch", {"image": P, "amount": 2}, np.concatenate([p, p]))
case("ImageFlip", {"image": P, "flip_method": "x-axis: vertically"}, p[:, ::-1])
case("ImageFlip", {"image": P, "flip_method": "y-axis: horizontally"}, p[:, :, ::-1])
for times, angle in enumerate(["none", "90 degrees", "180 degrees", "270 degrees"]):
    case("ImageRotate", {"image": P, "rotation": angle}, np.rot90(p, -times, (1, 2)))

# Sizes.
w, W = picture((1, 4, 7, 3)), given("image", (1, 4, 7, 3))
framed = np.ones((1, 8, 6, 3))
framed[:, 2:5] = resized(w, 3, 6, "bilinear")
case("ResizeAndPadImage", {"image": W, "target_width": 6, "target_height": 8, "padding_color": "white", "interpolation": "bilinear"}, framed)
case("ImageScaleToMaxDimension", {"image": W, "upscale_method": "bilinear", "largest_size": 5}, resized(w, 3, 5, "bilinear"))
case("ImageScaleToMaxDimension", {"image": given("image", (1, 7, 4, 3)), "upscale_method": "bicubic", "largest_size": 14},
     resized(picture((1, 7, 4, 3)), 14, 8, "bicubic"))
case("GetImageSize", {"image": P}, 4, 2, 3)
case("GetImageSize+", {"image": P}, 4, 2, 3)
case("ImageGenResolutionFromImage", {"image": P}, 4, 2)
for mode, expected in {"Just Resize": 512, "Crop and Resize": 512, "Resize and Fill": 384}.items():
    # 4 x 3: one pixel is 192 or 170.67 wide; the shorter side has three of them.
    case("PixelPerfectResolution", {"original_image": given("image", (1, 4, 3, 3)), "image_gen_width": 512, "image_gen_height": 512,
                                    "resize_mode": mode}, expected)

near = lambda n, m: [int(f(i) * (f(n) / f(m))) for i in range(m)]
case("ImageResize+", {"image": W, "width": 5, "height": 3}, w[:, near(4, 3)][:, :, near(7, 5)], 5, 3)
case("ImageResize+", {"image": W, "width": 14, "height": 14, "interpolation": "bilinear", "method": "keep proportion"},
     resized(w, 8, 14, "bilinear"), 14, 8)
case("ImageResize+", {"image": W, "width": 0, "height": 2, "interpolation": "bilinear", "method": "keep proportion"},
     resized(w, 2, 4, "bilinear"), 4, 2)
padded = np.zeros((1, 14, 14, 3))
padded[:, 3:11] = resized(w, 8, 14, "bilinear")
case("ImageResize+", {"image": W, "width": 14, "height": 14, "interpolation": "bilinear", "method": "pad"}, padded, 14, 14)
case("ImageResize+", {"image": W, "width": 6, "height": 6, "interpolation": "bilinear", "method": "fill / crop"},
     resized(w, 6, 10, "bilinear")[:, :, 2:8], 6, 6)
case("ImageResize+", {"image": W, "width": 6, "height": 6, "condition": "downscale if bigger", "multiple_of": 2}, w[:, near(4, 6)][:, :, near(7, 6)], 6, 6)
case("ImageResize+", {"image": W, "width": 9, "height": 9, "condition": "downscale if bigger", "multiple_of": 3}, w[:, :3, :6], 6, 3)
case("ImageResize+", {"image": W, "width": 6, "height": 9, "interpolation": "bilinear", "keep_proportion": True}, resized(w, 3, 6, "bilinear"), 6, 3)
case("JWImageResizeByLongerSide", {"image": W, "size": 3, "interpolation_mode": "bicubic"}, np.clip(resized(w, 2, 3, "bicubic", antialiased), 0, 1))
case("JWImageResizeByLongerSide", {"image": W, "size": 10, "interpolation_mode": "bilinear"}, resized(w, 6, 10, "bilinear", antialiased))
case("JWImageResizeByLongerSide", {"image": W, "size": 5, "interpolation_mode": "nearest"}, w[:, near(4, 3)][:, :, near(7, 5)])
case("Image Resize", {"image": W, "mode": "rescale", "supersample": "false", "resampling": "bicubic", "rescale_factor": 1.5}, pillow(w, 10, 6, Image.BICUBIC))
case("Image Resize", {"image": W, "mode": "resize", "supersample": "true", "resampling": "lanczos", "resize_width": 9, "resize_height": 8},
     pillow(w, 16, 8, Image.LANCZOS, (128, 64)))

# Beside each other.
x, y = picture((2, 2, 3, 3)), picture((1, 4, 2, 3), 5)
X, Y = given("image", (2, 2, 3, 3)), given("image", (1, 4, 2, 3), 5)
yy = np.repeat(y, 2, 0)
case("ImageStitch", {"image1": X}, x)
scaled = np.repeat(pillow(y, 1, 2, Image.LANCZOS), 2, 0)
case("ImageStitch", {"image1": X, "image2": Y}, np.concatenate([x, scaled], 2))
gap = np.zeros((2, 2, 4, 3)) + [1, 0, 0]
case("ImageStitch", {"image1": X, "image2": Y, "direction": "left", "spacing_width": 3, "spacing_color": "red"}, np.concatenate([scaled, gap, x], 2))
tall = np.ones((2, 4, 3, 3))
tall[:, 1:3] = x
case("ImageStitch", {"image1": X, "image2": Y, "match_image_size": False}, np.concatenate([tall, yy], 2))
wide = np.zeros((2, 4, 3, 3))
wide[:, :, :2] = yy
case("ImageStitch", {"image1": X, "image2": Y, "match_image_size": False, "direction": "up", "spacing_width": 2, "spacing_color": "black"},
     np.concatenate([wide, np.zeros((2, 2, 3, 3)), x], 1))

# Colours.
c = np.round(p * 255).astype(np.int64)
colour = int(c[1, 1, 2, 0] << 16 | c[1, 1, 2, 1] << 8 | c[1, 1, 2, 2])
case("ImageColorToMask", {"image": P, "color": colour}, ((c[..., 0] << 16 | c[..., 1] << 8 | c[..., 2]) == colour).astype(f))
r, g, bl = (p.astype(np.float64)[..., i] for i in range(3))
luma = 0.299 * r + 0.587 * g + 0.114 * bl
planes = [np.repeat(v[..., None], 3, -1) for v in (luma, 0.564 * (bl - luma) + 0.5, 0.713 * (r - luma) + 0.5)]
case("ImageRGBToYUV", {"image": P}, *planes)
Yp, U, V = (picture((1, 2, 3, 3), seed).astype(np.float64).mean(-1) for seed in (1, 2, 3))
case("ImageYUVToRGB", {name: given("image", (1, 2, 3, 3), seed) for name, seed in (("Y", 1), ("U", 2), ("V", 3))},
     np.clip(np.stack([Yp + 1.403 * (V - 0.5), Yp - 0.714 * (V - 0.5) - 0.344 * (U - 0.5), Yp + 1.773 * (U - 0.5)], -1), 0, 1))


def around(images, size, of, beyond):
    """of each square; an even one reaches further up and left."""
    before, after = size // 2, size - size // 2 - 1
    wide = np.pad(images, ((0, 0), (before, after), (before, after), (0, 0)), constant_values=beyond)
    windows = np.lib.stride_tricks.sliding_window_view(wide, (size, size), (1, 2))
    return of(windows, (-1, -2))


m, M = picture((2, 5, 6, 3), 2), given("image", (2, 5, 6, 3), 2)
for size in (3, 4, 9):
    grow = lambda images: around(images, size, np.max, -np.inf)
    shrink = lambda images: around(images, size, np.min, np.inf)
    made = {"erode": shrink(m), "dilate": grow(m), "open": grow(shrink(m)), "close": shrink(grow(m)), "gradient": grow(m) - shrink(m),
            "top_hat": m - grow(shrink(m)), "bottom_hat": shrink(grow(m)) - m}
    for operation in made if size == 3 else ["erode", "dilate"]:
        case("Morphology", {"image": M, "operation": operation, "kernel_size": size}, made[operation])

# Texts: Python's own str and re.
t = "Ein Käse, two CATS & 3 dogs\nzwei Käse "
case("StringConcatenate", {"string_a": "a", "string_b": "b", "delimiter": ", "}, ", ".join(("a", "b")))
for start, end in ((0, 8), (4, -1), (-5, 99), (9, 3)):
    case("StringSubstring", {"string": t, "start": start, "end": end}, t[start:end])
case("StringLength", {"string": t + "🧀"}, len(t + "🧀"))
for mode, made in {"UPPERCASE": t.upper(), "lowercase": t.lower(), "Capitalize": t.capitalize(), "Title Case": t.title()}.items():
    case("CaseConverter", {"string": t, "mode": mode}, made)
spaced = " \t\u00a0\x1fa b\n "
for mode, made in {"Both": spaced.strip(), "Left": spaced.lstrip(), "Right": spaced.rstrip()}.items():
    case("StringTrim", {"string": spaced, "mode": mode}, made)
case("StringReplace", {"string": t, "find": "Käse", "replace": "🧀"}, t.replace("Käse", "🧀"))
case("StringReplace", {"string": "abc", "find": "", "replace": "-"}, "abc".replace("", "-"))
for part, cased in (("cats", True), ("cats", False), ("CATS", True)):
    case("StringContains", {"string": t, "substring": part, "case_sensitive": cased}, part in t if cased else part.lower() in t.lower())
for other, mode, cased in (("ein", "Starts With", True), ("ein", "Starts With", False), ("Käse ", "Ends With", True), (t, "Equal", True), (t.upper(), "Equal", False)):
    one_, two_ = (t, other) if cased else (t.lower(), other.lower())
    made = {"Starts With": one_.startswith(two_), "Ends With": one_.endswith(two_), "Equal": one_ == two_}[mode]
    case("StringCompare", {"string_a": t, "string_b": other, "mode": mode, "case_sensitive": cased}, made)


def flags(named):
    table = {"case_insensitive": re.I, "multiline": re.M, "dotall": re.S}
    return sum(table[name] for name, on in ({"case_insensitive": True} | named).items() if on)


patterns = [
    (r"cats", {}), (r"cats", {"case_insensitive": False}), (r"^zwei", {}), (r"^zwei", {"multiline": True}), (r"dogs.zwei", {}),
    (r"dogs.zwei", {"dotall": True}), (r"(\w)\1", {}), (r"(?<=two )cats", {}), (r"Käse(?! )", {}), (r"\d+", {}), (r"dogs$", {}), (r"Käse $", {}),
    (r"[[a]wo", {}), (r"[]k]ä", {}), (r"[^]K]ä", {}), (r"s \Z", {}), (r"e \Z", {}), (r"(?P<n>k)äse", {}),
]
for pattern, named in patterns:
    case("RegexMatch", {"string": t, "regex_pattern": pattern} | named, re.search(pattern, t, flags(named)) is not None)
case("RegexMatch", {"string": "end\n", "regex_pattern": "end$"}, re.search("end$", "end\n") is not None)
case("RegexMatch", {"string": "end\n\n", "regex_pattern": "end$"}, re.search("end$", "end\n\n") is not None)
found = list(re.finditer(r"(\w+) (k)äse", t, re.I))
case("RegexExtract", {"string": t, "regex_pattern": r"(\w+) (k)äse", "mode": "First Match"}, found[0].group(0))
case("RegexExtract", {"string": t, "regex_pattern": r"(\w+) (k)äse", "mode": "All Matches"}, "\n".join(x[0] for x in re.findall(r"(\w+) (k)äse", t, re.I)))
case("RegexExtract", {"string": t, "regex_pattern": r"k\w+", "mode": "All Matches"}, "\n".join(re.findall(r"k\w+", t, re.I)))
case("RegexExtract", {"string": t, "regex_pattern": r"(\w+) (k)äse", "mode": "First Group", "group_index": 2}, found[0].group(2))
case("RegexExtract", {"string": t, "regex_pattern": r"(\w+) (k)äse", "mode": "All Groups", "group_index": 1}, "\n".join(x.group(1) for x in found))
case("RegexExtract", {"string": t, "regex_pattern": r"(\w+) (k)äse", "mode": "First Group", "group_index": 3}, "")
case("RegexExtract", {"string": t, "regex_pattern": r"k\w+", "mode": "All Groups"}, "")
case("RegexExtract", {"string": t, "regex_pattern": r"mice", "mode": "First Match"}, "")
for pattern, to, count in ((r"(\w+) (käse)", r"\2 \g<1>!", 0), (r"(\w+) (käse)", r"\n[\2]", 1), (r"", "-", 3), (r"(?P<animal>cats|dogs)", r"<\g<animal>>", 0),
                           (r"(x)?two", r"[\1]", 0), (r"\b", "|", 0)):
    case("RegexReplace", {"string": t, "regex_pattern": pattern, "replace": to, "count": count}, re.sub(pattern, to, t, count=count, flags=re.I))

# Values.
for cls, value in (("PrimitiveString", "a"), ("PrimitiveStringMultiline", "a\nb"), ("PrimitiveInt", -3), ("PrimitiveFloat", 0.25), ("PrimitiveBoolean", True)):
    case(cls, {"value": value}, value)
for value in ("text", 12, -0.5, 1e-7, True):
    case("PreviewAny", {"source": value}, str(value))
case("ShowText|pysssss", {"text": "a\nb"}, "a\nb")
case("Text Multiline", {"text": "a\n # b\n\nc#\n"}, "a\n\nc#")
case("String Literal", {"string": "a"}, "a")
case("CR Integer To String", {"int_": -7}, str(-7))
case("CR Float To String", {"float_": 1e22}, str(1e22))


# Few colours: Pillow's own palette and its own nearest entries; Bayer's patterns by their definition.
def thresholds(side):
    m = np.zeros((1, 1), f)
    for n in range(int(np.log2(side))):
        q = f(4 ** (n + 1))
        m = np.block([[m * q - f(1.5), m * q + f(0.5)], [m * q + f(1.5), m * q - f(0.5)]]) / q
    return m


def quantized(image, colors, dither):
    levels = (image * f(255)).astype(np.uint8)
    picture_ = Image.fromarray(levels)
    palette = picture_.quantize(colors=colors)
    if dither.startswith("bayer"):
        side = int(dither.split("-")[1])
        pattern = f(512 / (len(palette.getpalette()) // 3)) * thresholds(side) + f(0.5)
        height, width = levels.shape[:2]
        tiled = np.tile(pattern, (-(-height // side), -(-width // side)))[:height, :width, None]
        picture_ = Image.fromarray(np.clip(levels.astype(f) + tiled, 0, 255).astype(np.uint8))
    kind = Image.Dither.FLOYDSTEINBERG if dither == "floyd-steinberg" else Image.Dither.NONE
    return np.array(picture_.quantize(palette=palette, dither=kind).convert("RGB")).astype(f) / f(255)


for colors, dither in ((1, "none"), (2, "none"), (5, "none"), (256, "none"), (4, "floyd-steinberg"), (16, "floyd-steinberg"),
                       (3, "bayer-2"), (4, "bayer-4"), (7, "bayer-8"), (9, "bayer-16")):
    shape = (1, 7, 18, 3)
    case("ImageQuantize", {"image": given("image", shape), "colors": colors, "dither": dither},
         quantized(picture(shape)[0], colors, dither)[None])
two = picture((2, 3, 4, 3))
case("ImageQuantize", {"image": given("image", two.shape), "colors": 3},
     np.stack([quantized(p, 3, "none") for p in two]))

print("[\n" + ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in cases) + "\n]")
