"""Stage 2: compositional instruction tuning by score distillation, through the frozen U-Net.
usage: tune.py WORK [--budget cpu]

The noise prediction loss of the picture that is asked for, on what the aligner gives, with 0.3 of stage 1's error so that the space
stays CLIP's; nothing is asked one time in ten. ViT, connector, language model and aligner learn; U-Net and VAE do not."""
import numpy as np
import torch

import align
import classifier
import clip
import interleaved
import stage
import text_to_picture
import vae
import world


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
    s.finish({"in CLIP's space": align.arrives(args, model, tok, trained), **drawn(args, model, tok, trained)})


@torch.no_grad()
def drawn(args, model, tok, trained):
    """Held-out subjects, one and two, as the U-Net draws them; writes tune.png: the given monsters over what is drawn."""
    judge = classifier.load(f"{args.work}/classifier.safetensors", args.device)
    null, figures = interleaved.encode(model, tok, [""], np.zeros((0, 96, 96, 3), np.uint8), args.device), {}
    for kind, marks in (("wearing", 1), ("two", 2)):
        rng, r = interleaved.seeded(0, 60 + marks)
        n = {"gpu": 256, "cpu": 96, "smoke": 2}[args.budget]
        prompts, portraits, wanted = interleaved.held_out(n, rng, r, kind)
        y = torch.cat([interleaved.encode(model, tok, prompts[i:i + 32], portraits[marks * i:marks * (i + 32)], args.device) for i in range(0, n, 32)])
        pictures = text_to_picture.sample(trained.unet, trained.vae, y, null, seed=marks)
        figures[kind] = classifier.agreement(classifier.read(judge, pictures), wanted)
        if marks == 1:
            large = vae.bytes_of(torch.nn.functional.interpolate(vae.floats(portraits[:16], "cpu"), 128, mode="bilinear"))
            world.sheet([q for i in range(0, min(16, n), 8) for q in [*large[i:i + 8], *pictures[i:i + 8]]], min(8, n), f"{args.work}/tune.png")
    return figures


if __name__ == "__main__":
    main()
