"""CLIP: the ViT and the text encoder learn to find each other.
usage: clip.py WORK [--budget cpu]

The contrastive loss over the batch, both ways, as CLIP's; and because few of a batch's captions differ in the eyes alone,
each picture has captions more that are wrong in one thing each. The ViT then sees for Kosmos-G, and the text encoder speaks to
the U-Net."""
import random

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import CLIPTextConfig, CLIPTextModel

import data
import grammar
import stage
import world
from kosmos_model import Visual
from tokenizer import Clip

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
VISION = {"image_size": data.VIT, "patch_size": 12, "width": 128, "layers": 4, "heads": 4, "mlp_ratio": 4.0, "image_mean": list(MEAN), "image_std": list(STD)}
CLOSE = 3  # captions of a picture that are wrong in one thing, of the six kinds
WRONG = [("shape", 0, 8), ("colour", 1, 9), ("pattern", 2, 4), ("eyes", 3, 4), ("accessory", 4, 7), ("background", 5, 12)]


def make_text(tokenizer):
    n = len(tokenizer.v)
    return CLIPTextModel(CLIPTextConfig(vocab_size=n, hidden_size=128, intermediate_size=256, projection_dim=128, num_hidden_layers=2, num_attention_heads=4,
                                        max_position_embeddings=77, hidden_act="quick_gelu", bos_token_id=n - 2, eos_token_id=n - 1, pad_token_id=1))


def make_vision():
    return Visual(VISION["image_size"], VISION["patch_size"], VISION["width"], VISION["layers"], VISION["heads"], VISION["mlp_ratio"])


class Projections(nn.Module):
    """From either encoder to the space they share."""

    def __init__(self):
        super().__init__()
        self.visual, self.text = nn.Linear(128, 128, bias=False), nn.Linear(128, 128, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(np.log(1 / .07), dtype=torch.float32))

    def see(self, h):
        return F.normalize(self.visual(h[:, 0] + h[:, 1:].mean(1)).float(), dim=-1)

    def read(self, h, ids):
        return F.normalize(self.text(h[torch.arange(len(h)), (ids == ids.max()).int().argmax(1)]).float(), dim=-1)


class Texts:
    """The trained text encoder, frozen."""

    def __init__(self, args):
        self.device, self.tok = args.device, Clip(f"{args.work}/sd/tokenizer")
        self.text = make_text(self.tok).to(args.device)
        self.text.load_state_dict(stage.weights(args, "clip", "text"))
        self.text.eval().requires_grad_(False)

    @torch.no_grad()
    def encode(self, texts):
        """[N, 77, 128]."""
        return self.text(self.tok(texts).to(self.device)).last_hidden_state


def normalised(pictures, device, rng=None):
    """Bytes [N, 96, 96, 3] to what the ViT sees; with rng, moved by up to six pixels."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float() / 255
    if rng is not None:
        dy, dx = (torch.from_numpy(rng.uniform(-.06, .06, len(x)).astype(np.float32)).to(device) for _ in range(2))
        zoom = torch.from_numpy(rng.uniform(.92, 1.06, len(x)).astype(np.float32)).to(device)
        one, nought = zoom, torch.zeros_like(zoom)
        grid = F.affine_grid(torch.stack([one, nought, dx, nought, one, dy], 1).view(-1, 2, 3), x.shape, align_corners=False)
        x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return (x - torch.tensor(MEAN, device=device).view(3, 1, 1)) / torch.tensor(STD, device=device).view(3, 1, 1)


def wrong(scene, which, r):
    """The scene with one thing changed, WRONG[which], and never to a combination that is held out."""
    monsters, background = [list(m) for m in scene[0]], scene[1]
    _, at, n = WRONG[which]
    if at == 5:
        return [monsters, (background + 1 + r.randrange(n - 1)) % n]
    m = r.choice(monsters)
    others = [v for v in range(n) if v != m[at] and not world.held_out([*m[:at], v, *m[at + 1:]])]
    if not others:
        return wrong(scene, 5, r)
    m[at] = r.choice(others)
    return [monsters, background]


def main():
    args = stage.arguments()
    if stage.finished(args, "clip"):
        return
    torch.manual_seed(2)
    d, tok = args.device, Clip(f"{args.work}/sd/tokenizer")
    modules = {"vision": make_vision().to(d), "text": make_text(tok).to(d), "projections": Projections().to(d)}
    vision, text, projections = modules.values()
    pictures, rows = np.load(f"{args.work}/data/portraits.npy", mmap_mode="r"), np.load(f"{args.work}/data/subjects.npy")
    small, scenes = np.load(f"{args.work}/data/pictures.npy", mmap_mode="r"), np.load(f"{args.work}/data/scenes.npy")
    n = len(rows) - 128
    s = stage.Stage(args, "clip", modules, 1e-3, decay=.01)

    def prepare(step):
        """Half portraits, half scenes (of which a third are pairs)."""
        rng = np.random.default_rng([2, step])
        r = random.Random(step)
        xs, seen, captions = [], [], []
        for k in rng.integers(n, size=s.batch):
            if r.random() < .5:
                xs.append(pictures[k, 0])
                seen.append([[rows[k, 0, :5].tolist()], int(rows[k, 0, 5])])
            else:
                xs.append(None)
                seen.append(world.unpack(scenes[k]))
                xs[-1] = data.small(small[k][None])[0]
        captions = [grammar.caption(q, r if r.random() < .5 else None) for q in seen]
        others = [grammar.caption(wrong(q, w, r)) for q in seen for w in r.sample(range(len(WRONG)), CLOSE)]
        exact = [grammar.caption(q) for q in seen]
        return np.stack(xs), tok(captions, 32), tok(exact, 32), tok(others, 32), rng.integers(1 << 30)

    batches = stage.ahead(prepare, s)

    def step(s):
        x, ids, exact, others, seed = next(batches)
        v = projections.see(vision(normalised(x, d, np.random.default_rng(seed))))
        read = lambda i: projections.read(text(i.to(d)).last_hidden_state, i.to(d))
        t = read(ids)
        scale = projections.logit_scale.clamp(max=np.log(100)).exp()
        logits, same = scale * v @ t.T, torch.arange(len(v), device=d)
        loss = (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2
        every = torch.cat([read(exact)[:, None], read(others).view(len(v), CLOSE, -1)], 1)
        near = scale * (every @ v[..., None])[..., 0]
        return loss + F.cross_entropy(near, torch.zeros_like(same)), {f"right of {1 + CLOSE}": (near.argmax(1) == 0).float().mean()}

    s.train(step)
    s.finish(validate(args, *modules.values(), tok))


@torch.no_grad()
def validate(args, vision, text, projections, tok, n=256):
    """Held-out monsters: how often the true caption is the nearest of all that differ from it in one attribute."""
    rng, figures = np.random.default_rng(11), {}
    n = n if args.budget != "smoke" else 8
    scenes = [world.random_scene(rng, 0, held=True) for _ in range(n)]
    drawn = data.small(np.stack([world.draw(s, rng)[0] for s in scenes]))
    v = torch.cat([projections.see(vision(normalised(drawn[i:i + 32], args.device))) for i in range(0, n, 32)])
    for name, at, count in WRONG:
        hit = 0
        for k, (ms, bg) in enumerate(scenes):
            m = ms[0]
            ids = tok([grammar.caption([[m[:at] + [c] + m[at + 1:]], bg] if at < 5 else [ms, c]) for c in range(count)], 32).to(args.device)
            hit += int((projections.read(text(ids).last_hidden_state, ids) @ v[k]).argmax().item() == (m[at] if at < 5 else bg))
        figures[name] = hit / n
    return figures


if __name__ == "__main__":
    main()
