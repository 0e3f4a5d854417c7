#!/usr/bin/env python3
"""Whether a checkpoint that CheckpointSave wrote is the same models in diffusers: mixes the bundled U-Net with a changed copy of it, saves the
mix with its CLIP and VAE as one file, has diffusers read that, and holds each part against what diffusers says with the weights mixed
by hand. Then reads the file again here and holds the picture against that of the mix in the graph.

usage: checkpoint_in_diffusers.py [--program target/release/kosmograph] [--ratio 0.3]

It wants diffusers, transformers and torch; nothing else of the project does. The exit code is 1 where a part differs by more than 2e-5 of
its largest value or the pictures by more than a level."""
import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "models" / "tiny" / "sd"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def node(cls, **inputs):
    return {"class_type": cls, "inputs": inputs}


def draw(workflow, name, model, clip, vae):
    """Adds nodes that draw a picture."""
    for side, text in (("positive", "a green monster"), ("negative", "snow")):
        workflow[f"{name}-{side}"] = node("CLIPTextEncode", text=text, clip=clip)
    workflow[f"{name}-sample"] = node(
        "KSampler", model=model, positive=[f"{name}-positive", 0], negative=[f"{name}-negative", 0], latent_image=["empty", 0],
        seed=5, steps=4, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0)
    workflow[f"{name}-decode"] = node("VAEDecode", samples=[f"{name}-sample", 0], vae=vae)
    workflow[f"{name}-save"] = node("SaveImage", images=[f"{name}-decode", 0], filename_prefix=name)


def run(program, workflow, folder):
    command = [program, "run", "-", "--models", str(ROOT / "models"), "--models", str(folder), "--out", str(folder / "out")]
    done = subprocess.run(command, input=json.dumps(workflow), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=str(ROOT / "target/release/kosmograph"))
    parser.add_argument("--ratio", type=float, default=0.3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        other = folder / "diffusion_models" / "other"
        shutil.copytree(MODEL / "unet", other)
        generator = torch.Generator().manual_seed(0)
        changed = {name: (value.float() * 0.9 + 0.02 * torch.randn(value.shape, generator=generator)).half()
                   for name, value in load_file(other / WEIGHTS).items()}
        save_file(changed, other / WEIGHTS)
        empty = {"empty": node("EmptyLatentImage", width=64, height=64, batch_size=1)}
        workflow = empty | {
            "base": node("CheckpointLoaderSimple", ckpt_name="tiny/sd"),
            "other": node("UNETLoader", unet_name="other", weight_dtype="default"),
            "mix": node("ModelMergeSimple", model1=["base", 0], model2=["other", 0], ratio=args.ratio),
            "save": node("CheckpointSave", model=["mix", 0], clip=["base", 1], vae=["base", 2], filename_prefix="checkpoints/mixed"),
        }
        draw(workflow, "before", ["mix", 0], ["base", 1], ["base", 2])
        run(args.program, workflow, folder)
        saved = folder / "out" / "checkpoints" / "mixed_00001_.safetensors"
        again = empty | {"again": node("CheckpointLoaderSimple", ckpt_name="mixed.safetensors")}
        draw(again, "after", ["again", 0], ["again", 1], ["again", 2])
        (folder / "checkpoints").mkdir()
        shutil.copy(saved, folder / "checkpoints" / "mixed.safetensors")
        run(args.program, again, folder)

        wanted = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
        mixed = {name: args.ratio * value + (1 - args.ratio) * changed[name].float()
                 for name, value in wanted.unet.state_dict().items()}
        # What the file keeps of a number.
        mixed = {name: value.to(load_file(MODEL / "unet" / WEIGHTS)[name].dtype).float() for name, value in mixed.items()}
        wanted.unet.load_state_dict(mixed)
        found = StableDiffusionPipeline.from_single_file(str(saved), config=str(MODEL), torch_dtype=torch.float32)
        x = torch.randn(1, wanted.unet.config.in_channels, 16, 16, generator=generator)
        ids = wanted.tokenizer(["a green monster"], padding="max_length", return_tensors="pt").input_ids
        parts = {
            "text encoder": lambda of: of.text_encoder(ids)[0],
            "U-Net": lambda of: of.unet(x, torch.tensor([501]), wanted.text_encoder(ids)[0]).sample,
            "decoder": lambda of: of.vae.decode(x).sample,
            "encoder": lambda of: of.vae.encode(wanted.vae.decode(x).sample).latent_dist.mode(),
        }
        worst = 0.0
        for name, ask in parts.items():
            ours, theirs = ask(wanted), ask(found)
            apart = ((ours - theirs).abs().max() / ours.abs().max()).item()
            worst = max(worst, apart)
            print(f"{name}: {apart:.1e} of the largest value apart")
        pictures = [Image.open(folder / "out" / f"{name}_00001_.png").convert("RGB") for name in ("before", "after")]
        same = pictures[0].tobytes() == pictures[1].tobytes()
        levels = max(abs(a - b) for a, b in zip(*(picture.tobytes() for picture in pictures)))
        print(f"read again here it draws {'the same picture' if same else f'a picture that is {levels} levels apart'}")
    return 0 if worst <= 2e-5 and levels <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
