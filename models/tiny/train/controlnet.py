"""A ControlNet on outlines, as the node Canny draws them (thresholds 0.4 and 0.8); the U-Net is frozen.
usage: controlnet.py WORK [--budget cpu]

Captions are dropped three times in ten, so that the outline has to say the shape; noisier steps are seen more often, where it does."""
import random

import cv2
import numpy as np
import torch
from diffusers import ControlNetModel

import classifier
import grammar
import stage
import text_to_picture
import vae
import world


def outline(picture):
    """White edges on black, bytes [128, 128]."""
    return cv2.Canny(cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY), 102, 204)


def agreement(given, drawn):
    """Intersection over union of two outlines, each line widened to five pixels: an edge may be two pixels off."""
    a, b = (cv2.dilate(e, np.ones((5, 5), np.uint8)) > 0 for e in (given, drawn))
    return float((a & b).sum() / max((a | b).sum(), 1))


def make(unet):
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 24, 48)).requires_grad_(True)


def hints(outlines, device):
    return torch.from_numpy(np.stack(outlines)).to(device)[:, None].expand(-1, 3, -1, -1).float() / 255


def steer(net, outlines):
    """What a ControlNet adds to the U-Net for these outlines [N, 3, 128, 128]; part: which of them a batch is of."""
    def control(x, t, context, part=slice(None)):
        h = outlines[part]
        down, mid = net(x, t, context, h.repeat(len(x) // len(h), 1, 1, 1), return_dict=False)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    return control


def main():
    args = stage.arguments()
    if stage.finished(args, "controlnet"):
        return
    torch.manual_seed(8)
    trained, z = text_to_picture.Trained(args), text_to_picture.latents(args)
    net = make(trained.unet).to(args.device)
    pictures = np.load(f"{args.work}/data/pictures.npy", mmap_mode="r")
    scenes = [world.unpack(r) for r in np.load(f"{args.work}/data/scenes.npy")]
    s = stage.Stage(args, "controlnet", {"controlnet": net}, 1e-3)

    def prepare(step):
        rng, r = np.random.default_rng([8, step]), random.Random(step)
        index = np.sort(rng.integers(len(z) - vae.KEPT, size=s.batch))
        return torch.from_numpy(index), [grammar.written(scenes[k], r, empty=.3) for k in index], np.stack([outline(pictures[k]) for k in index])

    batches = stage.ahead(prepare, s)

    def step(s):
        index, captions, edges = next(batches)
        return text_to_picture.noise_loss(trained.unet, z[index.to(z.device)], trained.encode(captions), late=.6, control=steer(net, hints(edges, args.device)))

    s.train(step)
    s.finish(validate(args, net, trained))


def asked(n, rng):
    """n held-out monsters as outlines, and scenes that ask for another colour and another plain background."""
    given, scenes = [], []
    for _ in range(n):
        m, bg = world.random_monster(rng, held=True), int(rng.integers(8))
        given.append(world.draw([[m], bg], rng)[0])
        scenes.append([[[m[0], int(rng.integers(9)), *m[2:]]], int(rng.integers(8))])
    return given, scenes


@torch.no_grad()
def validate(args, net, trained):
    """Outline IoU (and what the VAE alone leaves of it), and whether the picture still obeys the text; writes controlnet.png."""
    n = {"gpu": 128, "cpu": 32, "smoke": 2}[args.budget]
    given, scenes = asked(n, np.random.default_rng(81))
    edges = [outline(p) for p in given]
    drawn = trained.draw([grammar.caption(s) for s in scenes], control=steer(net, hints(edges, args.device)))
    through = np.concatenate([vae.bytes_of(trained.vae.decode(trained.vae.encode(vae.floats(np.stack(given[i:i + 16]), args.device)).latent_dist.mean).sample) for i in range(0, n, 16)])
    world.sheet([q for i in range(0, min(n, 16), 8) for q in [*[np.repeat(e[..., None], 3, 2) for e in edges[i:i + 8]], *drawn[i:i + 8]]], min(8, n), f"{args.work}/controlnet.png")
    iou = lambda pictures: float(np.mean([agreement(e, outline(p)) for e, p in zip(edges, pictures)]))
    judge = classifier.load(f"{args.work}/classifier.safetensors", args.device)
    return {"outline IoU": iou(drawn), "outline IoU through the VAE": iou(through), **classifier.agreement(classifier.read(judge, drawn), scenes)}


if __name__ == "__main__":
    main()
