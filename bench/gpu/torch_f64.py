#!/usr/bin/env python3
"""Computes in PyTorch, in f64, what kernels/tests/gpu.rs wrote to a folder, and compares: torch_f64.py FOLDER

The bound is the rounding to the number type, of the result and of what a kernel keeps in that type on the way (attention's
weights), and 1e-5 of the largest value for the sums in f32.
"""

import pathlib
import re
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

ROUNDING = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}


def expected(name, t):
    """The operator that the case's name begins with, on f64 tensors."""
    kind, _, rest = name.partition(" ")
    numbers = [int(n) for n in re.findall(r"\d+", rest)]
    if kind in ("conv2d", "conv2d_add_to_channels"):
        kernel, stride = numbers[0], numbers[2]
        y = F.conv2d(t[0], t[1], t[-1], stride, 1 if kernel == 3 else 0)
        return y if kind == "conv2d" else y + t[2][:, :, None, None]
    if kind == "linear":
        return F.linear(*t)
    if kind == "attention":
        return F.scaled_dot_product_attention(t[0], t[1], t[2], t[3] if len(t) > 3 else None)
    if kind == "group_norm":
        y = F.group_norm(t[0], 32, t[1], t[2], 1e-5)
        return F.silu(y) if name.endswith("silu") else y
    if kind == "layer_norm":
        return F.layer_norm(t[0], t[1].shape, t[1], t[2], 1e-5)
    if kind == "geglu":
        h, g = t[0].chunk(2, -1)
        return h * F.gelu(g)
    if kind == "low_rank_update":
        return t[0] + t[1] @ t[2]
    if kind == "linear_combination":
        return sum(a * x for a, x in zip((0.5, 1.5, -0.25, 2.0, -1.0), t))
    if kind == "linear_combination_from":
        return torch.lerp(t[0], t[1], 7.5)
    if kind == "upsample_nearest2d":
        return F.interpolate(t[0], (65, 64), mode="nearest")
    return {"silu": F.silu, "gelu_erf": F.gelu, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}[kind](t[0])


def main():
    wrong, files = 0, sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors"))
    if not files:
        sys.exit(f"{sys.argv[1]} holds no case: was there a GPU?")
    for path in files:
        name, dtype = path.name.removesuffix(".safetensors").rsplit(".", 1)
        tensors = load_file(path)
        found = tensors.pop("found").double()
        want = expected(name, [tensors[f"input{i}"].double() for i in range(len(tensors))])
        error, largest = (found - want).abs().max().item(), want.abs().max().item()
        bound = largest * (3 * ROUNDING[dtype] + 1e-5)
        holds = error <= bound
        wrong += not holds
        print(f"{name:<52} {dtype:>4}: {error:.1e} of {bound:.1e}{'' if holds else '  WRONG'}")
    print(f"{len(files)} cases beside PyTorch in f64, {wrong} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
