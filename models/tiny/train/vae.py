"""Stage 1: the VAE (diffusers AutoencoderKL, f = 8). Trains on face-centred 64x64 crops, then on whole pictures.
usage: vae.py WORK MINUTES [decoder]   ("decoder": afterwards, the decoder alone goes on; the latents stay as they are)"""
import json, math, os, sys, time
import numpy as np, torch, torch.nn.functional as F
from diffusers import AutoencoderKL
import world
from muon import Muon

WORK, MINUTES = (sys.argv[1], float(sys.argv[2])) if __name__ == "__main__" else ("", 0)
WHOLE = 0.8  # from this share of the time on: whole pictures
dev = "cuda" if torch.cuda.is_available() else "cpu"


def make():
    return AutoencoderKL(in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                         block_out_channels=(8, 24, 48, 64), layers_per_block=1, latent_channels=4, norm_num_groups=2, sample_size=128)


def loss_of(vae, x, w, kl=3e-3):
    q = vae.encode(x).latent_dist
    y = vae.decode(q.mean + q.std * torch.randn_like(q.mean)).sample
    e = y - x
    rec = (w * (e.abs() + 2 * e * e)).mean()
    grad = sum((w[..., s, t] * (y.diff(dim=d) - x.diff(dim=d)).abs()).mean() for d, s, t in ((2, slice(1, None), slice(None)), (3, slice(None), slice(1, None))))
    low = F.avg_pool2d(e, 4)  # colour is what comes late: ask for it first
    chroma = low - low.mean(1, keepdim=True)
    rec = rec + 2 * low.abs().mean() + 4 * chroma.abs().mean() + 8 * (chroma * chroma).mean()
    return rec + grad + kl * q.kl().mean() / (4 * 64), (e.clamp(-2, 2) ** 2).mean()


def main():
    torch.manual_seed(1); torch.set_num_threads(2)
    rng = np.random.default_rng(1)
    pics, faces = np.load(f"{WORK}/data/pictures.npy", mmap_mode="r"), np.load(f"{WORK}/data/faces.npy")
    n = len(pics) - 64
    yy, xx = np.mgrid[0:128, 0:128]
    vae = make().to(dev)
    if dev == "cpu": vae = vae.to(memory_format=torch.channels_last)
    opt = Muon([vae], 3e-3)
    used, step, seen = 0.0, 0, 0
    if os.path.exists(f"{WORK}/vae.pt"):
        c = torch.load(f"{WORK}/vae.pt"); vae.load_state_dict(c["model"]); "m" in next(iter(c["opt"]["state"].values())) and opt.load_state_dict(c["opt"]); used, step, seen = c["used"], c["step"], c["seen"]
    only_decoder = "decoder" in sys.argv[3:]
    if only_decoder:
        used = 0.0; vae.encoder.requires_grad_(False); vae.quant_conv.requires_grad_(False); opt = Muon([vae], 2e-3)
    t0 = time.time() - used
    ema, last = None, time.time()

    def batch(whole):
        xs, ws = [], []
        for i in np.sort(rng.integers(n, size=4 if whole else 12)):
            p, f = pics[i], faces[i]
            if rng.random() < .08: p = world.sketch(p)
            w = np.ones((128, 128), np.float32)
            for fx, fy, r in f:
                if r > 0: w[np.hypot((xx - fx) / .75, yy - fy) < r * .6] = 3.0
            if not whole:
                k = f[1] if f[1, 2] > 0 and rng.random() < .5 else f[0]
                cx, cy = (k[:2] - 32 + rng.uniform(-26, 26, 2) * (1 if rng.random() < .7 else 3)).clip(0, 64).astype(int)
                p, w = p[cy:cy + 64, cx:cx + 64], w[cy:cy + 64, cx:cx + 64]
            if rng.random() < .5: p, w = p[:, ::-1], w[:, ::-1]
            xs.append(p); ws.append(w)
        x = torch.from_numpy(np.stack(xs)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        return x.to(dev, memory_format=torch.channels_last), torch.from_numpy(np.stack(ws))[:, None].to(dev)

    def save():
        torch.save({"model": vae.state_dict(), "opt": opt.state_dict(), "used": time.time() - t0, "step": step, "seen": seen}, f"{WORK}/vae.tmp")
        os.replace(f"{WORK}/vae.tmp", f"{WORK}/vae.pt")

    while True:
        p = (time.time() - t0) / (MINUTES * 60)
        if p >= 1: break
        for g in opt.param_groups: g["lr"] = (2e-3 if only_decoder else 5e-3) * min(1, (step + 1) / 50) * (.5 + .5 * math.cos(math.pi * p)) + 2e-5
        x, w = batch(p > WHOLE or only_decoder and step % 2)
        loss, mse = loss_of(vae, x, w)
        opt.zero_grad(); loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        opt.step(); step += 1; seen += len(x)
        ema = mse.item() if ema is None else .97 * ema + .03 * mse.item()
        if step % 25 == 0: print(f"{(time.time() - t0) / 60:.1f} min step {step} seen {seen} loss {loss.item():.4f} psnr {10 * np.log10(4 / ema):.2f}", flush=True)
        if time.time() - last > 120: save(); last = time.time()
    save(); evaluate(vae, pics[n:])


@torch.no_grad()
def evaluate(vae, pics):
    x = torch.from_numpy(pics.copy()).permute(0, 3, 1, 2).float().div(127.5).sub(1).to(dev)
    z = vae.encode(x).latent_dist.mean
    y = vae.decode(z).sample.clamp(-1, 1)
    psnr = (10 * torch.log10(4 / ((y - x) ** 2).mean((1, 2, 3)))).mean().item()
    scale = 1 / z.std().item()
    print("psnr", psnr, "channel std", z.std((0, 2, 3)).tolist(), "mean", z.mean((0, 2, 3)).tolist(), "scale", scale, flush=True)
    json.dump({"psnr": psnr, "scaling_factor": scale}, open(f"{WORK}/vae.json", "w"))
    u8 = lambda t: ((t + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    a, b = u8(x[:24]), u8(y[:24])
    world.sheet([q for i in range(0, 24, 8) for q in list(a[i:i + 8]) + list(b[i:i + 8])], 8, f"{WORK}/vae.png")


if __name__ == "__main__":
    main()
