"""Writes what is trained in WORK as the folders that the loaders read (fp16), with the log and the judge of ../evaluate.
usage: export.py WORK OUT

Stages that are not finished are left out and named. All the weights together may be 20 MB."""
import json
import os
import shutil

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import controlnet
import dreambooth
import grammar
import interleaved
import inversion
import lora
import stage
import styles
import text_to_picture
import world

LIMIT = 20_000_000
PRODUCED = ["sd", "kosmos", "controlnet", "unet", "loras", "embeddings", "evaluate"]


def put(state, path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    half = {k: v.detach().to(torch.float16).contiguous().cpu() for k, v in state.items() if v.is_floating_point()}
    too_big = [k for k, v in half.items() if not torch.isfinite(v).all()]
    if too_big:
        raise SystemExit(f"{path}: {too_big[0]} does not fit in fp16")
    save_file(half, path, metadata={"format": "pt"})
    print(path, round(os.path.getsize(path) / 1e6, 2), "MB")


def model(m, folder):
    os.makedirs(folder, exist_ok=True)
    m.save_config(folder)
    put(m.state_dict(), f"{folder}/diffusion_pytorch_model.safetensors")


def text(value, path):
    json.dump(value, open(path, "w"), indent=2)


def stable_diffusion(args, out):
    trained = text_to_picture.Trained(args)
    model(trained.vae, f"{out}/sd/vae")
    model(trained.unet, f"{out}/sd/unet")
    os.makedirs(f"{out}/sd/text_encoder", exist_ok=True)
    trained.text.config.architectures = ["CLIPTextModel"]
    trained.text.config.save_pretrained(f"{out}/sd/text_encoder")
    put({k if k.startswith("text_model.") else "text_model." + k: p for k, p in trained.text.state_dict().items()}, f"{out}/sd/text_encoder/model.safetensors")
    shutil.copytree(f"{args.work}/sd/tokenizer", f"{out}/sd/tokenizer", dirs_exist_ok=True)
    os.makedirs(f"{out}/sd/scheduler", exist_ok=True)
    text({"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
          "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False}, f"{out}/sd/scheduler/scheduler_config.json")
    text({"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0", "feature_extractor": [None, None], "safety_checker": [None, None], "requires_safety_checker": False,
          "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
          "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}, f"{out}/sd/model_index.json")
    return trained


def kosmos(args, out, name):
    m, tok = interleaved.make(args, name)
    # the reconstruction half is for training alone, and the output projection is the embedding
    put({k: t for k, t in m.state_dict().items() if not k.startswith("aligner.decoder") and k != "gpt_model.decoder.output_projection.weight"}, f"{out}/kosmos/model.safetensors")
    text(interleaved.config(tok.size), f"{out}/kosmos/config.json")
    for f in ("sentencepiece.bpe.model", "dict.txt"):
        shutil.copy(f"{args.work}/kosmos/{f}", f"{out}/kosmos/{f}")


def examples(out):
    """Held-out monsters, drawn at twice the size: what the workflows show to Kosmos-G."""
    os.makedirs(f"{out}/examples", exist_ok=True)
    rng, colours = np.random.default_rng(256), {"red", "orange", "yellow", "blue", "purple", "pink"}
    world.resolution(2)
    for k, (shape, eyes) in enumerate(((0, 0), (3, 1), (5, 1))):
        m = [-1] * 5
        while m[0] != shape or m[2] not in (1, 2) or world.CNAMES[m[1]] not in colours:
            m = world.random_monster(rng, held=True)
        colours.remove(world.CNAMES[m[1]])
        m[3:] = eyes, 0
        scene = [[m], k + 1]
        Image.fromarray(world.draw(scene, rng)[0]).save(f"{out}/examples/monster-{k + 1}.png", optimize=True)
        print(f"monster-{k + 1}:", grammar.caption(scene))


def main():
    args = stage.arguments("out")
    args.device, out, missing = "cpu", args.out, []
    have = lambda name: stage.finished(args, name) or missing.append(name)
    if not have("text_to_picture"):
        raise SystemExit("text_to_picture.py has not finished; without it there is nothing to export")
    trained = stable_diffusion(args, out)
    if have("tune"):
        kosmos(args, out, "tune")
    elif have("align"):
        kosmos(args, out, "align")
    if have("controlnet"):
        net = controlnet.make(trained.unet)
        net.load_state_dict(stage.weights(args, "controlnet", "controlnet"))
        model(net, f"{out}/controlnet/tiny-canny")
    if have("dreambooth"):
        unet = text_to_picture.make_unet(dreambooth.WIDTHS)
        unet.load_state_dict(stage.weights(args, "dreambooth", "unet"))
        model(unet, f"{out}/unet/dreambooth")
    for look in styles.STYLES:
        if have(f"lora-{look}"):
            pairs = lora.attach(text_to_picture.make_unet())
            pairs.load_state_dict(stage.weights(args, f"lora-{look}", "lora"))
            put(lora.named(pairs, look), f"{out}/loras/{look}.safetensors")
    if have("inversion"):
        put({"emb_params": stage.weights(args, "inversion", "inversion")["vectors"]}, f"{out}/embeddings/moss.safetensors")
    if have("classifier"):
        put(stage.weights(args, "classifier", "classifier"), f"{out}/evaluate/classifier.safetensors")
    examples(out)
    os.makedirs(f"{out}/train", exist_ok=True)
    logs = {f.removesuffix(".json"): json.load(open(f"{args.work}/log/{f}")) for f in sorted(os.listdir(f"{args.work}/log")) if f.endswith(".json")}
    text({name: {k: v for k, v in log.items() if k != "curve"} | {"last": log["curve"][-1]} for name, log in logs.items()}, f"{out}/train/log.json")
    size = sum(os.path.getsize(os.path.join(folder, f)) for part in PRODUCED for folder, _, files in os.walk(f"{out}/{part}") for f in files)
    print(f"{size / 1e6:.2f} MB in all; not finished and left out: {', '.join(missing) or 'nothing'}")
    if size > LIMIT:
        raise SystemExit(f"that is more than {LIMIT / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
