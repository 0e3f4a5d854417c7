"""Stage 1: what the language model says, in the space of CLIP's text encoder.
usage: align.py WORK [--budget cpu]

First captions alone, and only the aligner learns: squared error to CLIP's hidden states, and the reconstruction half back to the
language model's. Then instructions with pictures as well, for which CLIP reads the canonical caption of what is asked; everything
learns, and the language model keeps captioning."""
import numpy as np
import torch

import classifier
import clip
import grammar
import interleaved
import stage
import text_to_picture
import vae
import world

TEXT_ONLY = .25  # the share of the steps


class Target:
    """CLIP's hidden states of captions, and the squared error to them; positions that vary little weigh as much as the others."""

    def __init__(self, trained, scenes):
        self.trained = trained
        t = trained.encode([grammar.caption(s) for s in scenes[:200]] + [""])
        self.spread = .5 * t.var((0, 2), keepdim=True).clamp(min=.02) + .5 * t.var(0).mean()

    def error(self, y, captions):
        return ((y.float() - self.trained.encode(captions).float()) ** 2 / self.spread).mean()


def main():
    args = stage.arguments()
    if stage.finished(args, "align"):
        return
    torch.manual_seed(6)
    trained, (model, tok) = text_to_picture.Trained(args), interleaved.make(args, "mllm")
    model.words = tok.mask
    rows = interleaved.Rows(args)
    target = Target(trained, rows.scenes)
    s = stage.Stage(args, "align", {"kosmos": model}, 1e-3, decay=.01)

    def prepare(step):
        rng, r = interleaved.seeded(step, 6)
        alone = step / s.steps < TEXT_ONLY
        asked, docs = rows.instruct(rng, r, s.batch, 1 if alone else .25), [] if alone else rows.documents(rng, r, max(s.batch // 4, 1))
        tensors = [(*interleaved.collate(tok, [a[0] for a in part], end), rows.pictures([w for a in part for w in a[1]])) if part else None for part, end in ((asked, False), (docs, True))]
        return *tensors, [a[2] for a in asked], rng.integers(1 << 30)

    batches = stage.ahead(prepare, s)

    def step(s):
        (ids, mask, pictures), docs, captions, seed = next(batches)
        see = lambda p: clip.normalised(p, args.device, np.random.default_rng(seed)) if len(p) else None
        ids = ids.to(args.device)
        h, pad = model.hidden(ids, see(pictures), mask.to(args.device)), ids.eq(1)
        if docs is None:
            h = h.detach()
        y = model.aligner.encode(h, pad)
        error = target.error(y, captions)
        loss, shown = error, {"align": error}
        if docs is None or s.step % 4 == 0:
            back = ((model.aligner.reconstruct(y, pad) - h.detach())[~pad] ** 2).mean() * 77 / ids.shape[1]
            loss, shown = loss + .1 * back, {**shown, "reconstruct": back}
        if docs is not None:
            words = interleaved.caption_loss(model, docs[0].to(args.device), docs[1].to(args.device), see(docs[2]))
            loss, shown = loss + .1 * words, {**shown, "caption": words}
        return loss, shown

    s.train(step)
    s.finish(validate(args, model, tok, trained, target))


@torch.no_grad()
def validate(args, model, tok, trained, target=None, name="align"):
    """Held-out subjects: which attribute arrives in CLIP's space (the nearest of the captions that differ in it alone), and what is drawn."""
    n = {"gpu": 256, "cpu": 64, "smoke": 2}[args.budget]
    rng, r = interleaved.seeded(0, 61)
    prompts, portraits, wanted = interleaved.held_out(n, rng, r)
    y = torch.cat([interleaved.encode(model, tok, prompts[i:i + 32], portraits[i:i + 32], args.device) for i in range(0, n, 32)])
    space = {}
    for what, at, count in clip.WRONG:
        hit = 0
        for k, (ms, bg) in enumerate(wanted):
            m = ms[0]
            t = trained.encode([grammar.caption([[m[:at] + [c] + m[at + 1:]], bg] if at < 5 else [ms, c]) for c in range(count)])
            hit += int(((t - y[k]) ** 2).mean((1, 2)).argmin().item() == (m[at] if at < 5 else bg))
        space[what] = hit / n
    null = interleaved.encode(model, tok, [""], portraits[:0], args.device)
    judge = classifier.load(f"{args.work}/classifier.safetensors", args.device)
    drawn = text_to_picture.sample(trained.unet, trained.vae, y, null)
    large = vae.bytes_of(torch.nn.functional.interpolate(vae.floats(portraits[:16], "cpu"), 128, mode="bilinear"))
    world.sheet([q for i in range(0, min(16, n), 8) for q in [*large[i:i + 8], *drawn[i:i + 8]]], min(8, n), f"{args.work}/{name}.png")
    figures = {"in CLIP's space": space, "drawn": classifier.agreement(classifier.read(judge, drawn), wanted)}
    prompts, portraits, wanted = interleaved.held_out(n // 2, rng, r, "two")
    y = torch.cat([interleaved.encode(model, tok, prompts[i:i + 32], portraits[2 * i:2 * i + 64], args.device) for i in range(0, n // 2, 32)])
    drawn = text_to_picture.sample(trained.unet, trained.vae, y, null, seed=1)
    figures["two subjects"] = classifier.agreement(classifier.read(judge, drawn), wanted)
    return figures


if __name__ == "__main__":
    main()
