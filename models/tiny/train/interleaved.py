"""Prompts with pictures: Kosmos-G's configuration, how prompts become tensors, and the batches of the stages that train it."""
import itertools
import random

import numpy as np
import torch

import clip
import data
import grammar
import stage
import vae
import world
from kosmos_model import KosmosG
from tokenizer import Kosmos


OTHER = [1 / 3, 1 / 2]  # the share of instructions with portraits in other colours, for one subject and for two


def config(vocabulary):
    return {"model_type": "kosmos-g", "vision": clip.VISION,
            "connector": {"latent_query_num": 16, "heads": 6},
            "mllm": {"vocab_size": vocabulary, "embed_dim": 192, "layers": 3, "heads": 6, "ffn_dim": 384, "layer_norm_eps": 1e-5},
            "aligner": {"dim": 128, "encoder_layers": 2, "decoder_layers": 2, "heads": 4, "ffn_dim": 256, "max_positions": 512, "queries": 77, "layer_norm_eps": 1e-5}}


def make(args, state=None):
    """(Kosmos-G, tokenizer); state: the finished stage whose weights it has."""
    tok = Kosmos(f"{args.work}/kosmos")
    model = KosmosG(config(tok.size)).to(args.device)
    if state:
        model.load_state_dict(stage.weights(args, state, "kosmos"))
    return model, tok


def collate(tok, prompts, end=False):
    """Tokens [B, T] padded with 1 and where the picture tokens are; end: each closes with </s>."""
    rows = [tok(p) for p in prompts]
    if end:
        rows = [(ids + [2], mask + [0]) for ids, mask in rows]
    n = max(len(ids) for ids, _ in rows)
    return (torch.tensor([ids + [1] * (n - len(ids)) for ids, _ in rows]), torch.tensor([mask + [0] * (n - len(mask)) for _, mask in rows]).bool())


def encode(model, tok, prompts, pictures, device):
    """What the U-Net reads, [B, 77, 128], for prompts and their pictures (bytes [N, 96, 96, 3], in the order of the marks)."""
    ids, mask = (t.to(device) for t in collate(tok, prompts))
    return model(ids, clip.normalised(pictures, device) if len(pictures) else None, mask)


def recoloured(picture, monster, rng):
    """The picture of a monster with its channels in another order, or grey; never so that it looks like a combination that is held out."""
    colours = np.array(list(world.COLOURS.values()))
    for order in rng.permutation([p for p in itertools.permutations(range(3)) if p != (0, 1, 2)]) if rng.random() < .7 else []:
        nearest = int(((colours - colours[monster[1]][order]) ** 2).sum(1).argmin())
        if not world.held_out([monster[0], nearest, *monster[2:]]):
            return picture[..., order]
    return picture.mean(-1, keepdims=True).repeat(3, -1).astype(np.uint8)


class Rows:
    """The data set, as instructions and as documents."""

    def __init__(self, args):
        self.scenes = [world.unpack(r) for r in np.load(f"{args.work}/data/scenes.npy")]
        self.subjects = [[r.tolist() for r in rows if r[0] >= 0] for rows in np.load(f"{args.work}/data/subjects.npy")]
        self.portraits = np.load(f"{args.work}/data/portraits.npy", mmap_mode="r")
        self.n = len(self.scenes) - vae.KEPT

    def pictures(self, which):
        """The portraits (scene, slot), stacked; (scene, slot, seed) in other colours."""
        shown = [self.portraits[k, j] if not seed else recoloured(self.portraits[k, j], self.subjects[k][j], np.random.default_rng(seed)) for k, j, *seed in which]
        return np.stack(shown) if which else np.zeros((0, data.VIT, data.VIT, 3), np.uint8)

    def instruct(self, rng, r, n, text):
        """n rows of (prompt, portraits, wanted caption, scene number); text: the share without pictures.

        Some of the portraits are in colours that their monsters do not have, and the prompt says which are wanted: where only clouds are
        seen in brown stripes, whatever has brown stripes would otherwise become a cloud."""
        rows = []
        for k in rng.integers(self.n, size=n):
            scene = self.scenes[k]
            if r.random() < text:  # words alone mean what they say
                p = grammar.written(scene, r, empty=.08)
                rows.append((p, [], p, k))
            else:
                subjects, other = self.subjects[k], len(self.subjects[k]) == len(scene[0]) and r.random() < OTHER[len(scene[0]) - 1]
                if other:
                    subjects = [[shape, -1, *rest, -1] for shape, _, *rest, _ in subjects]
                p, shown = grammar.instruction(scene, subjects, r)
                rows.append((p, [(k, j, r.randrange(1 << 30)) if other else (k, j) for j in shown], grammar.caption(scene), k))
        return rows

    def documents(self, rng, r, n):
        """n rows of (text, portraits) to be learned word by word: captions, and portraits followed by their captions."""
        rows = []
        for k in rng.integers(self.n, size=n):
            say = lambda m: grammar.caption([[m[:5]], m[5]], r if r.random() < .5 else None)
            if r.random() < .2:
                rows.append((grammar.caption(self.scenes[k], r), []))
            elif len(self.subjects[k]) == 2 and r.random() < .5:
                rows.append((" ".join("<i> " + say(m) for m in self.subjects[k]), [(k, 0), (k, 1)]))
            else:
                rows.append(("<i> " + say(self.subjects[k][0]), [(k, 0)]))
        return rows


def caption_loss(model, ids, mask, pictures):
    """Next-token cross-entropy on words and </s>; picture tokens and the marks around them are not asked for."""
    h = model.hidden(ids, pictures, mask)[:, :-1]
    words = (ids[:, 1:] != 1) & ~mask[:, 1:]
    ids = torch.where(words & (ids[:, 1:] < model.words), ids[:, 1:], torch.full_like(ids[:, 1:], -100))
    logits = model.gpt_model["decoder"].output_projection(h)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), ignore_index=-100)


def held_out(n, rng, r, kind="wearing"):
    """n held-out subjects with what is asked: (prompts, portraits, wanted scenes). kind: "wearing", or "two" subjects."""
    prompts, portraits, wanted = [], [], []
    for _ in range(n):
        ms = [world.random_monster(rng, held=True) for _ in range(2 if kind == "two" else 1)]
        for m in ms:
            m[4] = 0
            portraits.append(data.small(world.draw([[m], int(rng.integers(12))], rng)[0][None])[0])
        bg = int(rng.integers(12))
        if kind == "two":
            prompts.append(f"<i> and <i> {grammar.where(bg)}")
        else:
            ms = [[*ms[0][:4], 1 + r.randrange(6)]]
            prompts.append(f"<i> wearing {grammar.accessory(ms[0][4])} {grammar.where(bg)}")
        wanted.append([ms, bg])
    return prompts, np.stack(portraits), wanted


def seeded(step, salt):
    return np.random.default_rng([salt, step]), random.Random(step * 1000 + salt)
