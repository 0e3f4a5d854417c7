"""A textual inversion: two vectors that stand for one held-out monster; everything else is frozen.
usage: inversion.py WORK [--budget cpu]"""
import random

import numpy as np
import torch
import torch.nn as nn

import classifier
import grammar
import stage
import text_to_picture
import vae
import world

MONSTER = next([s, c, p, 1, 0] for s in (5, 3, 0) for c in range(9) for p in (1, 2) if world.held_out([s, c, p]))
PLACES = ["!", "\""]  # tokens that nothing says; the vectors stand in for them
SEEN = [0, 1, 3, 4, 6, 7, 8, 10, 11]  # backgrounds of its pictures


class Vectors(nn.Module):
    def __init__(self, text, start):
        super().__init__()
        self.vectors = nn.Parameter(start.clone())
        self.places = None
        text.get_input_embeddings().register_forward_hook(self.replace)

    def replace(self, _, inputs, out):
        for number, place in enumerate(self.places):
            out = torch.where((inputs[0] == place)[..., None], self.vectors[number].to(out), out)
        return out


def written(background, r=None):
    return f"a {PLACES[0]} {PLACES[1]} monster" + (f" {grammar.where(background)}" if r is None or r.random() < .9 else "")


def main():
    args = stage.arguments()
    if stage.finished(args, "inversion"):
        return
    torch.manual_seed(11)
    trained, rng = text_to_picture.Trained(args), np.random.default_rng(110)
    seen = np.stack([world.draw([[MONSTER], b], rng)[0] for b in SEEN])
    with torch.no_grad():
        z = trained.vae.encode(vae.floats(seen, args.device)).latent_dist.mean * trained.vae.config.scaling_factor
        table = trained.text.get_input_embeddings().weight
        start = torch.stack([table[trained.tok.v[w + "</w>"]] for w in ("plain", "round")])
    learned = Vectors(trained.text, start).to(args.device)
    learned.places = [trained.tok.v[p + "</w>"] for p in PLACES]
    s = stage.Stage(args, "inversion", {"inversion": learned}, 5e-3, average=.99, skip=("vectors",))

    def step(s):
        rng, r = s.rng(), random.Random(s.step)
        index = rng.integers(len(z), size=s.batch)
        context = trained.text(trained.tok([written(SEEN[i], r) for i in index]).to(args.device)).last_hidden_state
        return text_to_picture.noise_loss(trained.unet, z[torch.from_numpy(index).to(z.device)], context)

    s.train(step)
    s.finish(validate(args, trained))


@torch.no_grad()
def validate(args, trained):
    n = {"gpu": 64, "cpu": 16, "smoke": 2}[args.budget]
    scenes = [[[MONSTER], k % 12] for k in range(n)]
    drawn = trained.draw([written(b) for _, b in scenes])
    world.sheet(drawn[:16], min(8, n), f"{args.work}/inversion.png")
    return classifier.agreement(classifier.read(classifier.load(f"{args.work}/classifier.safetensors", args.device), drawn), scenes)


if __name__ == "__main__":
    main()
