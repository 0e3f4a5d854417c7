"""A LoRA for each look, in three namings: pencil as kohya's scripts write it, neon as PEFT, pixel as diffusers before PEFT.
usage: lora.py WORK [--budget cpu]

Rank 4 on the attention's and the feed-forward's linear layers, and rank 8 on the convolutions of the blocks that go down and up: attention
at 8 x 8 knows nothing of lines and texture. It learns from captions that do not mention the look: with the LoRA on, everything has it."""
import random

import numpy as np
import torch
import torch.nn as nn

import classifier
import grammar
import stage
import styles
import text_to_picture
import world

LINEAR, CONVOLUTION = 4, 8  # the ranks; alpha is the same, so that what is learned is added as it is
STRENGTH = {"pencil": 1.0, "neon": 1.0, "pixel": 1.25}  # of what is written: at 1 some blocks come out half soft (evaluate.py --only "lora pixel" --strength 0.8)
NAMING = {
    "pencil": lambda path, part: f"lora_unet_{path.replace('.', '_')}.lora_{part}.weight",
    "neon": lambda path, part: f"unet.{path}.lora_{'A' if part == 'down' else 'B'}.weight",
    "pixel": lambda path, part: f"unet.{path}.lora.{part}.weight",
}


class Pair(nn.Module):
    """What a LoRA adds to a linear layer or a convolution: up(down(x)). The convolution's kernel is down's, up is 1 x 1."""

    def __init__(self, layer):
        super().__init__()
        if isinstance(layer, nn.Linear):
            self.rank = LINEAR
            self.down, self.up = nn.Linear(layer.in_features, self.rank, bias=False), nn.Linear(self.rank, layer.out_features, bias=False)
        else:
            self.rank = CONVOLUTION
            self.down = nn.Conv2d(layer.in_channels, self.rank, layer.kernel_size, layer.stride, layer.padding, bias=False)
            self.up = nn.Conv2d(self.rank, layer.out_channels, 1, bias=False)
        nn.init.normal_(self.down.weight, std=1 / self.rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.up(self.down(x))


def attach(unet):
    """Hangs a pair on each linear layer of the transformers and on each convolution of the blocks; answers the pairs by path, "__" for the dots."""
    pairs = nn.ModuleDict()
    for path, m in unet.named_modules():
        if isinstance(m, nn.Linear) and "transformer_blocks" in path or isinstance(m, nn.Conv2d) and path.startswith(("down_blocks", "up_blocks")):
            pair = pairs[path.replace(".", "__")] = Pair(m)
            m.register_forward_hook(lambda m, inputs, out, pair=pair: out + pair(inputs[0]))
    return pairs


def named(pairs, look):
    """The tensors as the look's naming writes them, at the look's strength."""
    out = {}
    for key, pair in pairs.items():
        path = key.replace("__", ".")
        out |= {NAMING[look](path, "down"): pair.down.weight, NAMING[look](path, "up"): pair.up.weight * STRENGTH[look]}
        if look == "pencil":
            out[NAMING[look](path, "down").removesuffix(".lora_down.weight") + ".alpha"] = torch.tensor(float(pair.rank))
    return out


def main():
    args = stage.arguments()
    for number, (look, style) in enumerate(styles.STYLES.items()):
        if stage.finished(args, f"lora-{look}"):
            continue
        torch.manual_seed(9 + number)
        trained = text_to_picture.Trained(args)
        limit = {"gpu": 8192, "cpu": 4096, "smoke": 16}[args.budget]
        z = text_to_picture.latents(args, style, f"latents-{look}", limit)
        scenes = [world.unpack(r) for r in np.load(f"{args.work}/data/scenes.npy")[:limit]]
        pairs = attach(trained.unet).to(args.device)
        s = stage.Stage(args, f"lora-{look}", {"lora": pairs}, 2e-3, average=.99)

        def step(s):
            rng, r = s.rng(), random.Random(s.step)
            index = rng.integers(len(z), size=s.batch)
            return text_to_picture.noise_loss(trained.unet, z[torch.from_numpy(index).to(z.device)], trained.encode([grammar.written(scenes[k], r) for k in index]))

        s.train(step)
        s.finish(validate(args, trained, look))


@torch.no_grad()
def validate(args, trained, look):
    n = {"gpu": 128, "cpu": 24, "smoke": 2}[args.budget]
    rng = np.random.default_rng(91)
    scenes = [world.random_scene(rng, 0, held=True) for _ in range(n)]
    drawn = trained.draw([grammar.caption(s) for s in scenes])
    world.sheet(drawn[:16], min(8, n), f"{args.work}/lora-{look}.png")
    answers = classifier.read(classifier.load(f"{args.work}/classifier.safetensors", args.device), drawn)
    return {"look": float(np.mean([a["look"] == look for a in answers])), **classifier.agreement(answers, scenes)}


if __name__ == "__main__":
    main()
