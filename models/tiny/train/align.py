"""Stage 1: what the language model says, in the space of CLIP's text encoder.
usage: align.py WORK [--budget cpu]

First captions alone, and only the aligner learns: squared error to CLIP's hidden states, and the reconstruction half back to the
language model's. Then instructions with pictures as well, for which CLIP reads the canonical caption of what is asked; everything
learns, and the language model keeps captioning. What is said must also be nearer to the caption that is wanted than to ones that are wrong
in one thing: for CLIP some words lie so close together that the squared error alone would not tell them apart."""
import numpy as np
import torch
import torch.nn.functional as F

import clip
import grammar
import interleaved
import stage

TEXT_ONLY = .25  # the share of the steps
SHARP = .25  # how much a unit of squared distance, over all 77 x 128 numbers, is worth as a logit


class Target:
    """CLIP's hidden states of captions, and the squared error to them; positions that vary little weigh as much as the others."""

    def __init__(self, texts, scenes):
        self.texts = texts
        t = texts.encode([grammar.caption(s) for s in scenes[:200]] + [""])
        self.spread = .5 * t.var((0, 2), keepdim=True).clamp(min=.02) + .5 * t.var(0).mean()

    def error(self, y, captions):
        return ((y.float() - self.texts.encode(captions).float()) ** 2 / self.spread).mean()

    def nearest(self, y, captions, wrong):
        """Cross-entropy of the wanted caption among those that are wrong. y: [B, 77, 128]; wrong: for each row one with another shape, and others."""
        every = self.texts.encode([c for row in zip(captions, *zip(*wrong)) for c in row]).float().unflatten(0, (len(y), -1))
        return F.cross_entropy(-SHARP * ((y.float()[:, None] - every) ** 2).sum((2, 3)), torch.zeros(len(y), dtype=torch.long, device=y.device))


def main():
    args = stage.arguments()
    if stage.finished(args, "align"):
        return
    torch.manual_seed(6)
    texts, (model, tok) = clip.Texts(args), interleaved.make(args, "mllm")
    model.words = tok.mask
    rows = interleaved.Rows(args)
    target = Target(texts, rows.scenes)
    s = stage.Stage(args, "align", {"kosmos": model}, 1e-3, decay=.01)

    def prepare(step):
        rng, r = interleaved.seeded(step, 6)
        alone = step / s.steps < TEXT_ONLY
        asked, docs = rows.instruct(rng, r, s.batch, 1 if alone else .25), [] if alone else rows.documents(rng, r, max(s.batch // 4, 1))
        tensors = [(*interleaved.collate(tok, [a[0] for a in part], end), rows.pictures([w for a in part for w in a[1]])) if part else None for part, end in ((asked, False), (docs, True))]
        shown = [i for i, a in enumerate(asked) if a[1]]
        wrong = [[grammar.caption(clip.wrong(rows.scenes[asked[i][3]], w, r)) for w in (0, r.randrange(1, len(clip.WRONG)))] for i in shown]
        return *tensors, [a[2] for a in asked], shown, wrong, rng.integers(1 << 30)

    batches = stage.ahead(prepare, s)

    def step(s):
        (ids, mask, pictures), docs, captions, shown, wrong, seed = next(batches)
        see = lambda p: clip.normalised(p, args.device, np.random.default_rng(seed)) if len(p) else None
        ids = ids.to(args.device)
        h, pad = model.hidden(ids, see(pictures), mask.to(args.device)), ids.eq(1)
        if docs is None:
            h = h.detach()
        y = model.aligner.encode(h, pad)
        error = target.error(y, captions)
        loss, said = error, {"align": error}
        if shown:
            near = target.nearest(y[shown], [captions[i] for i in shown], wrong)
            loss, said = loss + .1 * near, {**said, "nearest": near}
        if docs is None or s.step % 4 == 0:
            back = ((model.aligner.reconstruct(y, pad) - h.detach())[~pad] ** 2).mean() * 77 / ids.shape[1]
            loss, said = loss + .1 * back, {**said, "reconstruct": back}
        if docs is not None:
            words = interleaved.caption_loss(model, docs[0].to(args.device), docs[1].to(args.device), see(docs[2]))
            loss, said = loss + .1 * words, {**said, "caption": words}
        return loss, said

    s.train(step)
    s.finish({"in CLIP's space": arrives(args, model, tok, texts)})


def asked(args):
    n = {"gpu": 256, "cpu": 128, "smoke": 2}[args.budget]
    rng, r = interleaved.seeded(0, 61)
    return interleaved.held_out(n, rng, r)


@torch.no_grad()
def arrives(args, model, tok, texts):
    """Held-out subjects: which attribute arrives in CLIP's space (the nearest of the captions that differ in it alone)."""
    prompts, portraits, wanted = asked(args)
    n, space = len(prompts), {}
    y = torch.cat([interleaved.encode(model, tok, prompts[i:i + 32], portraits[i:i + 32], args.device) for i in range(0, n, 32)])
    for what, at, count in clip.WRONG:
        hit = 0
        for k, (ms, bg) in enumerate(wanted):
            m = ms[0]
            t = texts.encode([grammar.caption([[m[:at] + [c] + m[at + 1:]], bg] if at < 5 else [ms, c]) for c in range(count)])
            hit += int(((t - y[k]) ** 2).mean((1, 2)).argmin().item() == (m[at] if at < 5 else bg))
        space[what] = hit / n
    return space


if __name__ == "__main__":
    main()
