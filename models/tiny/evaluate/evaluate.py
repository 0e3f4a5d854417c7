"""Measures the bundled model as a user meets it: everything is drawn by the kosmograph binary and judged by a classifier.

usage: evaluate.py [--seed S] [--count N] [--json FILE] [--binary PATH] [--only text,subject,…]

The seed chooses fresh scenes of the combinations that no stage has seen, so no two seeds ask for the same. Each part is one of the
tables of figures; a part whose weights or nodes are not there is named and not measured. The exit code is 1 when a figure is
missed. The judge (classifier.safetensors, trained by ../train/classifier.py) reads clean pictures and pictures as the VAE blurs
them; its own mistakes count against the model."""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import torch
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "train"))
import classifier  # noqa: E402
import given as monster_given  # noqa: E402
import grammar  # noqa: E402
from outlines import agreement as overlap, outline  # noqa: E402
import portraits  # noqa: E402
import styles  # noqa: E402
import world  # noqa: E402

MUST = {
    "text": {"background": .95, "accessory": .85, "colour": .92, "shape": .92, "pattern": .75, "eyes": .70, "pair": .75},
    "subject": {"background": .90, "accessory": .80, "colour": .90, "shape": .85, "pattern": .70, "eyes": .60, "pair": .65},
    "apart": {"told apart": .85},
    "vae": {"eyes": .90, "psnr": 27},
    "control": {"outline IoU": .75, "colour": .80, "background": .80},
    **{f"lora {look}": {"look": .80, "shape": .80, "colour": .80} for look in styles.STYLES},
    "dreambooth": {"given monster": .80},
    "zwx": {"given monster": .80},
    "zwx control": {"outline IoU": .75, "given monster": .80},
    "embedding": {"shape": .80, "colour": .80},
    "replay": {"same on avx2": 1, "same on portable": 1},
    "kosmos text": {"as by CLIP": .97},
    "subject control": {"outline IoU": .75, "colour and pattern": .85},
    **{f"subject lora {look}": {"look": .80, "subject": .80} for look in styles.STYLES},
    "subject dreambooth": {},
    "subject everything": {"all": .70},
    "three": {"all": .70},
}
STEPS, CFG, CHUNK = 20, 4.0, 32


class Graph:
    """A workflow in the making: nodes by number, and the pictures it will save."""

    def __init__(self, name):
        self.name, self.nodes = name, {}

    def add(self, kind, **inputs):
        """A node; an input that names another node is its first output, or (node, output)."""
        self.nodes[str(len(self.nodes) + 1)] = {"class_type": kind, "inputs": inputs}
        return [str(len(self.nodes)), 0]

    def checkpoint(self):
        at = self.add("CheckpointLoaderSimple", ckpt_name=f"{self.name}/sd")[0]
        return [at, 0], [at, 1], [at, 2]

    def picture(self, number, model, positive, negative, vae, seed, **more):
        size = self.add("EmptyLatentImage", width=128, height=128, batch_size=1)
        drawn = self.add("UNetSample", model=model, positive=positive, negative=negative, latent=size, seed=seed, steps=STEPS, cfg=CFG,
                         sampler="dpms", scheduler="normal", denoise=1.0, **more)
        self.save(number, self.add("VaeDecode", samples=drawn, vae=vae))

    def save(self, number, images):
        self.add("SaveImage", images=images, filename_prefix=f"{number:05d}")


class Bench:
    """The binary, the models, and a folder for what goes in and comes out."""

    def __init__(self, args, folder):
        self.args, self.folder, self.judge, self.environment = args, folder, classifier.load(args.classifier, "cpu"), dict(os.environ)
        os.makedirs(f"{folder}/in", exist_ok=True)

    def has_node(self, kind):
        return subprocess.run([self.args.binary, "nodes", kind], capture_output=True).returncode == 0

    def has(self, part):
        return os.path.exists(os.path.join(self.args.models, self.args.name, part))

    def show(self, picture):
        """Puts a picture where LoadImage finds it and answers its name."""
        name = f"{len(os.listdir(self.folder + '/in')):05d}.png"
        Image.fromarray(picture).save(f"{self.folder}/in/{name}")
        return name

    def draw(self, part, count, build):
        """count pictures, build(graph, number) adding one each; CHUNK of them in one workflow, so that weights are read once for many."""
        out = f"{self.folder}/{part.replace(' ', '-')}"
        os.makedirs(out, exist_ok=True)
        for start in range(0, count, CHUNK):
            graph = Graph(self.args.name)
            begin = self.begin(graph, part)
            for number in range(start, min(start + CHUNK, count)):
                build(graph, number, *begin)
            path = f"{out}/{start:05d}.json"
            json.dump(graph.nodes, open(path, "w"), indent=1)
            done = subprocess.run([self.args.binary, "run", path, "--models", self.args.models, "--input", f"{self.folder}/in", "--out", out, "--quiet"], capture_output=True, text=True, env=self.environment)
            if done.returncode:
                raise SystemExit(f"{part}: kosmograph answered {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
            print(f"{part}: {min(start + CHUNK, count)} of {count}", file=sys.stderr)
        return np.stack([np.asarray(Image.open(f"{out}/{n:05d}_00001_.png").convert("RGB")) for n in range(count)])

    def begin(self, graph, part):
        """The nodes that a part's pictures share."""
        model, clip, vae = graph.checkpoint()
        of_kosmos, words = part.split()[0] in ("subject", "apart", "kosmos"), part.split()
        look = next((look for look in styles.STYLES if look in words), "pencil" if "everything" in words else None)
        if look and of_kosmos:
            model = graph.add("LoraLoaderModelOnly", model=model, lora_name=f"{graph.name}/loras/{look}.safetensors", strength_model=self.args.strength)
        elif look:
            lora = graph.add("LoraLoader", model=model, clip=clip, lora_name=f"{graph.name}/loras/{look}.safetensors", strength_model=self.args.strength, strength_clip=self.args.strength)
            model, clip = lora, [lora[0], 1]
        if "zwx" in words or "everything" in words:
            # DreamBooth as a LoRA of the checkpoint's U-Net, which ControlNets and looks fit.
            model = graph.add("LoraLoaderModelOnly", model=model, lora_name=f"{graph.name}/loras/zwx.safetensors", strength_model=1.0)
        if "dreambooth" in words:
            model = graph.add("UNETLoader", unet_name=f"{graph.name}/unet/dreambooth")
        if of_kosmos:
            kosmos = graph.add("KosmosLoader", kosmos_name=f"{graph.name}/{self.args.kosmos}")
            empty = graph.add("Aligner", kosmos=kosmos, hidden_states=graph.add("TextInterleave", kosmos=kosmos, text=""))
            return model, kosmos, vae, empty
        return model, clip, vae, graph.add("CLIPTextEncode", text="", clip=clip)

    def read(self, pictures):
        return classifier.read(self.judge, pictures)


def from_text(bench, part, texts, seeds):
    def build(graph, n, model, clip, vae, empty):
        graph.picture(n, model, graph.add("CLIPTextEncode", text=texts[n], clip=clip), empty, vae, seeds[n])
    return bench.draw(part, len(texts), build)


def from_subjects(bench, part, prompts, subjects, seeds, outlines=None):
    """subjects: for each prompt the pictures of its marks. outlines: a picture for each prompt, along whose outline a ControlNet draws."""
    names = [[bench.show(p) for p in shown] for shown in subjects]
    along = None if outlines is None else [bench.show(p) for p in outlines]

    def build(graph, n, model, kosmos, vae, empty):
        seen = {f"image_{k + 1}": graph.add("ImageEncode", encoder=kosmos, image=graph.add("LoadImage", image=name)) for k, name in enumerate(names[n])}
        said = graph.add("TextInterleave", kosmos=kosmos, text=prompts[n], **seen)
        more = {} if along is None else {"control": steered(graph, along[n])}
        graph.picture(n, model, graph.add("Aligner", kosmos=kosmos, hidden_states=said), empty, vae, seeds[n], **more)
    return bench.draw(part, len(prompts), build)


def steered(graph, name):
    """A ControlNet by the outline of a picture."""
    net = graph.add("ControlNetLoader", control_net_name=f"{graph.name}/controlnet/tiny-canny")
    edges = graph.add("Canny", image=graph.add("LoadImage", image=name), low_threshold=.4, high_threshold=.8)
    return graph.add("ControlNet", control_net=net, image=edges, strength=1.0, start=0.0, end=1.0)


def portrait(monster, rng):
    """A monster without anything on, drawn at 256 pixels as a user's picture might be."""
    world.resolution(2)
    picture = world.draw([[[*monster[:4], 0]], int(rng.integers(12))], rng)[0]
    world.resolution(1)
    return picture


def text(bench, rng, count):
    scenes = [world.random_scene(rng, .3, held=True) for _ in range(count)]
    drawn = from_text(bench, "text", [grammar.caption(s) for s in scenes], rng.integers(1 << 31, size=count).tolist())
    return classifier.agreement(bench.read(drawn), scenes)


def subject(bench, rng, count):
    """Seven in ten: one subject, told what to wear and where to be; the others: two subjects and a place."""
    scenes, prompts, subjects = [], [], []
    for k in range(count):
        ms, bg = [[*world.random_monster(rng, held=True)[:4], 0] for _ in range(2 if k % 10 >= 7 else 1)], int(rng.integers(12))
        subjects.append([portrait(m, rng) for m in ms])
        if len(ms) == 1:
            ms[0][4] = 1 + int(rng.integers(6))
        prompts.append(f"<i> and <i> {grammar.where(bg)}" if len(ms) == 2 else f"<i> wearing {grammar.accessory(ms[0][4])} {grammar.where(bg)}")
        scenes.append([ms, bg])
    return classifier.agreement(bench.read(from_subjects(bench, "subject", prompts, subjects, rng.integers(1 << 31, size=count).tolist())), scenes)


def three(bench, rng, count):
    """Two held-out monsters of three pictures: the first has its shape and eyes from one and its colour and pattern from another."""
    scenes, prompts, subjects = [], [], []
    for _ in range(count):
        ms, bg = [[*world.random_monster(rng, held=True)[:4], 0] for _ in range(2)], int(rng.integers(12))
        subjects.append([portrait(m, rng) for m, _ in portraits.styled(ms[0], rng, held=None)] + [portrait(ms[1], rng)])
        prompts.append(f"<i> in the style of <i> and <i> {grammar.where(bg)}")
        scenes.append([ms, bg])
    answers = bench.read(from_subjects(bench, "subject three", prompts, subjects, rng.integers(1 << 31, size=count).tolist()))
    right = lambda answer, ms: answer["two"] and all(a[:3] == m[:3] for a, m in zip(answer["monsters"], ms))
    return {"all": float(np.mean([right(a, ms) for a, (ms, _) in zip(answers, scenes)])), **classifier.agreement(answers, scenes)}


def apart(bench, rng, count):
    """Two different subjects under one text and one seed: each drawing has more in common with its own subject than with the other's."""
    half, pairs, prompts, subjects, seeds = max(count // 2, 1), [], [], [], []
    while len(pairs) < half:
        a, b = (world.random_monster(rng, held=True) for _ in range(2))
        if a[:4] != b[:4]:
            pairs.append((a, b))
            where, seed = grammar.where(int(rng.integers(12))), int(rng.integers(1 << 31))
            for m in (a, b):
                prompts.append("<i> " + where)
                subjects.append([portrait(m, rng)])
                seeds.append(seed)
    answers = bench.read(from_subjects(bench, "apart", prompts, subjects, seeds))
    common = lambda answer, m: sum(x == y for x, y in zip(answer["monsters"][0][:4], m[:4]))
    told = [common(answers[2 * k], a) > common(answers[2 * k], b) and common(answers[2 * k + 1], b) > common(answers[2 * k + 1], a) for k, (a, b) in enumerate(pairs)]
    return {"told apart": float(np.mean(told))}


def vae(bench, rng, count):
    scenes = [world.random_scene(rng, .3, held=True) for _ in range(count)]
    given = np.stack([world.draw(s, rng)[0] for s in scenes])
    names = [bench.show(p) for p in given]

    def build(graph, n, model, clip, vae, empty):
        graph.save(n, graph.add("VaeDecode", samples=graph.add("VAEEncode", pixels=graph.add("LoadImage", image=names[n]), vae=vae), vae=vae))
    drawn = bench.draw("vae", count, build)
    error = ((drawn.astype(np.float64) - given) / 255) ** 2
    return {"psnr": float((-10 * np.log10(error.mean((1, 2, 3)))).mean()), **classifier.agreement(bench.read(drawn), scenes)}


def asked_along(n, rng):
    """n held-out monsters whose outlines are given, and scenes that ask for another colour and another plain background."""
    given, scenes = [], []
    for _ in range(n):
        m, bg = world.random_monster(rng, held=True), int(rng.integers(8))
        given.append(world.draw([[m], bg], rng)[0])
        scenes.append([[[m[0], int(rng.integers(9)), *m[2:]]], int(rng.integers(8))])
    return given, scenes


def control(bench, rng, count):
    """The outline of one held-out monster, and a text that asks for it in another colour on another background."""
    given, scenes = asked_along(count, rng)
    names, seeds = [bench.show(p) for p in given], rng.integers(1 << 31, size=count).tolist()

    def build(graph, n, model, clip, vae, empty):
        graph.picture(n, model, graph.add("CLIPTextEncode", text=grammar.caption(scenes[n]), clip=clip), empty, vae, seeds[n], control=steered(graph, names[n]))
    drawn = bench.draw("control", count, build)
    iou = [overlap(outline(g), outline(d)) for g, d in zip(given, drawn)]
    return {"outline IoU": float(np.mean(iou)), **classifier.agreement(bench.read(drawn), scenes)}


def looks(look):
    def part(bench, rng, count):
        scenes = [world.random_scene(rng, 0, held=True) for _ in range(count)]
        answers = bench.read(from_text(bench, f"lora {look}", [grammar.caption(s) for s in scenes], rng.integers(1 << 31, size=count).tolist()))
        return {"look": float(np.mean([a["look"] == look for a in answers])), **classifier.agreement(answers, scenes)}
    return part


def given_monster(part):
    """Asked for by its name on backgrounds that its eight pictures did not have; with "control" along the outline of a picture of it on another."""
    def measure(bench, rng, count):
        along = "control" in part.split()
        unseen = [b for b in range(8 if along else 12) if b not in monster_given.SEEN]
        places = [unseen[int(rng.integers(len(unseen)))] for _ in range(count)]
        texts, seeds = [monster_given.written(b) for b in places], rng.integers(1 << 31, size=count).tolist()
        outlines = [monster_given.picture(rng, int(rng.integers(8)))[0] for _ in range(count)] if along else []
        names = [bench.show(p) for p in outlines]

        def build(graph, n, model, clip, vae, empty):
            more = {"control": steered(graph, names[n])} if along else {}
            graph.picture(n, model, graph.add("CLIPTextEncode", text=texts[n], clip=clip), empty, vae, seeds[n], **more)
        drawn = bench.draw(part, count, build)
        answers = bench.read(drawn)
        figures = {"outline IoU": float(np.mean([overlap(outline(g), outline(d)) for g, d in zip(outlines, drawn)]))} if along else {}
        return {**figures, "given monster": float(np.mean([a["given"] for a in answers])), "background": float(np.mean([a["background"] == b for a, b in zip(answers, places)]))}
    return measure


def embedding(bench, rng, count):
    scenes = [[[monster_given.MOSS], int(rng.integers(12))] for _ in range(count)]
    texts = [f"a embedding:{bench.args.name}/embeddings/moss monster {grammar.where(b)}" for _, b in scenes]
    return classifier.agreement(bench.read(from_text(bench, "embedding", texts, rng.integers(1 << 31, size=count).tolist())), scenes)


def instructions():
    """What this CPU can do, as Linux names it."""
    lines = open("/proc/cpuinfo").readlines() if os.path.exists("/proc/cpuinfo") else []
    return next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])


def replay(bench, rng, count):
    """The same workflows with the kernels of other instruction sets: the share of the pictures that the judge reads the same, in all it says."""
    quarter = max(count // 4, 1)
    words = [grammar.caption(world.random_scene(rng, .3, held=True)) for _ in range(quarter)]
    shown = [portrait(world.random_monster(rng, held=True), rng) for _ in range(quarter)]
    asked = [f"<i> wearing {grammar.accessory(1 + int(rng.integers(6)))} {grammar.where(int(rng.integers(12)))}" for _ in range(quarter)]
    seeds, figures, answers = rng.integers(1 << 31, size=quarter).tolist(), {}, {}
    for name in ("widest", "avx2", "portable"):
        if name == "avx2" and name not in instructions():
            continue
        bench.environment = {**os.environ, **({} if name == "widest" else {"KOSMOGRAPH_ISA": name})}
        drawn = from_text(bench, f"text {name}", words, seeds), from_subjects(bench, f"subject {name}", asked, [[p] for p in shown], seeds)
        answers[name] = bench.read(np.concatenate(drawn))
        if name != "widest":
            figures[f"same on {name}"] = float(np.mean([a == b for a, b in zip(answers["widest"], answers[name])]))
    bench.environment = dict(os.environ)
    return figures


def kosmos_text(bench, rng, count):
    """The words and seeds of the part "text" through Kosmos-G, and how far its figures fall behind those by CLIP at most."""
    def drawn(part, draw):
        rng = np.random.default_rng([bench.args.seed, list(PARTS).index("text")])
        scenes = [world.random_scene(rng, .3, held=True) for _ in range(count)]
        texts, seeds = [grammar.caption(s) for s in scenes], rng.integers(1 << 31, size=count).tolist()
        return classifier.agreement(bench.read(draw(part, texts, seeds)), scenes)
    by_clip = drawn("text again", lambda part, texts, seeds: from_text(bench, part, texts, seeds))
    figures = drawn("kosmos text", lambda part, texts, seeds: from_subjects(bench, part, texts, [[] for _ in texts], seeds))
    return {"as by CLIP": 1 - max(by_clip[k] - figures[k] for k in figures), **figures}


def told(m, background):
    """A prompt for one portrait: what monster m wears, and where it is."""
    return f"<i>{f' wearing {grammar.accessory(m[4])}' if m[4] else ''} {grammar.where(background)}"


def combined(part):
    """Kosmos-G's subjects together with what the U-Net is given besides: an outline, a look, another U-Net."""
    words = part.split()[1:]
    everything = words == ["everything"]

    def measure(bench, rng, count):
        outlines = None
        if "control" in words or everything:
            # The outline is of another monster in all but its shape, pattern and what it wears.
            outlines, scenes = asked_along(count, rng)
        else:
            scenes = [[[[*world.random_monster(rng, held=True)[:4], 1 + int(rng.integers(6))]], int(rng.integers(12))] for _ in range(count)]
        monsters = [scene[0][0] for scene in scenes]
        prompts, seeds = [told(m, scene[1]) for m, scene in zip(monsters, scenes)], rng.integers(1 << 31, size=count).tolist()
        drawn = from_subjects(bench, part, prompts, [[portrait(m, rng)] for m in monsters], seeds, outlines)
        answers, figures = bench.read(drawn), {}
        same = lambda answer, m, what: not answer["two"] and all(answer["monsters"][0][j] == m[j] for j in what)
        kept = [same(a, m, [0, 1]) for a, m in zip(answers, monsters)]
        iou = [] if outlines is None else [overlap(outline(g), outline(d)) for g, d in zip(outlines, drawn)]
        if iou:
            figures["outline IoU"] = float(np.mean(iou))
        if words == ["control"]:
            figures["colour and pattern"] = float(np.mean([same(a, m, [1, 2]) for a, m in zip(answers, monsters)]))
        look = "pencil" if everything else words[-1] if words[0] == "lora" else None
        if look:
            figures["look"] = float(np.mean([a["look"] == look for a in answers]))
            figures["subject"] = float(np.mean(kept))
        if everything:
            # Shape and colour of the subject, the look, and an outline that overlaps by half.
            figures["all"] = float(np.mean([k and a["look"] == look and i >= .5 for k, a, i in zip(kept, answers, iou)]))
        return {**figures, **classifier.agreement(answers, scenes)}
    return measure


# what measures a part, the weights it needs, the node it needs beyond the oldest
PARTS = {
    "text": (text, "sd/unet", "UNetSample"), "subject": (subject, "kosmos/model.safetensors", "KosmosLoader"), "apart": (apart, "kosmos/model.safetensors", "KosmosLoader"),
    "vae": (vae, "sd/vae", "VAEEncode"), "control": (control, "controlnet/tiny-canny", "ControlNetLoader"),
    **{f"lora {look}": (looks(look), f"loras/{look}.safetensors", "LoraLoader") for look in styles.STYLES},
    "dreambooth": (given_monster("dreambooth"), "unet/dreambooth", "UNETLoader"), "embedding": (embedding, "embeddings/moss.safetensors", "CLIPTextEncode"),
    "replay": (replay, "kosmos/model.safetensors", "KosmosLoader"),
    "kosmos text": (kosmos_text, "kosmos/model.safetensors", "KosmosLoader"),
    **{part: (combined(part), "kosmos/model.safetensors", "KosmosLoader")
       for part in ("subject control", *(f"subject lora {look}" for look in styles.STYLES), "subject dreambooth", "subject everything")},
    "three": (three, "kosmos/model.safetensors", "KosmosLoader"),
    # At the end: a part's seed is its place here.
    "zwx": (given_monster("zwx"), "loras/zwx.safetensors", "LoraLoaderModelOnly"),
    "zwx control": (given_monster("zwx control"), "loras/zwx.safetensors", "LoraLoaderModelOnly"),
}


def table(results):
    """The figures as text, and whether all that must be reached is."""
    lines, reached = [f"{'part':<20}{'figure':<20}{'measured':>9}{'must reach':>12}"], True
    for part, figures in results.items():
        if isinstance(figures, str):
            lines.append(f"{part:<20}not measured: {figures}")
            reached = False
            continue
        for name, value in figures.items():
            must = MUST[part].get(name)
            good = must is None or value >= must
            reached &= good
            lines.append(f"{part:<20}{name:<20}{value:>9.3f}{'' if must is None else f'{must:>12.2f}'}{'' if good else '  missed'}")
    return "\n".join(lines), reached


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    repository = os.path.abspath(os.path.join(HERE, "..", "..", ".."))
    built = os.path.join(repository, "target", "release", "kosmograph")
    p.add_argument("--seed", type=int, default=1, help="chooses the held-out scenes and the noise")
    p.add_argument("--count", type=int, default=256, help="pictures of each part")
    p.add_argument("--json", metavar="FILE", help="write the figures there too; - for standard output, in place of the table")
    p.add_argument("--binary", default=built if os.path.exists(built) else shutil.which("kosmograph"), help="the kosmograph program")
    p.add_argument("--models", default=os.path.abspath(os.path.join(HERE, "..", "..")), help="the folder that holds the model")
    p.add_argument("--name", default="tiny", help="the model's folder in it")
    p.add_argument("--kosmos", default="kosmos", help="Kosmos-G's folder in that one")
    p.add_argument("--classifier", default=os.path.join(HERE, "classifier.safetensors"))
    p.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    p.add_argument("--strength", type=float, default=1.0, help="of the LoRAs, as LoraLoader has it")
    p.add_argument("--keep", metavar="DIR", help="leave pictures and workflows there")
    args = p.parse_args()
    if not args.binary:
        p.error("no kosmograph program was found; name it with --binary")
    if not os.path.exists(args.classifier):
        p.error(f"the judge's weights are not at {args.classifier}; ../train/classifier.py trains and writes them")
    unknown = set(args.only.split(",")) - set(PARTS)
    if unknown:
        p.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(2)
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args, args.keep or scratch)
        for part in args.only.split(","):
            measure, weights, node = PARTS[part]
            if not bench.has(weights):
                results[part] = f"{args.name}/{weights} is not there"
            elif not bench.has_node(node):
                results[part] = f"this kosmograph has no node {node}"
            else:
                results[part] = measure(bench, np.random.default_rng([args.seed, list(PARTS).index(part)]), args.count)
    shown, reached = table(results)
    if args.json:
        record = json.dumps({"seed": args.seed, "count": args.count, "reached": reached, "must": MUST, "measured": results}, indent=1)
        print(record) if args.json == "-" else open(args.json, "w").write(record)
    if args.json != "-":
        print(shown)
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    main()
