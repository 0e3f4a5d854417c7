#!/usr/bin/env python3
"""Whether a LoRA that `kosmograph train` made is the same LoRA in diffusers: loads the bundled model and the file there, and
holds one call of the U-Net against the same call with the weights merged by hand.

usage: lora_in_diffusers.py LORA [--model models/tiny/sd]

It wants diffusers, peft, transformers and torch; nothing else of the project does. Prints how many layers diffusers put the LoRA
on, how far the LoRA moves the prediction, and how far diffusers' prediction is from the merged one; the exit code is 1 where
a layer is missing or they differ by more than 2e-5 of the largest value."""
import argparse
import sys

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file


def merged(unet, tensors):
    """The U-Net's tensors with alpha / rank · up · down added to each layer that the file has."""
    weights = {name: value.clone() for name, value in unet.state_dict().items()}
    modules = {"lora_unet_" + name.replace(".", "_"): name for name, _ in unet.named_modules()}
    layers = sorted(name.removesuffix(".lora_up.weight") for name in tensors if name.endswith(".lora_up.weight"))
    for layer in layers:
        if not layer.startswith("lora_unet_"):
            continue
        up, down = (tensors[f"{layer}.lora_{part}.weight"].float() for part in ("up", "down"))
        change = (up.flatten(1) @ down.flatten(1)).reshape(weights[modules[layer] + ".weight"].shape)
        weights[modules[layer] + ".weight"] += tensors[f"{layer}.alpha"].item() / down.shape[0] * change
    return weights, [layer for layer in layers if layer.startswith("lora_unet_")]


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lora")
    parser.add_argument("--model", default="models/tiny/sd")
    args = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(args.model, torch_dtype=torch.float32)
    unet = pipeline.unet.eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, unet.config.in_channels, 16, 16, generator=generator)
    context = torch.randn(1, 77, unet.config.cross_attention_dim, generator=generator)
    call = lambda: unet(x, torch.tensor([501]), context).sample
    base, tensors = call(), load_file(args.lora)
    weights, layers = merged(unet, tensors)
    before = unet.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    unet.load_state_dict(weights)
    wanted = call()
    unet.load_state_dict(before)
    pipeline.load_lora_weights(args.lora)
    found = call()
    taken = sum(hasattr(module, "lora_A") and len(module.lora_A) > 0 for module in unet.modules())
    largest = wanted.abs().max().item()
    moved, apart = (wanted - base).abs().max().item() / largest, (found - wanted).abs().max().item() / largest
    print(f"{taken} of {len(layers)} layers; the LoRA moves the prediction by {moved:.3f} of its largest value;"
          f" diffusers and the merged weights are {apart:.1e} apart")
    return 0 if taken == len(layers) and apart <= 2e-5 and moved > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
