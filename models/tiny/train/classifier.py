"""The judge: a small convolutional network that says what is on a picture. ../evaluate scores with it.
usage: classifier.py OUT.safetensors [--vae ../sd/vae]   trains another one; the bundled one was trained by this file as it was at commit 2196e7e

It sees clean pictures, pictures that went through the VAE, blurred, noisy and in the three styles, so that a figure speaks of the
monster drawn and not of how sharp it is. It is trained on every combination but those held out, and never trains anything."""
import argparse
import json

import cv2
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import given
import styles
import world

SIZES = [8, 9, 4, 4, 7]  # shape, colour, pattern, eyes, accessory
NAMES = ["shape", "colour", "pattern", "eyes", "accessory"]
LOOKS = ["plain", *styles.STYLES]


class Classifier(nn.Module):
    """[B, 3, 128, 128] in -1..1 → whether there are two, background, look, whether it is the given monster, and three times the
    five attributes: of the one monster, of the left one of a pair, of the right one."""

    def __init__(self, widths=(16, 32, 48, 64, 96)):
        super().__init__()
        layers, before = [], 3
        for w in widths:
            layers += [nn.Conv2d(before, w, 3, 2 if before > 3 else 1, 1), nn.GroupNorm(4, w), nn.SiLU(), nn.Conv2d(w, w, 3, 1, 1, groups=1 if w < 64 else 4), nn.GroupNorm(4, w), nn.SiLU()]
            before = w
        self.body = nn.Sequential(*layers)
        self.scene = nn.Linear(2 * before, 2 + 12 + len(LOOKS) + 2)
        self.one, self.side = (nn.Sequential(nn.Linear(k * before, 96), nn.SiLU(), nn.Linear(96, sum(SIZES))) for k in (6, 4))

    def forward(self, x):
        h = self.body(x)  # 8 x 8
        pool = lambda t: torch.cat([t.mean((2, 3)), t.amax((2, 3))], 1)
        whole, left, right = pool(h), h[..., :4], h[..., 4:]
        rows = lambda t: torch.cat([pool(t[:, :, :4]), pool(t[:, :, 4:])], 1)
        return self.scene(whole), self.one(torch.cat([whole, rows(h)], 1)), self.side(rows(left)), self.side(rows(right))


def floats(pictures, device):
    """Bytes [N, H, W, 3] to [N, 3, H, W] in -1..1."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return x.contiguous(memory_format=torch.channels_last)


def bytes_of(x):
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def load(path, device):
    from safetensors.torch import load_file
    net = Classifier().to(device)
    net.load_state_dict({k.removeprefix("classifier/"): v.float() for k, v in load_file(path, device=str(device)).items()})
    return net.eval().requires_grad_(False)


@torch.no_grad()
def read(net, pictures):
    """What is on pictures [N, 128, 128, 3]: a list of {"two", "background", "look", "given", "monsters": [[five numbers], ...]}."""
    device, out = next(net.parameters()).device, []
    for i in range(0, len(pictures), 64):
        scene, *slots = net(floats(pictures[i:i + 64], device))
        two, background, look, given_one = (t.argmax(1).tolist() for t in scene.split([2, 12, len(LOOKS), 2], 1))
        slots = [torch.stack([t.argmax(1) for t in s.split(SIZES, 1)], 1).tolist() for s in slots]
        out += [{"two": bool(a), "background": b, "look": LOOKS[c], "given": bool(d), "monsters": [l, r] if a else [m]}
                for a, b, c, d, m, l, r in zip(two, background, look, given_one, *slots)]
    return out


def spoil(p, rng):
    """Blur, fewer pixels, noise, other brightness: what a weak VAE does."""
    u = rng.random()
    if u < .25:
        p = cv2.GaussianBlur(p, (0, 0), rng.uniform(.5, 2.2))
    elif u < .4:
        n = int(rng.integers(40, 96))
        p = cv2.resize(cv2.resize(p, (n, n), interpolation=cv2.INTER_AREA), (128, 128), interpolation=cv2.INTER_CUBIC)
    if rng.random() < .3:
        p = np.clip(p + rng.normal(0, rng.uniform(2, 12), p.shape), 0, 255).astype(np.uint8)
    if rng.random() < .3:
        p = np.clip(p * rng.uniform(.85, 1.12) + rng.uniform(-10, 10), 0, 255).astype(np.uint8)
    return p


def agreement(answers, scenes):
    """Shares of the answers that agree with the scenes, over single monsters; for pairs that both are there, with the right shapes."""
    right = {k: [] for k in [*NAMES, "background", "pair"]}
    for a, (monsters, background) in zip(answers, scenes):
        right["background"].append(a["background"] == background)
        if len(monsters) == 2:
            right["pair"].append(a["two"] and [m[0] for m in a["monsters"]] == [m[0] for m in monsters])
        else:
            for j, name in enumerate(NAMES):
                right[name].append(not a["two"] and a["monsters"][0][j] == monsters[0][j])
    return {k: round(float(np.mean(v)), 4) for k, v in right.items() if v}


def shown(rng):
    """(picture, eleven numbers of its scene, look, whether it is the given monster) for one step; -100: not asked."""
    scene, u = world.random_scene(rng), rng.random()
    p, y = world.draw(scene, rng)[0], [*world.pack(scene), 0, 0]
    if u < .04:
        b = int(rng.integers(12))
        p, y = given.picture(rng, b)[0], [-1] * 10 + [b, 0, 1]
    elif u < .22:
        y[11] = 1 + int((u - .04) / .06)
        p = styles.STYLES[LOOKS[y[11]]](p)
    if rng.random() < .5:  # another colour says nothing about the shape
        p = p[..., rng.permutation(3)] if rng.random() < .7 else np.repeat(p.mean(-1, keepdims=True), 3, -1).astype(np.uint8)
        y[1] = y[6] = y[10] = -100
    dy, dx = rng.integers(-4, 5, 2)
    p = cv2.warpAffine(np.ascontiguousarray(p), np.float32([[1, 0, dx], [0, 1, dy]]), (128, 128), borderMode=cv2.BORDER_REPLICATE)
    return spoil(p, rng), y


def loss_of(answers, y):
    """The cross entropy of everything that is asked. y: [B, 13] of `shown`."""
    scene, one, left, right = answers
    two, monster = (y[:, 5] >= 0).long(), y[:, 0] >= 0
    hidden = torch.full_like(y[:, :5], -100)
    first, second = torch.where(monster[:, None], y[:, :5], hidden), torch.where(two.bool()[:, None], y[:, 5:10], hidden)
    single, pair = torch.where(two.bool()[:, None], hidden, first), torch.where(two.bool()[:, None], first, hidden)
    a, b, c, d = scene.split([2, 12, len(LOOKS), 2], 1)
    cross = lambda o, t: F.cross_entropy(o, t, ignore_index=-100, reduction="sum") / len(y)
    loss = cross(a, two) + cross(b, y[:, 10]) + cross(c, y[:, 11]) + cross(d, y[:, 12])
    for out, target in ((one, single), (left, pair), (right, second)):
        for o, t in zip(out.split(SIZES, 1), target.T):
            loss = loss + cross(o, t)
    return loss


@torch.no_grad()
def through(coder, pictures):
    """Pictures as the VAE gives them back."""
    return bytes_of(coder.decode(coder.encode(floats(pictures, "cpu")).latent_dist.mean).sample)


def validate(net, coder, n=512):
    """Held-out combinations: clean, through the VAE, and shape and colour in each style."""
    rng = np.random.default_rng(31)
    scenes = [world.random_scene(rng, .3, held=True) for _ in range(n)]
    drawn = np.stack([world.draw(s, rng)[0] for s in scenes])
    figures = {"clean": agreement(read(net, drawn), scenes)}
    if coder is not None:
        figures["through the VAE"] = agreement(read(net, np.concatenate([through(coder, drawn[i:i + 16]) for i in range(0, n, 16)])), scenes)
    for name, style in styles.STYLES.items():
        answers = read(net, np.stack([style(p) for p in drawn]))
        figures[name] = {**agreement(answers, scenes), "look": float(np.mean([a["look"] == name for a in answers]))}
    figures["given monster"] = float(np.mean([a["given"] for a in read(net, np.stack([given.picture(rng)[0] for _ in range(32)]))]))
    figures["given monster seen in others"] = float(np.mean([a["given"] for a in read(net, drawn)]))
    return figures


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("out")
    p.add_argument("--vae", help="a folder: every eighth picture goes through this autoencoder")
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--batch", type=int, default=48)
    p.add_argument("--validate", type=int, default=512, help="pictures of held-out monsters that the figures are of")
    args = p.parse_args()
    torch.manual_seed(3)
    coder = None
    if args.vae:
        from diffusers import AutoencoderKL
        coder = AutoencoderKL.from_pretrained(args.vae).eval().requires_grad_(False)
    net = Classifier().to(memory_format=torch.channels_last)
    averages = [p.detach().clone() for p in net.parameters()]
    optimiser = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=.01)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: min(1, (k + 1) / 100, (args.steps - k) / (.3 * args.steps)))
    for step in range(args.steps):
        rng = np.random.default_rng([3, step])
        pictures, rows = zip(*(shown(rng) for _ in range(args.batch)))
        pictures, k = np.stack(pictures), max(args.batch // 8, 1)
        if coder is not None:
            pictures[:k] = through(coder, pictures[:k])
        loss = loss_of(net(floats(pictures, "cpu")), torch.tensor(rows))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        rate.step()
        torch._foreach_lerp_(averages, [p.detach() for p in net.parameters()], 1 - min(.999, (step + 2) / (step + 11)))
        if step % 50 == 0 or step + 1 == args.steps:
            print(f"step {step + 1} of {args.steps}: loss {loss.item():.4f}", flush=True)
    for p, average in zip(net.parameters(), averages):
        p.data.copy_(average)
    from safetensors.torch import save_file
    save_file({f"classifier/{k}": v.half().contiguous() for k, v in net.state_dict().items()}, args.out)
    print(json.dumps(validate(net.eval(), coder, args.validate)))


if __name__ == "__main__":
    main()
