"""The language model learns to speak of what it sees: captions, and pictures followed by their captions.
usage: mllm.py WORK [--budget cpu]

ViT (it begins as CLIP's), connector and decoder learn; the aligner comes later."""
import numpy as np
import torch

import clip
import grammar
import interleaved
import stage
import world


def main():
    args = stage.arguments()
    if stage.finished(args, "mllm"):
        return
    torch.manual_seed(5)
    model, tok = interleaved.make(args)
    model.words = tok.mask  # tokens from here on are marks
    model.img_model["visual"].load_state_dict(stage.weights(args, "clip", "vision"))
    model.aligner.requires_grad_(False)
    rows = interleaved.Rows(args)
    s = stage.Stage(args, "mllm", {"kosmos": model}, 1e-3, decay=.01)

    def prepare(step):
        rng, r = interleaved.seeded(step, 5)
        docs = rows.documents(rng, r, s.batch)
        return *interleaved.collate(tok, [d[0] for d in docs], end=True), rows.pictures([w for d in docs for w in d[1]]), rng.integers(1 << 30)

    batches = stage.ahead(prepare, s)

    def step(s):
        ids, mask, pictures, seed = next(batches)
        seen = clip.normalised(pictures, args.device, np.random.default_rng(seed)) if len(pictures) else None
        return interleaved.caption_loss(model, ids.to(args.device), mask.to(args.device), seen)

    s.train(step)
    s.finish(validate(args, model, tok))


@torch.no_grad()
def validate(args, model, tok):
    """Held-out monsters: how often the true caption is the likeliest of those that differ from it in one attribute."""
    n = {"gpu": 256, "cpu": 64, "smoke": 2}[args.budget]
    rng, figures = np.random.default_rng(51), {}
    scenes = [world.random_scene(rng, 0, held=True) for _ in range(n)]
    drawn = clip.normalised(interleaved.data.small(np.stack([world.draw(s, rng)[0] for s in scenes])), args.device)
    for name, at, count in clip.WRONG:
        hit = 0
        for k, (ms, bg) in enumerate(scenes):
            m = ms[0]
            texts = ["<i> " + grammar.caption([[m[:at] + [c] + m[at + 1:]], bg] if at < 5 else [ms, c]) for c in range(count)]
            ids, mask = (t.to(args.device) for t in interleaved.collate(tok, texts, end=True))
            logits = model.gpt_model["decoder"].output_projection(model.hidden(ids, drawn[k:k + 1].expand(count, -1, -1, -1), mask)[:, :-1]).float()
            picked = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0] * ((ids[:, 1:] != 1) & ~mask[:, 1:])
            hit += int(picked.sum(1).argmax().item() == (m[at] if at < 5 else bg))
        figures[name] = hit / n
    return figures


if __name__ == "__main__":
    main()
