#!/usr/bin/env python3
"""SwinIR after the paper (arXiv 2108.10257) in plain torch, slow and obvious: small networks of random numbers, a picture, and what comes
of it. Windows are taken one by one, and who sees whom is asked pixel by pixel, so that it shares nothing with the implementation.

    make.py FOLDER
"""

import math
import pathlib
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

CHANNELS, WINDOW, HEADS, HIDDEN, DEPTHS, FEATURES = 12, 4, 2, 24, (2, 2), 8
MEAN = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)


def shapes(kind, scale, three):
    """Names and shapes as the published files have them."""
    c = CHANNELS

    def conv(name, inputs, outputs, side=3):
        return {f"{name}.weight": (outputs, inputs, side, side), f"{name}.bias": (outputs,)}

    def norm(name):
        return {f"{name}.weight": (c,), f"{name}.bias": (c,)}

    def linear(name, inputs, outputs):
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    def ending(name):
        if not three:
            return conv(name, c, c)
        return {**conv(f"{name}.0", c, c // 4), **conv(f"{name}.2", c // 4, c // 4, 1), **conv(f"{name}.4", c // 4, c)}

    all_of_it = {**conv("conv_first", 3, c), **norm("patch_embed.norm"), **norm("norm"), **ending("conv_after_body")}
    for i, depth in enumerate(DEPTHS):
        for j in range(depth):
            block = f"layers.{i}.residual_group.blocks.{j}"
            all_of_it |= {**norm(f"{block}.norm1"), **norm(f"{block}.norm2")}
            all_of_it |= {f"{block}.attn.relative_position_bias_table": ((2 * WINDOW - 1) ** 2, HEADS)}
            all_of_it |= {**linear(f"{block}.attn.qkv", c, 3 * c), **linear(f"{block}.attn.proj", c, c)}
            all_of_it |= {**linear(f"{block}.mlp.fc1", c, HIDDEN), **linear(f"{block}.mlp.fc2", HIDDEN, c)}
        all_of_it |= ending(f"layers.{i}.conv")
    if kind == "shuffle":
        all_of_it |= {**conv("conv_before_upsample.0", c, FEATURES), **conv("conv_last", FEATURES, 3)}
        for step in range(1 if scale == 3 else int(math.log2(scale))):
            all_of_it |= conv(f"upsample.{2 * step}", FEATURES, (9 if scale == 3 else 4) * FEATURES)
    elif kind == "direct":
        all_of_it |= conv("upsample.0", c, 3 * scale * scale)
    elif kind == "nearest":
        all_of_it |= {**conv("conv_before_upsample.0", c, FEATURES), **conv("conv_last", FEATURES, 3)}
        for name in ("conv_up1", "conv_up2", "conv_hr"):
            all_of_it |= conv(name, FEATURES, FEATURES)
    else:
        all_of_it |= conv("conv_last", c, 3)
    return all_of_it


class Network:
    def __init__(self, kind, scale, three):
        self.kind, self.scale, self.three = kind, scale, three
        self.w = {}
        for name, shape in shapes(kind, scale, three).items():
            numbers = torch.randn(shape) * (0.5 / math.sqrt(max(1, math.prod(shape[1:]))) if len(shape) > 1 else 0.1)
            self.w[name] = numbers + 1 if "norm" in name and name.endswith("weight") else numbers
            if "table" in name:
                self.w[name] = torch.randn(shape) * 0.5

    def conv(self, name, x):
        weight = self.w[f"{name}.weight"]
        return F.conv2d(x, weight, self.w[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, name, x):
        return F.layer_norm(x, (CHANNELS,), self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-5)

    def linear(self, name, x):
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def ending(self, name, x):
        if not self.three:
            return self.conv(name, x)
        x = F.leaky_relu(self.conv(f"{name}.0", x), 0.2)
        return self.conv(f"{name}.4", F.leaky_relu(self.conv(f"{name}.2", x), 0.2))

    def attention(self, name, x, shift):
        """x [H, W, C]: every pixel of a window asks every other one."""
        height, width, _ = x.shape
        x = x.roll((-shift, -shift), (0, 1))
        table = self.w[f"{name}.relative_position_bias_table"]
        out = torch.zeros_like(x)
        side = CHANNELS // HEADS

        def part(place, length):
            return 0 if place < length - WINDOW else 1 if place < length - shift else 2

        for top in range(0, height, WINDOW):
            for left in range(0, width, WINDOW):
                places = [(top + i, left + j) for i in range(WINDOW) for j in range(WINDOW)]
                window = torch.stack([x[y, z] for y, z in places])
                q, k, v = self.linear(f"{name}.qkv", window).split(CHANNELS, dim=1)
                heads = []
                for head in range(HEADS):
                    of = slice(head * side, (head + 1) * side)
                    scores = q[:, of] @ k[:, of].T * side**-0.5
                    for a, (ya, xa) in enumerate(places):
                        for b, (yb, xb) in enumerate(places):
                            scores[a, b] += table[(ya - yb + WINDOW - 1) * (2 * WINDOW - 1) + xa - xb + WINDOW - 1, head]
                            strangers = (part(ya, height), part(xa, width)) != (part(yb, height), part(xb, width))
                            if shift and strangers:
                                scores[a, b] -= 100
                    heads.append(scores.softmax(dim=1) @ v[:, of])
                for place, numbers in zip(places, self.linear(f"{name}.proj", torch.cat(heads, dim=1))):
                    out[place] = numbers
        return out.roll((shift, shift), (0, 1))

    def body(self, x):
        """x [1, C, H, W]."""
        x = self.norm("patch_embed.norm", x[0].permute(1, 2, 0))
        for i, depth in enumerate(DEPTHS):
            inner = x
            for j in range(depth):
                block = f"layers.{i}.residual_group.blocks.{j}"
                shift = WINDOW // 2 if j % 2 else 0
                inner = inner + self.attention(f"{block}.attn", self.norm(f"{block}.norm1", inner), shift)
                hidden = F.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", inner)))
                inner = inner + self.linear(f"{block}.mlp.fc2", hidden)
            x = x + self.ending(f"layers.{i}.conv", inner.permute(2, 0, 1)[None])[0].permute(1, 2, 0)
        return self.ending("conv_after_body", self.norm("norm", x).permute(2, 0, 1)[None])

    def __call__(self, image):
        _, _, height, width = image.shape
        x = F.pad(image, (0, -width % WINDOW, 0, -height % WINDOW), mode="reflect") - MEAN
        first = self.conv("conv_first", x)
        features = self.body(first) + first
        if self.kind == "shuffle":
            y = F.leaky_relu(self.conv("conv_before_upsample.0", features), 0.01)
            for step in range(1 if self.scale == 3 else int(math.log2(self.scale))):
                y = F.pixel_shuffle(self.conv(f"upsample.{2 * step}", y), 3 if self.scale == 3 else 2)
            y = self.conv("conv_last", y)
        elif self.kind == "direct":
            y = F.pixel_shuffle(self.conv("upsample.0", features), self.scale)
        elif self.kind == "nearest":
            y = F.leaky_relu(self.conv("conv_before_upsample.0", features), 0.01)
            for name in ("conv_up1", "conv_up2"):
                y = F.leaky_relu(self.conv(name, F.interpolate(y, scale_factor=2, mode="nearest")), 0.2)
            y = self.conv("conv_last", F.leaky_relu(self.conv("conv_hr", y), 0.2))
        else:
            y = x + self.conv("conv_last", features)
        return (y + MEAN)[:, :, : height * self.scale, : width * self.scale]


def main():
    folder = pathlib.Path(sys.argv[1])
    torch.manual_seed(2024)
    for name, kind, scale, three in [
        ("shuffle_x4", "shuffle", 4, False),
        ("shuffle_x3", "shuffle", 3, True),
        ("direct_x2", "direct", 2, False),
        ("nearest_x4", "nearest", 4, True),
        ("nothing", "nothing", 1, False),
    ]:
        network = Network(kind, scale, three)
        # No multiple of the window; more than one across.
        image = torch.rand(1, 3, 7, 10)
        tensors = {f"params.{key}": value.contiguous() for key, value in network.w.items()}
        tensors |= {"input": image, "output": network(image).contiguous()}
        save_file(tensors, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main()
