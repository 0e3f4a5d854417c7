"""Text → picture: the U-Net (noise prediction on SD 1.5's schedule), conditioned on CLIP's text encoder, which is frozen.
usage: text_to_picture.py WORK [--budget cpu]

Min-SNR weights (gamma 5), captions dropped one time in ten, averaged weights."""
import os
import random

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel

import classifier
import clip
import grammar
import stage
import vae
import world

SCHEDULE = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, prediction_type="epsilon")
ALPHAS = torch.cumprod(1 - torch.linspace(SCHEDULE["beta_start"] ** .5, SCHEDULE["beta_end"] ** .5, 1000) ** 2, 0)


def make_unet(widths=(64, 96)):
    """Attention at 8 x 8 alone: at 16 x 16 it would double what a step costs."""
    return UNet2DConditionModel(sample_size=16, in_channels=4, out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                                block_out_channels=widths, layers_per_block=1, cross_attention_dim=128, attention_head_dim=4, norm_num_groups=8)


def latents(args, change=None, name="latents", limit=None):
    """[N, 4, 16, 16], scaled, of the data set's pictures or of what change makes of them. Written once for a VAE."""
    path = f"{args.work}/data/{name}.pt"
    if not os.path.exists(path) or os.path.getmtime(path) < os.path.getmtime(f"{args.work}/vae.safetensors"):
        coder, out = vae.load(args), []
        pictures = np.load(f"{args.work}/data/pictures.npy", mmap_mode="r")[:limit]
        step = 256 if str(args.device).startswith("cuda") else 16
        with torch.no_grad():
            for i in range(0, len(pictures), step):
                p = pictures[i:i + step] if change is None else np.stack([change(q) for q in pictures[i:i + step]])
                out.append((coder.encode(vae.floats(p, args.device)).latent_dist.mean * coder.config.scaling_factor).half().cpu())
        torch.save(torch.cat(out), path)
    return torch.load(path, weights_only=True).to(args.device)


def noise_loss(unet, z, context, late=1.0, control=None):
    """The weighted error of the predicted noise; late < 1 favours noisier steps (t = 1000 u^late); control: a ControlNet's part."""
    z, alphas = z.float(), ALPHAS.to(z.device)
    t = (1000 * torch.rand(len(z), device=z.device) ** late).long().clamp(max=999)
    e, a = torch.randn_like(z), alphas[t].view(-1, 1, 1, 1)
    x = a.sqrt() * z + (1 - a).sqrt() * e
    pred = unet(x, t, context, **(control(x, t, context) if control else {})).sample.float()
    snr = alphas[t] / (1 - alphas[t])
    return ((pred - e) ** 2).mean((1, 2, 3)).mul((5 / snr).clamp(max=1)).mean()


@torch.no_grad()
def sample(unet, coder, context, null, cfg=4.0, steps=20, seed=0, control=None):
    """Pictures [N, 128, 128, 3] for contexts [N, 77, 128], as the workflows draw: DPM-Solver++ 2M, 20 steps, guidance 4."""
    out, device, noise = [], context.device, torch.Generator().manual_seed(seed)
    for at in range(0, len(context), 64):
        cond = context[at:at + 64]
        s = DPMSolverMultistepScheduler(**SCHEDULE)
        s.set_timesteps(steps)
        x = torch.randn(len(cond), 4, 16, 16, generator=noise).to(device)
        both = torch.cat([null.expand_as(cond), cond])
        for t in s.timesteps:
            xx, tt = torch.cat([x, x]), t.to(device).expand(2 * len(x))
            u, c = unet(xx, tt, both, **(control(xx, tt, both, slice(at, at + 64)) if control else {})).sample.float().chunk(2)
            x = s.step(u + cfg * (c - u), t, x).prev_sample
        out.append(vae.bytes_of(coder.decode(x / coder.config.scaling_factor).sample))
    return np.concatenate(out)


class Trained(clip.Texts):
    """Everything from text to picture, trained and frozen."""

    def __init__(self, args):
        super().__init__(args)
        self.vae, self.unet = vae.load(args), make_unet().to(args.device)
        self.unet.load_state_dict(stage.weights(args, "text_to_picture", "unet"))
        self.unet.eval().requires_grad_(False)

    def draw(self, texts, unet=None, **kw):
        return sample(unet or self.unet, self.vae, self.encode(texts), self.encode([""]), **kw)


def main():
    args = stage.arguments()
    if stage.finished(args, "text_to_picture"):
        return
    torch.manual_seed(4)
    texts, unet = clip.Texts(args), make_unet().to(args.device, memory_format=torch.channels_last)
    z, scenes = latents(args), [world.unpack(r) for r in np.load(f"{args.work}/data/scenes.npy")]
    s = stage.Stage(args, "text_to_picture", {"unet": unet}, 1.5e-3, decay=.01, average=.9995)

    def prepare(step):
        rng, r = np.random.default_rng([4, step]), random.Random(step)
        index = rng.integers(len(z) - vae.KEPT, size=s.batch)
        return torch.from_numpy(index), [grammar.written(scenes[k], r) for k in index]

    batches = stage.ahead(prepare, s)

    def step(s):
        index, captions = next(batches)
        return noise_loss(unet, z[index.to(z.device)], texts.encode(captions))

    s.train(step)
    s.finish(validate(args, unet, texts))


@torch.no_grad()
def validate(args, unet, texts, n=256):
    """Held-out combinations, drawn and judged; writes text_to_picture.png."""
    n = {"gpu": n, "cpu": 64, "smoke": 2}[args.budget]
    rng = np.random.default_rng(41)
    scenes = [world.random_scene(rng, .3, held=True) for _ in range(n)]
    drawn = sample(unet, vae.load(args), texts.encode([grammar.caption(s) for s in scenes]), texts.encode([""]))
    world.sheet(drawn[:32], 8, f"{args.work}/text_to_picture.png")
    return classifier.agreement(classifier.read(classifier.load(f"{args.work}/classifier.safetensors", args.device), drawn), scenes)


if __name__ == "__main__":
    main()
