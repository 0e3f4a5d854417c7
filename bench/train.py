#!/usr/bin/env python3
"""Times an update of a LoRA beside PyTorch and peft on the CPU: Stable Diffusion 1.5 in its full size, random weights, rank 16 on
the attention, 512 x 512, batch 1, AdamW.

The two run in turn, A B A B, each as a process of its own with the same number of threads, so that what else the machine does
meets both; what counts is the ratio of the medians. The first update of each is left out: it reads weights and warms up.

    cargo build --release --workspace
    bench/train.py --python PYTHON --work FOLDER [--updates 3] [--rounds 2] [--size sd15|tiny]

PYTHON is a Python with torch, diffusers, transformers and peft (scripts of bench/peers make one). FOLDER gets the random model,
4 GB, once. Prints a table: seconds of an update, the peak of the memory, and the ratio."""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "kosmograph"
LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]
SIZES = {"sd15": 512, "tiny": 128}


def make_model(folder):
    """A folder in diffusers' layout with SD 1.5's configurations and random weights in half precision."""
    import torch
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel
    torch.manual_seed(0)
    channels = [128, 256, 512, 512]
    parts = {
        "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        "vae": AutoencoderKL(block_out_channels=channels, layers_per_block=2, latent_channels=4, sample_size=512,
                             down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4),
        "text_encoder": CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                                                     num_attention_heads=12, projection_dim=768, eos_token_id=2)),
    }
    for name, part in parts.items():
        part.half().save_pretrained(folder / name, safe_serialization=True)
    DDPMScheduler(beta_start=.00085, beta_end=.012, beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
             "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
             "scheduler": ["diffusers", "DDPMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))


def peak(process):
    """Waits for a process and answers the largest memory that one of its family held, in GB, as /proc says."""
    most = 0

    def family(pid):
        yield pid
        # Each thread has children of its own.
        for listed in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                children = listed.read_text().split()
            except OSError:
                continue
            for child in children:
                yield from family(int(child))

    while process.poll() is None:
        held = 0
        for pid in family(process.pid):
            try:
                held += next(int(line.split()[1]) for line in open(f"/proc/{pid}/status") if line.startswith("VmRSS:"))
            except (OSError, StopIteration):
                pass
        most = max(most, held)
        time.sleep(.05)
    return most * 1024 / 1e9


def ours(args, model, pictures, threads):
    """Seconds of each update by the binary, and its peak."""
    folder = args.work / "ours"
    folder.mkdir(exist_ok=True)
    output = folder / "lora.safetensors"
    output.unlink(missing_ok=True)
    config = {"task": "lora", "model": str(model), "pictures": str(pictures), "caption": "a picture", "output": str(output),
              "resolution": SIZES[args.size], "steps": args.updates + 1, "checkpoint_every": 0,
              "lora": {"rank": 16, "alpha": 16, "layers": LAYERS}}
    path = folder / "train.json"
    path.write_text(json.dumps(config))
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    log = open(folder / "events", "w")
    process = subprocess.Popen([BINARY, "train", path, "--json"], stdout=log, env=environment)
    most = peak(process)
    log.close()
    if process.returncode:
        sys.exit(f"kosmograph train answered {process.returncode}")
    events = [json.loads(line) for line in open(folder / "events")]
    updates = [e["output"]["training"]["seconds"] for e in events if e["event"] == "output" and "training" in e["output"]]
    return updates[1:], most


def torch_side(args, model, threads):
    """The same by torch and peft: what this script prints when it is its own child."""
    process = subprocess.Popen([args.python, __file__, "--child", str(model), "--updates", str(args.updates), "--size", args.size,
                                "--threads", str(threads), "--work", str(args.work)], stdout=subprocess.PIPE, text=True)
    most = peak(process)
    said = process.stdout.read()
    if process.returncode:
        sys.exit(f"the torch side answered {process.returncode}")
    return json.loads(said)[1:], most


def child(args):
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from peft import LoraConfig
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(args.child, subfolder="unet", torch_dtype=torch.float32)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=LAYERS, init_lora_weights="gaussian"))
    learns = [p for p in unet.parameters() if p.requires_grad]
    optimiser, schedule = torch.optim.AdamW(learns, lr=1e-4), DDPMScheduler.from_pretrained(args.child, subfolder="scheduler")
    side, seconds = SIZES[args.size] // 8, []
    for _ in range(args.updates + 1):
        start = time.time()
        latents, context = torch.randn(1, 4, side, side), torch.randn(1, 77, unet.config.cross_attention_dim)
        noise, t = torch.randn_like(latents), torch.randint(0, 1000, (1,))
        loss = torch.nn.functional.mse_loss(unet(schedule.add_noise(latents, noise, t), t, context).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learns, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(time.time() - start)
    print(json.dumps(seconds))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--size", choices=SIZES, default="sd15")
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        return make_model(pathlib.Path(args.make))
    if args.child:
        return child(args)
    args.work.mkdir(parents=True, exist_ok=True)
    model = ROOT / "models/tiny/sd"
    if args.size == "sd15":
        model = args.work / "sd15"
        if not (model / "model_index.json").exists():
            subprocess.run([args.python, __file__, "--make", str(model), "--work", str(args.work)], check=True)
    pictures = ROOT / "models/tiny/examples"
    sides = {"kosmograph": [], "torch + peft": []}
    for _ in range(args.rounds):
        sides["kosmograph"].append(ours(args, model, pictures, args.threads))
        sides["torch + peft"].append(torch_side(args, model, args.threads))
    print(f"{args.size}, {SIZES[args.size]} x {SIZES[args.size]}, batch 1, rank 16, {args.threads} threads\n")
    print("| | seconds of an update (median) | each | peak, GB |\n|---|---|---|---|")
    medians = {}
    for side, runs in sides.items():
        every = [seconds for updates, _ in runs for seconds in updates]
        medians[side] = statistics.median(every)
        print(f"| {side} | {medians[side]:.2f} | {', '.join(f'{s:.2f}' for s in every)} | {max(most for _, most in runs):.2f} |")
    print(f"\nratio {medians['kosmograph'] / medians['torch + peft']:.2f}")


if __name__ == "__main__":
    main()
