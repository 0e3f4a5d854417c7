"""Model files, pickles and pictures that are damaged, lie about themselves, or grow when they are unpacked."""

import copy
import functools
import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

from . import mutate
from .judge import judge_place, judge_process, judge_run
from .runner import REPOSITORY, Kind, run

TINY = REPOSITORY / "models" / "tiny"
PICTURES = REPOSITORY / "nodes" / "image" / "tests" / "data" / "pictures"


def copy_models(folder):
    """models/tiny in a folder of the case, by hard links where the disk has them."""
    for part in ("sd", "kosmos", "loras", "unet", "controlnet", "embeddings"):
        for path in (TINY / part).rglob("*"):
            if path.is_file():
                to = folder / "models" / "tiny" / path.relative_to(TINY)
                to.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(path, to)
                except OSError:
                    shutil.copyfile(path, to)
    shutil.copytree(REPOSITORY / "workflows" / "input", folder / "input")


def replace(path, data):
    """Puts another file in the place of what may be a link."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def workflow(folder, name, **changes):
    """A workflow of the repository with one step; `changes` are inputs, by name, of every node that has them."""
    graph = json.loads((REPOSITORY / "workflows" / f"{name}.json").read_text())
    for node in graph.values():
        node["inputs"].update({k: v for k, v in {"steps": 1, "width": 64, "height": 64, **changes}.items() if k in node["inputs"]})
    (folder / "workflow.json").write_text(json.dumps(graph))


def run_in(setting, folder, *extra):
    before, out = set(folder.rglob("*")), folder / "out"
    arguments = ["run", "workflow.json", "--json", "--out", out, "--models", folder / "models", "--input", folder / "input", *extra]
    ended = run(setting, arguments, folder)
    return judge_run(ended, out) + judge_place(folder, before, out)


# ---- Model files -----------------------------------------------------------------------------

# A file under models/tiny, and the workflow that reads it.
TARGETS = [
    ("sd/unet/diffusion_pytorch_model.safetensors", "text"), ("sd/unet/config.json", "text"),
    ("sd/vae/diffusion_pytorch_model.safetensors", "text"), ("sd/vae/config.json", "text"),
    ("sd/text_encoder/model.safetensors", "text"), ("sd/text_encoder/config.json", "text"),
    ("sd/scheduler/scheduler_config.json", "text"), ("sd/tokenizer/vocab.json", "text"), ("sd/tokenizer/merges.txt", "text"),
    ("sd/tokenizer/tokenizer_config.json", "text"), ("sd/tokenizer/special_tokens_map.json", "text"), ("sd/model_index.json", "text"),
    ("loras/neon.safetensors", "variants"), ("embeddings/moss.safetensors", "embedding"),
    ("controlnet/tiny-canny/diffusion_pytorch_model.safetensors", "control"), ("controlnet/tiny-canny/config.json", "control"),
    ("kosmos/model.safetensors", "subject"), ("kosmos/config.json", "subject"), ("kosmos/dict.txt", "subject"),
    ("kosmos/sentencepiece.bpe.model", "subject"), ("unet/dreambooth/diffusion_pytorch_model.safetensors", "dreambooth"),
]


def split(data):
    """The header of a safetensors file, and its numbers."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8:8 + length]), data[8 + length:]


def join(header, numbers):
    text = mutate.as_json(header)
    return len(text).to_bytes(8, "little") + text + numbers


def change_safetensors(data, rng):
    header, numbers = split(data)
    names = [name for name in header if name != "__metadata__"]
    what = rng.randrange(11)
    if what == 0:
        length = rng.choice([0, 1, 7, len(data), 2**31, 2**32, 2**63 - 1, 2**64 - 1, 100_000_001])
        return length.to_bytes(8, "little") + data[8:]
    if what == 1:
        return data[:rng.choice([0, 1, 7, 8, 9, rng.randrange(len(data)), len(data) - 1])]
    if what == 2:
        return mutate.change_bytes(data, rng, end=8 + int.from_bytes(data[:8], "little"))
    if what == 3:
        filler = rng.choice([b"\xff", b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\0"])
        begin = rng.randrange(len(numbers) + 1)
        return join(header, numbers[:begin] + (filler * (len(numbers) // len(filler) + 1))[:len(numbers) - begin])
    if what == 4:
        header["__metadata__"] = rng.choice([{"format": 5}, [], {"kosmograph.config": "{" * 100_000}, {"a" * 100_000: "b"},
                                             {"kosmograph.config": '{"unet":{"norm_num_groups":0}}'}, {"ss_network_dim": "1e99"}])
        return join(header, numbers)
    if what == 5:
        name = rng.choice(names)
        header[rng.choice(["", "\0", name + ".alpha", name.replace(".", "/"), "../" + name, "x" * 10_000])] = copy.deepcopy(header[name])
        return join(header, numbers)
    entry = header[rng.choice(names)]
    if what == 6:
        entry["dtype"] = rng.choice(["F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "", "f32", None, 5])
    elif what == 7:
        entry["shape"] = rng.choice([[], [0], [-1], [1], [2**62, 4], [2**32, 2**32], [1] * 2000, entry["shape"][::-1],
                                     [*entry["shape"], 1], entry["shape"][1:], [2**63], [1.5], "x", None])
    elif what == 8:
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = rng.choice([[end, begin], [begin, end + 4], [0, 0], [begin, 2**64 - 1], [2**63, 2**63], [-1, end], [begin],
                                            [begin + 1, end + 1], [], None])
    else:
        # One that is true in itself, of another size: what the model wants is another question.
        wanted = rng.choice([1, 3, 8, 64, 4096])
        entry["shape"], entry["dtype"] = [wanted], "F32"
        entry["data_offsets"] = [len(numbers), len(numbers) + 4 * wanted]
        numbers += bytes(4 * wanted)
    return join(header, numbers)


class Models(Kind):
    name = "models"

    def count(self, setting):
        return 500

    def attack(self, setting, number, rng, folder):
        copy_models(folder)
        target, reader = TARGETS[number % len(TARGETS)]
        path = folder / "models" / "tiny" / target
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            data = change_safetensors(data, rng)
        elif path.suffix == ".json" and rng.random() < 0.9:
            tree = json.loads(data)
            for _ in range(rng.choice([1, 1, 2, 3])):
                mutate.change(tree, rng)
            data = mutate.as_json(tree)
        else:
            data = mutate.change_bytes(data, rng)
        replace(path, data)
        if reader == "embedding":
            workflow(folder, "text", text="embedding:moss a monster")
        else:
            workflow(folder, reader)
        findings = run_in(setting, folder)
        if number % 4 == 0:
            findings += judge_process(run(setting, ["check", "workflow.json", "--models", folder / "models"], folder))
        return findings


# ---- GGUF ------------------------------------------------------------------------------------


def gguf_text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def as_gguf(path, rng):
    """A U-Net's file of safetensors as GGUF, whose counts, values and tensors may lie."""
    header, numbers = split(path.read_bytes())
    names = [name for name in header if name != "__metadata__"]
    lied_about, what = rng.choice(names), rng.randrange(10)
    far = rng.choice([0, 1, 31, 2**31, 2**32, 2**40, 2**63, 2**64 - 1])
    values = gguf_text("general.architecture") + struct.pack("<I", 8) + gguf_text(rng.choice(["sd1", "sdxl", "llama", ""]))
    value_count = 1
    if what == 0:
        kind = rng.choice([0, 4, 8, 9, 12, 13, 2**32 - 1])
        values, value_count = values + gguf_text("more") + struct.pack("<I", kind) + struct.pack("<IQ", rng.choice([0, 8, 9, 12, 99]), far), 2
    elif what == 1:
        values, value_count = values + gguf_text("general.alignment") + struct.pack("<II", 4, rng.choice([0, 1, 3, 2**31, 2**32 - 1])), 2
    elif what == 2:
        shape = [rng.choice([0, 1, 3, 2**31 - 1, -1]) for _ in range(rng.choice([0, 1, 4, 9]))]
        values += gguf_text(f"comfy.gguf.orig_shape.{lied_about}") + struct.pack("<IIQ", 9, 5, len(shape)) + struct.pack(f"<{len(shape)}i", *shape)
        value_count = 2
    infos = b""
    for name in names:
        shape, kind, offset = header[name]["shape"], {"F32": 0, "F16": 1}[header[name]["dtype"]], header[name]["data_offsets"][0]
        if name == lied_about and what == 3:
            shape = rng.choice([[], [0], [far], [far, far], shape[::-1], [1] * 5, [1] * 1000])
        elif name == lied_about and what == 4:
            kind = rng.choice([2, 3, 6, 7, 8, 10, 12, 14, 20, 23, 24, 28, 30, 99, 2**32 - 1])
        elif name == lied_about and what == 5:
            offset = far
        axes = b"".join(struct.pack("<Q", axis % 2**64) for axis in shape[::-1])
        infos += gguf_text(name) + struct.pack("<I", len(shape)) + axes + struct.pack("<IQ", kind, offset % 2**64)
    counts = struct.pack("<QQ", far if what == 6 else len(names), far if what == 7 else value_count)
    data = b"GGUF" + struct.pack("<I", rng.choice([0, 1, 2, 3, 4, 2**24 * 3]) if what == 8 else 3) + counts + values + infos
    data += bytes(-len(data) % 32) + numbers
    return mutate.change_bytes(data, rng, end=len(data) - len(numbers)) if what == 9 else data


class Gguf(Kind):
    name = "gguf"

    def count(self, setting):
        return 200

    def attack(self, setting, number, rng, folder):
        copy_models(folder)
        path = folder / "models" / "tiny" / "unet" / "dreambooth" / "diffusion_pytorch_model.safetensors"
        data = as_gguf(path, rng)
        if number % 10 == 0:
            data = data[:rng.randrange(len(data))]
        replace(path, data)
        workflow(folder, "dreambooth")
        return run_in(setting, folder)


# ---- Pickles ---------------------------------------------------------------------------------


def text(value):
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value):
    return b"\x8a\x08" + struct.pack("<q", value)


STORAGES = {"F32": "Float", "F16": "Half", "BF16": "BFloat16", "F64": "Double", "I64": "Long", "U8": "Byte", "BOOL": "Bool"}


def state_dict(header):
    """The pickle of a dictionary of tensors, storages numbered by place."""
    made = [b"\x80\x02ccollections\nOrderedDict\n)R("]
    for key, (name, entry) in enumerate(header.items()):
        count, stride = 1, []
        for length in reversed(entry["shape"]):
            stride.insert(0, count)
            count *= length
        made += [text(name), b"ctorch._utils\n_rebuild_tensor_v2\n((", text("storage"),
                 f"ctorch\n{STORAGES[entry['dtype']]}Storage\n".encode(), text(str(key)), text("cpu"), integer(count), b"tQK\0(",
                 *map(integer, entry["shape"]), b"t(", *map(integer, stride), b"t\x89ccollections\nOrderedDict\n)RtR"]
    return b"".join([*made, b"u."])


def torch_file(pickle, storages, compression=zipfile.ZIP_STORED):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", "little")
        for key, data in enumerate(storages):
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return made.getvalue()


@functools.cache
def as_torch(path):
    header, numbers = split(path.read_bytes())
    header.pop("__metadata__", None)
    return state_dict(header), [numbers[slice(*entry["data_offsets"])] for entry in header.values()]


def bombs(rng):
    """Pickles that are small and unfold, and some that would like to call."""
    deep = rng.choice([1000, 100_000, 1_000_000])
    return rng.choice([
        b"\x80\x02" + b"]" * deep + b"." , b"\x80\x02" + b"(" * deep + b".", b"\x80\x02)" + b"\x85" * deep + b".",
        b"\x80\x02]" + b"".join(b"q%ch%ch%c\x86" % (i % 256, i % 256, i % 256) for i in range(200)) + b".",
        b"\x80\x02cos\nsystem\n" + text("touch outside") + b"\x85R.", b"\x80\x02cbuiltins\neval\n" + text("1/0") + b"\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.", b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(tR.",
        b"\x80\x02X\xff\xff\xff\xff", b"\x80\x04\x8d" + b"\xff" * 8, b"\x80\x02\x8b\xff\xff\xff\x7f", b"\x80\x02\x8b\0\0\0\x80", b"\x80\x05\x96" + b"\xff" * 8,
        b"\x80\x02" + b"2" * 50, b"\x80\x02.", b".", b"", b"\x80\x02N.", b"\x80\x02}.", b"\x80\x02h\0.", b"\x80\x02j\xff\xff\xff\xff.",
        b"\x80\x02}" + b"r\xff\xff\xff\x7f" * 10 + b".", b"I" + b"9" * 100_000 + b"\n.", b"F1e99999\n.", b"L" + b"9" * 100_000 + b"L\n.",
        b"\x80\x02}(" + text("a") + b"}(" * deep + b".",
    ])


def change_pickle(pickle, storages, rng):
    """A torch file with something wrong in it."""
    what = rng.randrange(10)
    if what <= 2:
        return torch_file(mutate.change_bytes(pickle, rng), storages)
    if what == 3:
        return torch_file(bombs(rng), storages)
    if what == 4:
        # Sizes, strides and offsets are eight bytes behind 0x8a 0x08.
        at = [i for i in range(len(pickle)) if pickle[i:i + 2] == b"\x8a\x08"]
        changed = bytearray(pickle)
        for i in rng.sample(at, min(len(at), rng.choice([1, 2, 8]))):
            changed[i + 2:i + 10] = struct.pack("<q", rng.choice([-1, 0, 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63)]))
        return torch_file(bytes(changed), storages)
    if what == 5:
        return torch_file(pickle, [data[:rng.randrange(len(data) + 1)] if rng.random() < 0.3 else data for data in storages])
    if what == 6:
        return torch_file(pickle, storages, zipfile.ZIP_DEFLATED)
    if what == 7:
        # A member that unfolds a thousandfold.
        return torch_file(pickle, [bytes(64 << 20)], zipfile.ZIP_DEFLATED)
    if what == 8:
        whole = torch_file(pickle, storages)
        return mutate.change_bytes(whole, rng, begin=rng.choice([0, max(len(whole) - 2000, 0), max(len(whole) - 60, 0)]))
    return mutate.change_bytes(rng.choice([pickle, bombs(rng)]), rng)


class Pickles(Kind):
    name = "pickles"

    def count(self, setting):
        return 400

    def attack(self, setting, number, rng, folder):
        copy_models(folder)
        models = folder / "models" / "tiny"
        reader = number % 4
        if reader == 0:
            pickle, storages = as_torch(TINY / "embeddings" / "moss.safetensors")
            (models / "embeddings" / "moss.safetensors").unlink()
            replace(models / "embeddings" / "moss.pt", change_pickle(pickle, storages, rng))
            workflow(folder, "text", text="embedding:moss a monster")
        elif reader == 1:
            pickle, storages = as_torch(TINY / "loras" / "neon.safetensors")
            replace(folder / "models" / "loras" / "bad.pt", change_pickle(pickle, storages, rng))
            workflow(folder, "style", lora_name="bad.pt")
        elif reader == 2:
            pickle, storages = as_torch(TINY / "sd" / "unet" / "diffusion_pytorch_model.safetensors")
            replace(folder / "models" / "checkpoints" / "bad.ckpt", change_pickle(pickle, storages, rng))
            workflow(folder, "text", ckpt_name="bad.ckpt")
        else:
            pickle, storages = as_torch(TINY / "loras" / "neon.safetensors")
            (folder / "bad.pt").write_bytes(change_pickle(pickle, storages, rng))
            before, made = set(folder.rglob("*")), folder / "out" / "made.safetensors"
            made.parent.mkdir()
            ended = run(setting, ["convert", "bad.pt", made], folder)
            return judge_process(ended) + judge_place(folder, before, folder / "out")
        return run_in(setting, folder)


# ---- Pictures --------------------------------------------------------------------------------


def png(*chunks):
    made = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        made += len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    return made


def png_chunks(data):
    at = 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at:at + 4], "big")
        yield data[at + 4:at + 8], data[at + 8:at + 8 + length]
        at += 12 + length


def large(rng):
    """Pictures that are small as files and large as something else."""
    side = rng.choice([1, 2**14, 2**14 + 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 0])
    other = rng.choice([1, 64, 8192, 2**14, 2**31])
    depth, colour = rng.choice([(8, 2), (8, 6), (16, 6), (1, 0), (8, 3), (3, 7)])
    header = struct.pack(">IIBBBBB", side, other, depth, colour, 0, 0, rng.choice([0, 0, 1, 9]))
    pixels = (b"IDAT", zlib.compress(bytes(rng.choice([10, 1000, 1 << 20]))))
    bomb = zlib.compress(bytes(64 << 20), 9)
    small = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    one = (b"IDAT", zlib.compress(b"\0abc"))
    jpeg = bytearray((PICTURES / "baseline.jpg").read_bytes())
    frame = jpeg.find(b"\xff\xc0")
    jpeg[frame + 5:frame + 9] = struct.pack(">HH", rng.choice([0, 8192, 16384, 65535]), rng.choice([0, 16384, 65535]))
    return rng.choice([
        png((b"IHDR", header), pixels, (b"IEND", b"")),
        png((b"IHDR", small), (b"iCCP", b"x\0\0" + bomb), one, (b"IEND", b"")),
        png((b"IHDR", small), (b"zTXt", b"prompt\0\0" + bomb), one, (b"IEND", b"")),
        png((b"IHDR", small), (b"iTXt", b"workflow\0\1\0\0\0" + bomb), one, (b"IEND", b"")),
        png((b"IHDR", small), (b"tEXt", b"prompt\0" + b"[" * 200_000), one, (b"IEND", b"")),
        png((b"IHDR", small), (b"IDAT", bomb), (b"IEND", b"")),
        png((b"IHDR", small), (b"acTL", struct.pack(">II", 2**31 - 1, 0)), one, (b"IEND", b"")),
        png((b"IHDR", small), *[(b"IDAT", b"")] * 50_000, one, (b"IEND", b"")),
        bytes(jpeg),
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + (b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\2L\1\0") * 200 + b";",
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 100, 0, 54, 40, rng.choice([16384, -1, 2**31 - 1]), rng.choice([16384, -16384, -(2**31)]), 1, 24, 0, 0, 0, 0, 0, 0),
    ])


class Pictures(Kind):
    name = "pictures"

    def count(self, setting):
        return 500

    def attack(self, setting, number, rng, folder):
        seeds = sorted(path for path in PICTURES.iterdir() if path.is_file())
        seed = seeds[number % len(seeds)]
        data = seed.read_bytes()
        if number % 6 == 0:
            data = large(rng)
        elif seed.suffix == ".png" and rng.random() < 0.6:
            # With check sums that are right, so that what lies behind them is reached.
            chunks = [[kind, body] for kind, body in png_chunks(data)]
            for _ in range(rng.choice([1, 2, 4])):
                i = rng.randrange(len(chunks))
                what = rng.randrange(4)
                if what == 0 and chunks[i][0] == b"IDAT":
                    try:
                        chunks[i][1] = zlib.compress(mutate.change_bytes(zlib.decompress(chunks[i][1]), rng))
                    except zlib.error:
                        pass
                elif what <= 1:
                    chunks[i][1] = mutate.change_bytes(chunks[i][1], rng)
                elif what == 2:
                    chunks.insert(rng.randrange(len(chunks) + 1), list(rng.choice(chunks)))
                else:
                    chunks[i][0] = rng.choice([b"IDAT", b"PLTE", b"tRNS", b"fdAT", b"fcTL", b"acTL", b"eXIf", b"iCCP", b"zTXt", b"XXXX"])
            data = png(*chunks)
        else:
            data = mutate.change_bytes(data, rng, begin=rng.choice([0, 8]))
        (folder / "models").mkdir()
        (folder / "input").mkdir()
        (folder / "input" / "bad.png").write_bytes(data)
        if number % 5 == 4:
            # As a workflow: a picture carries one.
            return judge_process(run(setting, [rng.choice(["check", "run"]), "input/bad.png"], folder))
        graph = {"1": {"class_type": "LoadImage", "inputs": {"image": "bad.png"}},
                 "2": {"class_type": "ImageScale", "inputs": {"image": ["1", 0], "width": 64, "height": 0, "crop": "disabled",
                                                              "upscale_method": "lanczos"}},
                 "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "a"}},
                 "4": {"class_type": "MaskToImage", "inputs": {"mask": ["1", 1]}},
                 "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "b"}}}
        (folder / "workflow.json").write_text(json.dumps(graph))
        return run_in(setting, folder)


KINDS = [Models(), Gguf(), Pickles(), Pictures()]
