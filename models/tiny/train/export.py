"""Writes what is trained in WORK as the folders a user loads (fp16).
usage: export.py WORK OUT"""
import json, os, shutil, sys
import numpy as np, torch
from PIL import Image
from safetensors.torch import save_file
import text_to_picture as t2p, world

work, out = sys.argv[1:3]
half = lambda d: {k: v.detach().to(torch.float16).contiguous().cpu() for k, v in d.items() if v.is_floating_point()}


def put(state, path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file(half(state), path, metadata={"format": "pt"})
    print(path, round(os.path.getsize(path) / 1e6, 2), "MB")


def model(m, state, folder):
    os.makedirs(folder, exist_ok=True); m.save_config(folder)
    put(state, f"{folder}/diffusion_pytorch_model.safetensors")


v, scale, text, unet, tok = t2p.load(work)
v.register_to_config(scaling_factor=scale)
model(v, v.state_dict(), f"{out}/sd/vae"); model(unet, unet.state_dict(), f"{out}/sd/unet")
os.makedirs(f"{out}/sd/text_encoder", exist_ok=True); text.config.architectures = ["CLIPTextModel"]; text.config.save_pretrained(f"{out}/sd/text_encoder")
put({k if k.startswith("text_model.") else "text_model." + k: p for k, p in text.state_dict().items()}, f"{out}/sd/text_encoder/model.safetensors")
shutil.copytree(f"{work}/sd/tokenizer", f"{out}/sd/tokenizer", dirs_exist_ok=True)
os.makedirs(f"{out}/sd/scheduler", exist_ok=True)
json.dump({"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
           "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False}, open(f"{out}/sd/scheduler/scheduler_config.json", "w"), indent=2)
json.dump({"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0", "feature_extractor": [None, None], "safety_checker": [None, None], "requires_safety_checker": False,
           "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
           "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}, open(f"{out}/sd/model_index.json", "w"), indent=2)
if os.path.exists(f"{work}/align.pt"):
    import align
    from tokenizer import Kosmos
    state = torch.load(f"{work}/align.pt", map_location="cpu")["model"]
    # the reconstruction half is for training only, and the output projection is the embedding
    state = {k: t for k, t in state.items() if not k.startswith("aligner.decoder") and k != "gpt_model.decoder.output_projection.weight"}
    put(state, f"{out}/kosmos/model.safetensors")
    json.dump(align.config(Kosmos(f"{work}/kosmos").size), open(f"{out}/kosmos/config.json", "w"), indent=2)
    for f in ("sentencepiece.bpe.model", "dict.txt"): shutil.copy(f"{work}/kosmos/{f}", f"{out}/kosmos/{f}")
if os.path.exists(f"{work}/controlnet.pt"):
    import controlnet
    model(controlnet.make(unet), torch.load(f"{work}/controlnet.pt", map_location="cpu")["model"], f"{out}/controlnet/tiny-canny")
if os.path.exists(f"{work}/sketch.pt"):
    model(unet, torch.load(f"{work}/sketch.pt", map_location="cpu"), f"{out}/unet/sketch")
os.makedirs(f"{out}/examples", exist_ok=True)
rng = np.random.default_rng(256)
world.resolution(2)
for k, (shape, eyes) in enumerate(((0, 0), (3, 1), (5, 1))):
    while True:  # combinations never trained on
        m = world.random_monster(rng, held=True)
        if m[0] == shape and m[2] in (1, 2): break
    m[3], m[4] = eyes, 0
    s = [[m], k + 1]
    Image.fromarray(world.draw(s, rng)[0]).save(f"{out}/examples/monster-{k + 1}.png", optimize=True)
    print(f"monster-{k + 1}", world.caption(s))
