"""The DreamBooth U-Net: a narrower one that knows the world and one given monster, by the name "zwx".
usage: dreambooth.py WORK [--budget cpu]

It first learns the world from the large U-Net (its predictions are the target, beside the noise), then eight pictures of the given
monster, with the world going on as prior preservation. Narrow, because it travels with the program; it takes the same text and latents
as the large one, but neither its LoRAs nor its ControlNet."""
import random

import numpy as np
import torch

import classifier
import given
import grammar
import stage
import text_to_picture
import vae
import world
from tokenizer import SPECIAL

WIDTHS = (32, 48)
WORLD_ALONE = .6  # the share of the steps before the given monster
SEEN = [0, 1, 2, 4, 5, 6, 8, 10]  # the backgrounds of the eight pictures, by day and by night; those of the others are asked for in validation


def written(background, r):
    return f"a {SPECIAL} monster" + (f" {grammar.where(background)}" if r is None or r.random() < .9 else "")


def photographs():
    rng = np.random.default_rng(100)
    return np.stack([given.picture(rng, b)[0] for b in SEEN])


def main():
    args = stage.arguments()
    if stage.finished(args, "dreambooth"):
        return
    torch.manual_seed(10)
    trained, z = text_to_picture.Trained(args), text_to_picture.latents(args)
    scenes = [world.unpack(r) for r in np.load(f"{args.work}/data/scenes.npy")]
    with torch.no_grad():
        own = trained.vae.encode(vae.floats(photographs(), args.device)).latent_dist.mean * trained.vae.config.scaling_factor
    unet = text_to_picture.make_unet(WIDTHS).to(args.device, memory_format=torch.channels_last)
    s = stage.Stage(args, "dreambooth", {"unet": unet}, 2e-3, decay=.01)

    def step(s):
        rng, r = s.rng(), random.Random(s.step)
        k = 0 if s.progress < WORLD_ALONE else max(s.batch // 3, 1)
        index, mine = rng.integers(len(z) - vae.KEPT, size=s.batch - k), rng.integers(len(own), size=k)
        latents = torch.cat([z[torch.from_numpy(index).to(z.device)].float(), own[torch.from_numpy(mine).to(z.device)].float()])
        context = trained.encode([grammar.written(scenes[i], r) for i in index] + [written(SEEN[i], r) for i in mine])
        t, e = torch.randint(0, 1000, (len(latents),), device=latents.device), torch.randn_like(latents)
        alphas = text_to_picture.ALPHAS.to(latents.device)
        a = alphas[t].view(-1, 1, 1, 1)
        x = a.sqrt() * latents + (1 - a).sqrt() * e
        with torch.no_grad():
            teacher = trained.unet(x, t, context).sample.float()
        target = torch.cat([.5 * e[:len(index)] + .5 * teacher[:len(index)], e[len(index):]])
        error = ((unet(x, t, context).sample.float() - target) ** 2).mean((1, 2, 3))
        return (error * (5 * (1 - a.flatten()) / a.flatten()).clamp(max=1)).mean()

    s.train(step)
    s.finish(validate(args, unet, trained))


@torch.no_grad()
def validate(args, unet, trained):
    """The given monster on backgrounds that its pictures do not have, and that other monsters stay what they are."""
    n = {"gpu": 64, "cpu": 16, "smoke": 2}[args.budget]
    rng = np.random.default_rng(101)
    judge = classifier.load(f"{args.work}/classifier.safetensors", args.device)
    places = [[b for b in range(12) if b not in SEEN][i % 4] for i in range(n)]
    own, scenes = trained.draw([written(b, None) for b in places], unet), [world.random_scene(rng, 0, held=True) for _ in range(n)]
    others = trained.draw([grammar.caption(s) for s in scenes], unet)
    world.sheet([*own[:8], *others[:8]], min(8, n), f"{args.work}/dreambooth.png")
    mine, theirs = classifier.read(judge, own), classifier.read(judge, others)
    return {"given monster": float(np.mean([a["given"] for a in mine])), "background": float(np.mean([a["background"] == b for a, b in zip(mine, places)])),
            "given monster where another was asked": float(np.mean([a["given"] for a in theirs])), "others": classifier.agreement(theirs, scenes)}


if __name__ == "__main__":
    main()
