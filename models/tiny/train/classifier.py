"""The judge: a small convolutional network that says what is on a picture. Stages and ../evaluate score with it.
usage: classifier.py WORK [--budget cpu]

It sees clean pictures, pictures that went through the VAE, blurred, noisy and in the three styles, so that a figure speaks of the
monster drawn and not of how sharp it is. It is trained on every combination but those held out, and never trains anything."""
import cv2
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import given
import stage
import styles
import vae
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
        scene, *slots = net(vae.floats(pictures[i:i + 64], device))
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


def main():
    args = stage.arguments()
    if stage.finished(args, "classifier"):
        return
    torch.manual_seed(3)
    net, coder = Classifier().to(args.device, memory_format=torch.channels_last), vae.load(args) if stage.finished(args, "vae") else None
    pictures, rows = np.load(f"{args.work}/data/pictures.npy", mmap_mode="r"), np.load(f"{args.work}/data/scenes.npy").astype(np.int64)
    n = len(rows) - vae.KEPT
    s = stage.Stage(args, "classifier", {"classifier": net}, 2e-3, decay=.01)

    def prepare(step):
        rng = np.random.default_rng([3, step])
        index = np.sort(rng.integers(n, size=s.batch))
        y, xs = np.concatenate([rows[index], np.zeros((s.batch, 2), np.int64)], 1), []
        for k, i in enumerate(index):
            p, u = pictures[i], rng.random()
            if u < .04:
                b = int(rng.integers(12))
                p, _ = given.picture(rng, b)
                y[k] = [-1] * 10 + [b, 0, 1]
            elif u < .22:
                y[k, 11] = 1 + int((u - .04) / .06)
                p = styles.STYLES[LOOKS[y[k, 11]]](p)
            if rng.random() < .5:  # another colour says nothing about the shape
                p = p[..., rng.permutation(3)] if rng.random() < .7 else np.repeat(p.mean(-1, keepdims=True), 3, -1).astype(np.uint8)
                y[k, [1, 6, 10]] = -100
            dy, dx = rng.integers(-4, 5, 2)
            p = cv2.warpAffine(np.ascontiguousarray(p), np.float32([[1, 0, dx], [0, 1, dy]]), (128, 128), borderMode=cv2.BORDER_REPLICATE)
            xs.append(spoil(p, rng))
        return np.stack(xs), y

    batches = stage.ahead(prepare, s)

    def step(s):
        x, y = next(batches)
        x, y = vae.floats(x, args.device), torch.from_numpy(y).to(args.device)
        if coder is not None:  # some go through the VAE
            with torch.no_grad():
                k = max(len(x) // 8, 1)
                x = torch.cat([coder.decode(coder.encode(x[:k]).latent_dist.sample()).sample.clamp(-1, 1).to(x), x[k:]])
        scene, one, left, right = net(x)
        two, monster = (y[:, 5] >= 0).long(), y[:, 0] >= 0
        hidden = torch.full_like(y[:, :5], -100)
        first, second = torch.where(monster[:, None], y[:, :5], hidden), torch.where(two.bool()[:, None], y[:, 5:10], hidden)
        single, pair = torch.where(two.bool()[:, None], hidden, first), torch.where(two.bool()[:, None], first, hidden)
        a, b, c, d = scene.split([2, 12, len(LOOKS), 2], 1)
        cross = lambda o, t: F.cross_entropy(o, t, ignore_index=-100, reduction="sum") / len(x)
        loss = cross(a, two) + cross(b, y[:, 10]) + cross(c, y[:, 11]) + cross(d, y[:, 12])
        for out, target in ((one, single), (left, pair), (right, second)):
            for o, t in zip(out.split(SIZES, 1), target.T):
                loss = loss + cross(o, t)
        eyes = (one.split(SIZES, 1)[3].argmax(1) == single[:, 3]).sum() / (single[:, 3] >= 0).sum().clamp(min=1)
        return loss, {"eyes": eyes}

    s.train(step)
    s.finish(validate(args, net, coder))


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


@torch.no_grad()
def validate(args, net, coder, n=512):
    """Held-out combinations: clean, through the VAE, and shape and colour in each style."""
    rng = np.random.default_rng(31)
    n = n if args.budget != "smoke" else 8
    scenes = [world.random_scene(rng, .3, held=True) for _ in range(n)]
    drawn = np.stack([world.draw(s, rng)[0] for s in scenes])
    figures = {"clean": agreement(read(net, drawn), scenes)}
    if coder is not None:
        through = [vae.bytes_of(coder.decode(coder.encode(vae.floats(drawn[i:i + 16], args.device)).latent_dist.mean).sample) for i in range(0, n, 16)]
        figures["through the VAE"] = agreement(read(net, np.concatenate(through)), scenes)
    for name, style in styles.STYLES.items():
        answers = read(net, np.stack([style(p) for p in drawn]))
        figures[name] = {**agreement(answers, scenes), "look": float(np.mean([a["look"] == name for a in answers]))}
    figures["given monster"] = float(np.mean([a["given"] for a in read(net, np.stack([given.picture(rng)[0] for _ in range(32)]))]))
    figures["given monster seen in others"] = float(np.mean([a["given"] for a in read(net, drawn)]))
    return figures


if __name__ == "__main__":
    main()
