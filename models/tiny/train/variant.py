"""Stage 5: a second U-Net, fine-tuned on the world as a pencil sketch.
usage: variant.py WORK MINUTES"""
import os, random, sys, time
import numpy as np, torch
import align, text_to_picture as t2p, world
from muon import Muon

dev = t2p.dev


def main():
    work, minutes = sys.argv[1], float(sys.argv[2])
    torch.manual_seed(6); torch.set_num_threads(2); rng, r = np.random.default_rng(6), random.Random(6)
    v, scale, text, unet, tok = t2p.load(work); unet.requires_grad_(True)
    path = f"{work}/data/sketch.pt"
    if not os.path.exists(path):
        pics, out = np.load(f"{work}/data/pictures.npy", mmap_mode="r"), []
        with torch.no_grad():
            for i in range(0, 2048, 32):
                p = np.stack([world.sketch(q) for q in pics[i:i + 32]])
                out.append(v.encode(torch.from_numpy(p).permute(0, 3, 1, 2).float().div(127.5).sub(1).to(dev)).latent_dist.mean * scale)
        torch.save(torch.cat(out).cpu(), path)
    z = torch.load(path); scenes = [world.unpack(q) for q in np.load(f"{work}/data/scenes.npy")[:len(z)]]
    opt = Muon([unet], 5e-4); t0, step, avg = time.time(), 0, None
    while (p := (time.time() - t0) / (60 * minutes)) < 1:
        align.rate(opt, p, step, 5e-4)
        i = rng.integers(len(z), size=16)
        with torch.no_grad(): ctx = text(tok([world.caption(scenes[k], r) if r.random() > .15 else "" for k in i]).to(dev)).last_hidden_state
        loss = t2p.noise_loss(unet, z[i].to(dev), ctx)
        opt.zero_grad(); loss.backward(); torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0); opt.step(); step += 1
        avg = loss.item() if avg is None else .97 * avg + .03 * loss.item()
        if step % 25 == 0: print(f"variant {(time.time() - t0) / 60:.1f} min step {step} seen {step * 16} loss {avg:.4f}", flush=True)
    torch.save(unet.state_dict(), f"{work}/sketch.pt"); show(work)


@torch.no_grad()
def show(work):
    v, scale, text, unet, tok = t2p.load(work); unet.load_state_dict(torch.load(f"{work}/sketch.pt", map_location=dev))
    rng = np.random.default_rng(66); caps = [world.caption(world.random_scene(rng, .2, True)) for _ in range(8)]
    enc = lambda q: text(tok(q).to(dev)).last_hidden_state
    world.sheet(t2p.sample(unet, v, scale, enc(caps), enc([""]), 3.0), 8, f"{work}/sketch.png")


if __name__ == "__main__":
    main()
