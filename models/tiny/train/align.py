"""Stage 3: Kosmos-G. First the ViT (it learns to name what it sees: the words of the caption), then everything that
lies between picture + text and CLIP's text space, on captions and on interleaved instructions.
usage: align.py WORK vit|align MINUTES"""
import json, math, os, random, sys, time
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
import text_to_picture as t2p, world
from kosmos_model import KosmosG
from muon import Muon
from tokenizer import Clip, Kosmos

dev = "cuda" if torch.cuda.is_available() else "cpu"
TEXT_ONLY = .3  # the first part of the time: captions alone
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def config(vocab):
    return {"model_type": "kosmos-g",
            "vision": {"image_size": 64, "patch_size": 8, "width": 128, "layers": 4, "heads": 4, "mlp_ratio": 4.0, "image_mean": list(MEAN), "image_std": list(STD)},
            "connector": {"latent_query_num": 16, "heads": 6},
            "mllm": {"vocab_size": vocab, "embed_dim": 192, "layers": 4, "heads": 6, "ffn_dim": 384, "layer_norm_eps": 1e-5},
            "aligner": {"dim": 128, "encoder_layers": 2, "decoder_layers": 2, "heads": 4, "ffn_dim": 256, "max_positions": 512, "queries": 77, "layer_norm_eps": 1e-5}}


def small_pictures(work):
    path = f"{work}/data/small.npy"
    if not os.path.exists(path):
        p = np.load(f"{work}/data/pictures.npy", mmap_mode="r")
        np.save(path, np.concatenate([p[i:i + 256].reshape(-1, 64, 2, 64, 2, 3).mean((2, 4)).round().astype(np.uint8) for i in range(0, len(p), 256)]))
    return np.load(path)


def pixels(pics, rng=None):
    if rng is not None:
        out = []
        for p in pics:
            dx, dy = rng.integers(-5, 6, 2)
            p = np.pad(p, ((5, 5), (5, 5), (0, 0)), "edge")[5 + dy:69 + dy, 5 + dx:69 + dx]
            out.append(p[:, ::-1] if rng.random() < .5 else p)
        pics = np.stack(out)
    x = torch.from_numpy(np.ascontiguousarray(pics)).permute(0, 3, 1, 2).float() / 255
    return ((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)).to(dev)


def rate(opt, p, step, top):
    for g in opt.param_groups: g["lr"] = top * min(1, (step + 1) / 50) * (.5 + .5 * math.cos(math.pi * min(p, 1))) + 1e-5


def train_vit(work, minutes):
    torch.manual_seed(3); rng = np.random.default_rng(3)
    tok = Kosmos(f"{work}/kosmos"); m = KosmosG(config(tok.size)).to(dev); vit = m.img_model["visual"]
    small, rows = small_pictures(work), np.load(f"{work}/data/scenes.npy")
    heads = nn.Linear(128, 8 + 9 + 4 + 4 + 7 + 12).to(dev)
    y = torch.from_numpy(rows.astype(np.int64)).to(dev); y[y < 0] = -100
    params = [*vit.parameters(), *heads.parameters()]
    if os.path.exists(f"{work}/vit.pt"): vit.load_state_dict(torch.load(f"{work}/vit.pt", map_location=dev))
    opt = Muon([vit, heads], 1e-3, decay=.02); t0, step = time.time(), 0
    while (p := (time.time() - t0) / (60 * minutes)) < 1:
        rate(opt, p, step, 1e-3)
        i = rng.integers(len(small) - 64, size=48)
        h = vit(pixels(small[i], rng)); h = h[:, 0] + h[:, 1:].mean(1)
        loss = 0
        # a pair's order is lost by the mirror; label only single monsters and the background
        out, at, labels = heads(h), 0, y[i].clone(); labels[labels[:, 5] >= 0, :10] = -100
        acc = []
        for j, n in enumerate((8, 9, 4, 4, 7)):
            o, t = out[:, at:at + n], labels[:, j]; at += n
            loss = loss + F.cross_entropy(o, t); acc.append((o.argmax(1) == t)[t >= 0].float().mean().item())
        loss = loss + F.cross_entropy(out[:, -12:], labels[:, 10])
        opt.zero_grad(); loss.backward(); nn.utils.clip_grad_norm_(params, 1.0); opt.step(); step += 1
        if step % 50 == 0: print(f"vit {(time.time() - t0) / 60:.1f} min step {step} seen {step * 48} loss {loss.item():.3f} shape/colour/pattern/eyes/accessory", [round(a, 2) for a in acc], flush=True)
    torch.save(vit.state_dict(), f"{work}/vit.pt")


def instruction(k, scenes, singles, r, text=.22):
    """A prompt with pictures, and the canonical caption of what it asks for."""
    s = scenes[k]; u = r.random()
    if u < text:
        t = world.caption(s, r)
        return t, [], t
    if len(s[0]) == 2:
        return r.choice(["a picture of <i>", "<i>"]), [k], world.caption(s)
    m, bg = list(s[0][0]), r.randrange(12) if r.random() < .5 else 8 + r.randrange(4)
    if u < .34: return r.choice(["a picture of <i>", "<i>"]), [k], world.caption(s)
    if u < .50: return f"<i> {world.where(bg)}", [k], world.caption([[m], bg])
    if u < .85:
        m[4] = 1 + r.randrange(6); a = world.ACCESSORIES[m[4]]
        return f"<i> {r.choice(['wearing', 'with'])} {a if a == 'horns' else world.article(a)} {world.where(bg)}", [k], world.caption([[m], bg])
    if u < .90:
        m[1] = r.randrange(9)
        return f"<i> in {world.CNAMES[m[1]]} {world.where(bg)}", [k], world.caption([[m], bg])
    j = r.choice(singles)
    return f"<i> and <i> {world.where(bg)}", [k, j], world.caption([[m, scenes[j][0][0]], bg])


def collate(tok, prompts):
    enc = [tok(p) for p in prompts]; n = max(len(e[0]) for e in enc)
    return (torch.tensor([e[0] + [1] * (n - len(e[0])) for e in enc]).to(dev), torch.tensor([e[1] + [0] * (n - len(e[1])) for e in enc]).bool().to(dev))


def train_align(work, minutes):
    torch.manual_seed(4); rng, r = np.random.default_rng(4), random.Random(4)
    tok = Kosmos(f"{work}/kosmos"); m = KosmosG(config(tok.size)).to(dev)
    _, _, text, _, ctok = t2p.load(work)
    vit_loaded = False
    small, rows = small_pictures(work), np.load(f"{work}/data/scenes.npy"); scenes = [world.unpack(q) for q in rows]
    n = len(small) - 64; singles = [k for k in range(n) if len(scenes[k][0]) == 1]
    with torch.no_grad():  # spread of CLIP's hidden states at each position: positions that say more weigh the same
        t = text(ctok([world.caption(scenes[k]) for k in range(200)] + [""]).to(dev)).last_hidden_state
        spread = t.var((0, 2), keepdim=True).clamp(min=.02) * .5 + t.var(0).mean() * .5
    opt = Muon([m], 1e-3, decay=.01); used, step, avg = 0.0, 0, None
    if os.path.exists(f"{work}/align.pt"):
        c = torch.load(f"{work}/align.pt", map_location=dev); m.load_state_dict(c["model"]); opt.load_state_dict(c["opt"]); used, step = c["used"], c["step"]
    t0, last = time.time() - used, time.time()

    def save():
        torch.save({"model": m.state_dict(), "opt": opt.state_dict(), "used": time.time() - t0, "step": step}, f"{work}/align.tmp"); os.replace(f"{work}/align.tmp", f"{work}/align.pt")

    while (p := (time.time() - t0) / (60 * minutes)) < 1:
        rate(opt, p, step, 1e-3)
        if p > TEXT_ONLY and not vit_loaded:
            vit_loaded = True
            if used < TEXT_ONLY * 60 * minutes: m.img_model["visual"].load_state_dict(torch.load(f"{work}/vit.pt", map_location=dev))
        items = [instruction(r.randrange(n), scenes, singles, r, .22 if vit_loaded else 1) for _ in range(23)] + [("", [], "")]
        ids, mask = collate(tok, [a[0] for a in items]); which = [k for a in items for k in a[1]]
        with torch.no_grad(): target = text(ctok([a[2] for a in items]).to(dev)).last_hidden_state
        h = m.hidden(ids, pixels(small[which], rng), mask) if which else m.hidden(ids); pad = ids.eq(1)
        y = m.aligner.encode(h, pad)
        loss = ((y - target) ** 2 / spread).mean()
        total = loss
        if step % 4 == 0:  # the reconstruction half, a quarter of the time
            k = ~pad
            total = loss + .1 * ((m.aligner.reconstruct(y, pad) - h.detach())[k] ** 2).mean() * 77 / ids.shape[1]
        opt.zero_grad(); total.backward(); nn.utils.clip_grad_norm_(m.parameters(), 1.0); opt.step(); step += 1
        avg = loss.item() if avg is None else .95 * avg + .05 * loss.item()
        if step % 50 == 0: print(f"align {(time.time() - t0) / 60:.1f} min step {step} seen {step * 24} loss {avg:.4f}", flush=True)
        if time.time() - last > 120: save(); last = time.time()
    save(); show(work)


@torch.no_grad()
def show(work):
    """Held-out subjects: which attribute reaches CLIP's space (nearest of the captions that differ in it alone), and a sheet of pictures."""
    tok = Kosmos(f"{work}/kosmos"); m = KosmosG(config(tok.size)).to(dev).eval()
    m.load_state_dict(torch.load(f"{work}/align.pt", map_location=dev)["model"])
    v, scale, text, unet, ctok = t2p.load(work); rng, r = np.random.default_rng(99), random.Random(99)
    pics, prompts, wants, subjects = [], [], [], []
    for k in range(64):
        s = world.random_scene(rng, 0, held=True); p, _ = world.draw(s, rng)
        q = list(s[0][0]); q[4] = 1 + r.randrange(6); bg = r.randrange(12); a = world.ACCESSORIES[q[4]]
        subjects.append(p); pics.append(p.reshape(64, 2, 64, 2, 3).mean((1, 3)).round().astype(np.uint8))
        prompts.append(f"<i> wearing {a if a == 'horns' else world.article(a)} {world.where(bg)}"); wants.append([[q], bg])
    ids, mask = collate(tok, prompts); y = m(ids, pixels(np.stack(pics)), mask)
    right = {}
    for j, (name, n) in enumerate((("shape", 8), ("colour", 9), ("pattern", 4), ("eyes", 4), ("accessory", 7), ("background", 12))):
        hit = 0
        for k, (ms, bg) in enumerate(wants):
            caps = [world.caption([[ms[0][:j] + [c] + ms[0][j + 1:]], bg] if j < 5 else [ms, c]) for c in range(n)]
            t = text(ctok(caps).to(dev)).last_hidden_state
            hit += int(((t - y[k]) ** 2).mean((1, 2)).argmin().item() == (ms[0][j] if j < 5 else bg))
        right[name] = hit / len(wants)
    print("kept or obeyed in text space, held-out subjects", right, flush=True)
    json.dump(right, open(f"{work}/align.json", "w"))
    null = m(torch.zeros(1, 1, dtype=torch.long, device=dev))
    out = t2p.sample(unet, v, scale, y[:16], null, 4.0)
    world.sheet([q for i in (0, 8) for q in subjects[i:i + 8] + list(out[i:i + 8])], 8, f"{work}/align.png"); open(f"{work}/align.png.txt", "w").write("\n".join(prompts[:16]))


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("THREADS", 2)))
    (train_vit if sys.argv[2] == "vit" else train_align)(sys.argv[1], float(sys.argv[3]))
