"""The two tokenizers: CLIP's byte-pair files with one token a word, and a sentencepiece unigram model with a fairseq dict.txt.
usage: tokenizer.py FOLDER   writes FOLDER/sd/tokenizer and FOLDER/kosmos as the bundle has them"""
import argparse
import json
import os
import random

import numpy as np
import torch

import grammar
import portraits
import world
from given import SPECIAL


def bytes_to_unicode():
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    extra = [b for b in range(256) if b not in keep]
    table = {b: chr(b) for b in keep}
    table.update({b: chr(256 + i) for i, b in enumerate(extra)})
    return [table[b] for b in keep + extra]


def clip_files(folder):
    os.makedirs(folder, exist_ok=True)
    base = bytes_to_unicode()
    vocab, merges = base + [c + "</w>" for c in base], []
    for word in sorted([*grammar.words(), SPECIAL], key=len):
        parts = list(word[:-1]) + [word[-1] + "</w>"]
        while len(parts) > 1:  # use merges that exist, best rank first; otherwise add one from the left
            pairs = list(zip(parts, parts[1:]))
            known = [p for p in pairs if p in merges]
            pair = min(known, key=merges.index) if known else pairs[0]
            if not known:
                merges.append(pair); vocab.append("".join(pair))
            out, i = [], 0
            while i < len(parts):
                if i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair:
                    out.append("".join(pair)); i += 2
                else:
                    out.append(parts[i]); i += 1
            parts = out
    vocab = list(dict.fromkeys(vocab)) + ["<|startoftext|>", "<|endoftext|>"]
    json.dump({v: i for i, v in enumerate(vocab)}, open(f"{folder}/vocab.json", "w"), ensure_ascii=False)
    open(f"{folder}/merges.txt", "w").write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    start, end = "<|startoftext|>", "<|endoftext|>"
    sp = lambda t: {"content": t, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    json.dump({"bos_token": sp(start), "eos_token": sp(end), "pad_token": end, "unk_token": sp(end)}, open(f"{folder}/special_tokens_map.json", "w"), indent=2)
    json.dump({"add_prefix_space": False, "bos_token": {"__type": "AddedToken", **sp(start)}, "do_lower_case": True, "eos_token": {"__type": "AddedToken", **sp(end)}, "errors": "replace", "model_max_length": 77, "pad_token": end, "tokenizer_class": "CLIPTokenizer", "unk_token": {"__type": "AddedToken", **sp(end)}}, open(f"{folder}/tokenizer_config.json", "w"), indent=2)
    return len(vocab)


class Clip:
    """Encodes the world's own captions fast: every word is one token."""
    def __init__(self, folder):
        self.v = json.load(open(f"{folder}/vocab.json")); self.bos, self.eos = self.v["<|startoftext|>"], self.v["<|endoftext|>"]

    def __call__(self, texts, length=77):
        rows = [[self.bos] + [self.v[w + "</w>"] for w in t.split()][: length - 2] for t in texts]
        return torch.tensor([r + [self.eos] * (length - len(r)) for r in rows])


def sentencepiece_files(folder):
    import sentencepiece as spm
    os.makedirs(folder, exist_ok=True)
    r = random.Random(3)
    rng, lines = np.random.default_rng(5), []
    for k in range(4000):
        scene = world.random_scene(rng)
        lines.append(grammar.instruction(scene, [[*m, b] for m, b in portraits.portraits_of(scene, rng)], r)[0].replace("<i>", " ") if k % 2 else grammar.caption(scene, r))
    lines += [" ".join(grammar.words())] * 20
    lines += ["abcdefghijklmnopqrstuvwxyz 0123456789 .,;:!?'\"()-", " ".join("abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'-")] * 3
    open(f"{folder}/corpus.txt", "w").write("\n".join(lines))
    spm.SentencePieceTrainer.train(input=f"{folder}/corpus.txt", model_prefix=f"{folder}/spm", vocab_size=400, hard_vocab_limit=False, model_type="unigram",
                                   normalization_rule_name="nmt_nfkc", add_dummy_prefix=True, byte_fallback=False, character_coverage=1.0, minloglevel=2)
    os.replace(f"{folder}/spm.model", f"{folder}/sentencepiece.bpe.model")
    from sentencepiece import sentencepiece_model_pb2 as pb  # every word of the grammar becomes one piece as well
    model = pb.ModelProto.FromString(open(f"{folder}/sentencepiece.bpe.model", "rb").read())
    have = {p.piece for p in model.pieces}
    for word in grammar.words():
        if "\u2581" + word not in have: model.pieces.add(piece="\u2581" + word, score=-1.0)
    for p in model.pieces:
        if p.piece[1:] in grammar.words(): p.score = max(p.score, -1.0)
    model.trainer_spec.vocab_size = len(model.pieces)
    for name in ("input", "model_prefix"):  # where it was trained is nobody's business
        model.trainer_spec.ClearField(name)
    open(f"{folder}/sentencepiece.bpe.model", "wb").write(model.SerializeToString())
    sp = spm.SentencePieceProcessor(model_file=f"{folder}/sentencepiece.bpe.model")
    n = sp.get_piece_size()
    open(f"{folder}/dict.txt", "w").write("".join(f"{sp.id_to_piece(i)} 1\n" for i in range(3, n)))
    for f in ("spm.vocab", "corpus.txt"): os.remove(f"{folder}/{f}")
    return n


class Kosmos:
    """<s> 0, <pad> 1, </s> 2, <unk> 3, piece = sentencepiece id + 1, then six marks."""
    def __init__(self, folder):
        import sentencepiece as spm
        self.sp = spm.SentencePieceProcessor(model_file=f"{folder}/sentencepiece.bpe.model")
        n = self.sp.get_piece_size() + 1
        self.mask, self.doc, self.boi, self.eoi, self.chunk, self.line = range(n, n + 6)
        self.size = n + 6
        self.cache = {}

    def text(self, t):
        if t not in self.cache:
            self.cache[t] = [i + 1 if i else 3 for i in self.sp.encode(t)]
        return self.cache[t]

    def __call__(self, prompt, image_tokens=16):
        ids, mask, parts = [0], [0], prompt.split("<i>")
        for k, p in enumerate(parts):
            t = self.text(p) if p.strip() else []
            ids += t; mask += [0] * len(t)
            if k < len(parts) - 1:
                ids += [self.boi] * (image_tokens + 1) + [self.eoi]; mask += [0] + [1] * image_tokens + [0]
        return ids, mask


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("folder")
    work = arguments.parse_args().folder
    if not os.path.exists(f"{work}/kosmos/dict.txt"):
        print("clip vocabulary", clip_files(f"{work}/sd/tokenizer"), "words", len(grammar.words()))
        print("sentencepiece", sentencepiece_files(f"{work}/kosmos"))
