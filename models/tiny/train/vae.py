"""The VAE (diffusers' AutoencoderKL, f = 8, 4 latent channels).
usage: vae.py WORK [--budget cpu]

Learns on 64-pixel crops, most of them around a face, then on whole pictures; at last the decoder alone, and half of what it sees has one
of the looks: a LoRA can only draw what the decoder can. Faces weigh three times as much, and a term keeps the spread of the latent channels
even: the U-Net's noise is the same in each."""
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

import given
import stage
import styles
import world

CROPS = .35  # the share of the steps on crops
ENCODER = .58  # the share of the steps in which the encoder learns too
LOOKS = [*styles.STYLES.values(), styles.pixels]  # pixels twice: their steps are the hardest to draw
KEPT = 128  # the last pictures are for validation


def make():
    return AutoencoderKL(in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                         block_out_channels=(16, 32, 64, 80), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=128)


def load(args):
    """The trained VAE, frozen, with the scaling factor in its config."""
    vae = make().to(args.device)
    vae.load_state_dict(stage.weights(args, "vae", "vae"))
    vae.register_to_config(scaling_factor=stage.figures(args, "vae")["scaling_factor"])
    return vae.eval().requires_grad_(False)


def floats(pictures, device):
    """Bytes [N, H, W, 3] to [N, 3, H, W] in -1..1."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return x.contiguous(memory_format=torch.channels_last)


def bytes_of(x):
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def loss_of(vae, x, w, encoder=True):
    """x: [B, 3, H, W]; w: [B, 1, H, W], what each pixel weighs; encoder: whether it learns."""
    with torch.set_grad_enabled(encoder):
        q = vae.encode(x).latent_dist
    y = vae.decode(q.mean + q.std * torch.randn_like(q.mean)).sample.float()
    e = y - x
    low = F.avg_pool2d(e, 4)  # colour comes last by itself: ask for it
    steep = sum((w.narrow(d, 1, w.shape[d] - 1) * (e.diff(dim=d)).abs()).mean() for d in (2, 3))
    kl = .5 * (q.mean ** 2 + q.var - 1 - q.logvar).float().mean()
    spread = (q.mean.float().std((0, 2, 3)).log() ** 2).mean()
    loss = (w * (e.abs() + 3 * e * e)).mean() + steep + 2 * low.abs().mean() + 6 * (low - low.mean(1, keepdim=True)).pow(2).mean()
    return loss + 1e-3 * kl + .02 * spread, (e.clamp(-2, 2) ** 2).mean()


class Crops:
    """Batches of pictures and of what their pixels weigh."""

    def __init__(self, work):
        self.pictures, self.faces = np.load(f"{work}/data/pictures.npy", mmap_mode="r"), np.load(f"{work}/data/faces.npy")
        self.yy, self.xx = np.mgrid[:128, :128]

    def __call__(self, rng, n, whole, looks):
        xs, ws = [], []
        for i in np.sort(rng.integers(len(self.pictures) - KEPT, size=n)):
            p, f = self.pictures[i], self.faces[i]
            u = rng.random()
            if u < looks:
                p = LOOKS[int(u * len(LOOKS) / looks)](p)
            elif u < looks + .02:
                p, f = given.picture(rng)
            w = np.ones((128, 128), np.float32)
            for fx, fy, r in f:
                if r > 0:
                    w[np.hypot((self.xx - fx) / .8, self.yy - fy) < r * .65] = 3
            if not whole:
                k = f[int(len(f) > 1 and f[1][2] > 0 and rng.random() < .5)]
                cx, cy = (np.array(k[:2]) - 32 + rng.uniform(-26, 26, 2) * (1 if rng.random() < .65 else 3)).clip(0, 64).astype(int)
                p, w = p[cy:cy + 64, cx:cx + 64], w[cy:cy + 64, cx:cx + 64]
            if rng.random() < .5:
                p, w = p[:, ::-1], w[:, ::-1]
            xs.append(p)
            ws.append(w)
        return np.stack(xs), np.stack(ws)[:, None]


def main():
    args = stage.arguments()
    if stage.finished(args, "vae"):
        return
    torch.manual_seed(1)
    vae = make().to(args.device, memory_format=torch.channels_last)
    s, crops = stage.Stage(args, "vae", {"vae": vae}, 3e-3, half=True), Crops(args.work)

    def prepare(step):
        progress = step / s.steps
        whole = progress >= CROPS
        return crops(np.random.default_rng([1, step]), max(s.batch // 3, 1) if whole else s.batch, whole, .09 if progress < ENCODER else .5)

    batches = stage.ahead(prepare, s)

    def step(s):
        x, w = next(batches)
        loss, mse = loss_of(vae, floats(x, args.device), torch.from_numpy(w).to(args.device), s.progress < ENCODER)
        return loss, {"psnr": 10 * torch.log10(4 / mse)}

    s.train(step)
    s.finish(validate(args, vae, crops.pictures[-KEPT:], crops.faces[-KEPT:]))


@torch.no_grad()
def validate(args, vae, pictures, faces):
    """dB of whole pictures and of faces alone, and the latents' spread; writes vae.png: originals over round trips."""
    zs, ys = [], []
    for i in range(0, len(pictures), 16):
        zs.append(vae.encode(floats(pictures[i:i + 16], args.device)).latent_dist.mean)
        ys.append(vae.decode(zs[-1]).sample)
    z, y = torch.cat(zs), bytes_of(torch.cat(ys))
    error = ((y.astype(np.float32) - pictures.astype(np.float32)) / 255) ** 2
    yy, xx = np.mgrid[:128, :128]
    face = [e[np.hypot(xx - fx, yy - fy) < .6 * r].mean() for e, fs in zip(error, faces) for fx, fy, r in fs if r > 0]
    world.sheet([q for i in range(0, 32, 8) for q in [*pictures[i:i + 8], *y[i:i + 8]]], 8, f"{args.work}/vae.png")
    return {"psnr": float(-10 * np.log10(error.mean((1, 2, 3))).mean()), "psnr_faces": float(-10 * np.log10(np.mean(face))),
            "channel_std": [round(v, 3) for v in z.std((0, 2, 3)).tolist()], "scaling_factor": 1 / z.std().item()}


if __name__ == "__main__":
    main()
