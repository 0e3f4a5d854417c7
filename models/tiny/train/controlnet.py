"""Stage 4: a ControlNet on outlines (Canny 100/200), U-Net frozen.
usage: controlnet.py WORK MINUTES"""
import os, random, sys, time
import cv2, numpy as np, torch
from diffusers import ControlNetModel
import align, text_to_picture as t2p, world
from muon import Muon

dev = t2p.dev


def outline(picture):
    e = cv2.Canny(cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY), 100, 200)
    return np.repeat(e[..., None], 3, 2)


def make(unet):
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 24, 48), load_weights_from_unet=True).to(dev).requires_grad_(True)


def hint(pics):
    return torch.from_numpy(np.stack([outline(p) for p in pics])).permute(0, 3, 1, 2).float().div(255).to(dev)


def steer(net, cond):
    def control(x, t, ctx):
        t = t.expand(len(x)) if t.dim() == 0 else t
        d, m = net(x, t, ctx, cond.repeat(len(x) // len(cond), 1, 1, 1), return_dict=False)
        return {"down_block_additional_residuals": d, "mid_block_additional_residual": m}
    return control


def main():
    work, minutes = sys.argv[1], float(sys.argv[2])
    torch.manual_seed(5); torch.set_num_threads(2); rng, r = np.random.default_rng(5), random.Random(5)
    v, scale, text, unet, tok = t2p.load(work); net = make(unet)
    z, rows = t2p.latents(work), np.load(f"{work}/data/scenes.npy"); scenes = [world.unpack(q) for q in rows]
    pics = np.load(f"{work}/data/pictures.npy", mmap_mode="r")
    opt = Muon([net], 1e-3); used, step, avg = 0.0, 0, None
    if os.path.exists(f"{work}/controlnet.pt"):
        c = torch.load(f"{work}/controlnet.pt", map_location=dev); net.load_state_dict(c["model"]); opt.load_state_dict(c["opt"]); used, step = c["used"], c["step"]
    t0, last = time.time() - used, time.time()
    save = lambda: torch.save({"model": net.state_dict(), "opt": opt.state_dict(), "used": time.time() - t0, "step": step}, f"{work}/controlnet.pt")
    while (p := (time.time() - t0) / (60 * minutes)) < 1:
        align.rate(opt, p, step, 1e-3)
        i = np.sort(rng.integers(len(z), size=16))
        with torch.no_grad(): ctx = text(tok([world.caption(scenes[k], r) if r.random() > .3 else "" for k in i]).to(dev)).last_hidden_state
        t = (1000 * torch.rand(len(i), device=dev) ** .6).long().clamp(max=999); e = torch.randn(len(i), 4, 16, 16, device=dev); a = t2p.ALPHAS[t].view(-1, 1, 1, 1)
        x = a.sqrt() * z[i].to(dev) + (1 - a).sqrt() * e
        pred = unet(x, t, ctx, **steer(net, hint(pics[i]))(x, t, ctx)).sample
        loss = ((pred - e) ** 2).mean((1, 2, 3)); snr = t2p.ALPHAS[t] / (1 - t2p.ALPHAS[t])
        loss = (loss * torch.clamp(5 / snr, max=1) * torch.clamp(1 / snr, 1, 8)).mean()  # more weight where outlines matter: much noise
        opt.zero_grad(); loss.backward(); torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0); opt.step(); step += 1
        avg = loss.item() if avg is None else .97 * avg + .03 * loss.item()
        if step % 25 == 0: print(f"controlnet {(time.time() - t0) / 60:.1f} min step {step} seen {step * 16} loss {avg:.4f}", flush=True)
        if time.time() - last > 120: save(); last = time.time()
    save(); show(work)


@torch.no_grad()
def show(work):
    v, scale, text, unet, tok = t2p.load(work); net = make(unet)
    net.load_state_dict(torch.load(f"{work}/controlnet.pt", map_location=dev)["model"]); net.eval()
    rng = np.random.default_rng(55); given = [world.draw(world.random_scene(rng, 0, True), rng)[0] for _ in range(8)]
    scenes = [world.random_scene(rng, 0, True) for _ in range(8)]; enc = lambda q: text(tok(q).to(dev)).last_hidden_state
    out = t2p.sample(unet, v, scale, enc([world.caption(s) for s in scenes]), enc([""]), 4.0, control=steer(net, hint(given)))
    world.sheet([outline(g) for g in given] + list(out), 8, f"{work}/controlnet.png"); open(f"{work}/controlnet.png.txt", "w").write("\n".join(world.caption(s) for s in scenes))


if __name__ == "__main__":
    main()
