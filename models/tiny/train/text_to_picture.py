"""Stage 2: CLIP text encoder and U-Net together (eps prediction, SD 1.5's noise schedule).
usage: text_to_picture.py WORK MINUTES"""
import json, math, os, random, sys, time
import numpy as np, torch, torch.nn.functional as F
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel
import vae as vae_stage, world
from muon import Muon
from tokenizer import Clip

FREEZE = float(os.environ.get("FREEZE", 0.5))
dev = "cuda" if torch.cuda.is_available() else "cpu"
SCHEDULE = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, prediction_type="epsilon")
ALPHAS = torch.cumprod(1 - torch.linspace(SCHEDULE["beta_start"] ** .5, SCHEDULE["beta_end"] ** .5, 1000) ** 2, 0).to(dev)


def make_unet():
    return UNet2DConditionModel(sample_size=16, in_channels=4, out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(48, 64, 96), layers_per_block=1,
                                cross_attention_dim=128, attention_head_dim=4, norm_num_groups=8).to(dev)


def make_text(vocab):
    return CLIPTextModel(CLIPTextConfig(vocab_size=vocab, hidden_size=128, intermediate_size=256, projection_dim=128, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=77,
                                        hidden_act="quick_gelu", bos_token_id=vocab - 2, eos_token_id=vocab - 1, pad_token_id=1)).to(dev)


def load_vae(work):
    v = vae_stage.make().to(dev); v.load_state_dict(torch.load(f"{work}/vae.pt", map_location=dev)["model"])
    return v.eval().requires_grad_(False), json.load(open(f"{work}/vae.json"))["scaling_factor"]


def load(work):
    """(vae, scale, text encoder, unet, tokenizer), trained, EMA weights, frozen."""
    tok = Clip(f"{work}/sd/tokenizer"); c = torch.load(f"{work}/t2p.pt", map_location=dev)
    unet, text = make_unet(), make_text(len(tok.v))
    unet.load_state_dict(c["ema_unet"]); text.load_state_dict(c["ema_text"])
    return *load_vae(work), text.eval().requires_grad_(False), unet.eval().requires_grad_(False), tok


@torch.no_grad()
def latents(work, name="latents", change=None):
    path = f"{work}/data/{name}.pt"
    if not os.path.exists(path):
        v, scale = load_vae(work); pics = np.load(f"{work}/data/pictures.npy", mmap_mode="r"); out = []
        for i in range(0, len(pics), 32):
            p = pics[i:i + 32]
            if change: p = np.stack([change(q) for q in p])
            out.append(v.encode(torch.from_numpy(p.copy()).permute(0, 3, 1, 2).float().div(127.5).sub(1).to(dev)).latent_dist.mean.cpu() * scale)
        torch.save(torch.cat(out), path)
    return torch.load(path)


def noise_loss(unet, z, ctx, g=None, **extra):
    t = torch.randint(0, 1000, (len(z),), device=dev, generator=g); e = torch.randn(z.shape, device=dev, generator=g)
    a = ALPHAS[t].view(-1, 1, 1, 1)
    snr = ALPHAS[t] / (1 - ALPHAS[t])
    pred = unet(a.sqrt() * z + (1 - a).sqrt() * e, t, ctx, **(extra or {})).sample
    return (((pred - e) ** 2).mean((1, 2, 3)) * torch.clamp(5 / snr, max=1)).mean()


@torch.no_grad()
def sample(unet, v, scale, cond, uncond, cfg=4.0, steps=20, seed=0, control=None):
    s = DPMSolverMultistepScheduler(**SCHEDULE); s.set_timesteps(steps)
    x = torch.randn(len(cond), 4, 16, 16, generator=torch.Generator().manual_seed(seed)).to(dev)
    ctx = torch.cat([uncond.expand_as(cond), cond])
    for t in s.timesteps:
        xx = torch.cat([x, x]); kw = control(xx, t, ctx) if control else {}
        u, c = unet(xx, t, ctx, **kw).sample.chunk(2)
        x = s.step(u + cfg * (c - u), t, x).prev_sample
    y = v.decode(x / scale).sample.clamp(-1, 1)
    return ((y + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def main():
    work, minutes = sys.argv[1], float(sys.argv[2])
    torch.manual_seed(2); torch.set_num_threads(2)
    z = latents(work); rows = np.load(f"{work}/data/scenes.npy"); scenes = [world.unpack(r) for r in rows]
    tok = Clip(f"{work}/sd/tokenizer"); unet, text = make_unet(), make_text(len(tok.v))
    params = list(unet.parameters()) + list(text.parameters())
    opt = Muon([unet, text], 1.5e-3, decay=.01)
    ema = [p.detach().clone() for p in params]
    used, step, avg, r, rng = 0.0, 0, None, random.Random(2), np.random.default_rng(2)
    if os.path.exists(f"{work}/t2p.pt"):
        c = torch.load(f"{work}/t2p.pt", map_location=dev)
        unet.load_state_dict(c["unet"]); text.load_state_dict(c["text"]); opt.load_state_dict(c["opt"]); ema = c["ema"]; used, step = c["used"], c["step"]
    t0, last, batch, frozen = time.time() - used, time.time(), 24, False

    def save():
        live = [p.detach().clone() for p in params]
        m = {"unet": unet.state_dict(), "text": text.state_dict()}
        m = {k: {n: t.clone() for n, t in d.items()} for k, d in m.items()}
        for p, e in zip(params, ema): p.data.copy_(e)
        torch.save({**m, "ema_unet": unet.state_dict(), "ema_text": text.state_dict(), "ema": ema, "opt": opt.state_dict(), "used": time.time() - t0, "step": step}, f"{work}/t2p.tmp")
        os.replace(f"{work}/t2p.tmp", f"{work}/t2p.pt")
        for p, l in zip(params, live): p.data.copy_(l)

    while True:
        p = (time.time() - t0) / (minutes * 60)
        if p >= 1: break
        for g in opt.param_groups: g["lr"] = 1.5e-3 * min(1, (step + 1) / 100) * (.5 + .5 * math.cos(math.pi * p)) + 1e-5
        i = rng.integers(len(z), size=batch)
        ids = tok([world.caption(scenes[k], r) if r.random() > .1 else "" for k in i]).to(dev)
        if p > FREEZE and not frozen:  # from here on the text encoder stays as it is (its average), so that Kosmos-G can learn its space
            n = len(list(unet.parameters()))
            for q, e in zip(params[n:], ema[n:]): q.data.copy_(e)
            text.requires_grad_(False); frozen = True; save()
        loss = noise_loss(unet, z[i].to(dev), text(ids).last_hidden_state)
        opt.zero_grad(); loss.backward(); torch.nn.utils.clip_grad_norm_(params, 1.0); opt.step(); step += 1
        d = min(.998, (step + 1) / (step + 10))
        torch._foreach_lerp_(ema, [q.detach() for q in params], 1 - d)
        avg = loss.item() if avg is None else .98 * avg + .02 * loss.item()
        if step % 50 == 0: print(f"{(time.time() - t0) / 60:.1f} min step {step} seen {step * batch} loss {avg:.4f}", flush=True)
        if time.time() - last > 240: save(); last = time.time()
    save(); show(work)


def show(work, name="t2p.png", cfg=4.0):
    v, scale, text, unet, tok = load(work)
    rng = np.random.default_rng(77)
    caps = [world.caption(world.random_scene(rng, .2, held=True)) for _ in range(24)]
    enc = lambda t: text(tok(t).to(dev)).last_hidden_state
    with torch.no_grad():
        world.sheet(sample(unet, v, scale, enc(caps), enc([""]), cfg), 8, f"{work}/{name}")
    open(f"{work}/{name}.txt", "w").write("\n".join(caps))


if __name__ == "__main__":
    main()
