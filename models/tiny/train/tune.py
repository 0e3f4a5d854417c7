"""Stage 2: compositional instruction tuning by score distillation, through the frozen U-Net.
usage: tune.py WORK [--budget cpu]

The noise prediction loss of the picture that is asked for, on what the aligner gives, with 0.3 of stage 1's error so that the space
stays CLIP's; nothing is asked one time in ten. ViT, connector, language model and aligner learn; U-Net and VAE do not."""
import numpy as np
import torch

import align
import clip
import interleaved
import stage
import text_to_picture


def main():
    args = stage.arguments()
    if stage.finished(args, "tune"):
        return
    torch.manual_seed(7)
    trained, (model, tok) = text_to_picture.Trained(args), interleaved.make(args, "align")
    rows, z = interleaved.Rows(args), text_to_picture.latents(args)
    target = align.Target(trained, rows.scenes)
    s = stage.Stage(args, "tune", {"kosmos": model}, 4e-4, decay=.01)

    def prepare(step):
        rng, r = interleaved.seeded(step, 7)
        asked = [("", [], "", k) if r.random() < .1 else (p, w, c, k) for p, w, c, k in rows.instruct(rng, r, s.batch, .15)]
        return (*interleaved.collate(tok, [a[0] for a in asked]), rows.pictures([w for a in asked for w in a[1]]), [a[2] for a in asked],
                torch.from_numpy(np.array([a[3] for a in asked])), rng.integers(1 << 30))

    batches = stage.ahead(prepare, s)

    def step(s):
        ids, mask, pictures, captions, index, seed = next(batches)
        seen = clip.normalised(pictures, args.device, np.random.default_rng(seed)) if len(pictures) else None
        y = model(ids.to(args.device), seen, mask.to(args.device))
        error, noise = target.error(y, captions), text_to_picture.noise_loss(trained.unet, z[index.to(z.device)], y)
        return noise + .3 * error, {"noise": noise, "align": error}

    s.train(step)
    s.finish(align.validate(args, model, tok, trained, name="tune"))


if __name__ == "__main__":
    main()
