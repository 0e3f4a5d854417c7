"""Kosmos-G in PyTorch, with the key names of the released checkpoint: ViT, connector, MLLM, AlignerNet."""
import math
import torch, torch.nn as nn, torch.nn.functional as F


def attend(q, k, v, heads, mask=None):
    s = lambda t: t.unflatten(-1, (heads, -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(s(q), s(k), s(v), attn_mask=mask).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self, dim, heads, inner=True):
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.inner_attn_ln = nn.LayerNorm(dim) if inner else None

    def forward(self, x, kv, mask=None):
        y = attend(self.q_proj(x), self.k_proj(kv), self.v_proj(kv), self.heads, mask)
        return self.out_proj(self.inner_attn_ln(y) if self.inner_attn_ln is not None else y)


class Ffn(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.ffn_layernorm, self.fc2 = nn.Linear(dim, hidden), nn.LayerNorm(hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(self.ffn_layernorm(F.gelu(self.fc1(x))))


class Layer(nn.Module):
    """A sub-LN transformer layer, with or without cross-attention."""
    def __init__(self, dim, heads, hidden, cross=False):
        super().__init__()
        self.self_attn, self.self_attn_layer_norm = Attention(dim, heads), nn.LayerNorm(dim)
        if cross:
            self.encoder_attn, self.encoder_attn_layer_norm = Attention(dim, heads, False), nn.LayerNorm(dim)
        self.ffn, self.final_layer_norm = Ffn(dim, hidden), nn.LayerNorm(dim)

    def forward(self, x, mask=None, memory=None, memory_mask=None):
        h = self.self_attn_layer_norm(x)
        x = x + self.self_attn(h, h, mask)
        if memory is not None:
            x = x + self.encoder_attn(self.encoder_attn_layer_norm(x), memory, memory_mask)
        return x + self.ffn(self.final_layer_norm(x))


class Block(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.ln_1, self.ln_2, self.ts_attn = nn.LayerNorm(width), nn.LayerNorm(width), Attention(width, heads, False)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)})

    def forward(self, x):
        h = self.ln_1(x)
        x = x + self.ts_attn(h, h)
        h = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](h * torch.sigmoid(1.702 * h))


class Visual(nn.Module):
    def __init__(self, image, patch, width, layers, heads, ratio=4):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(width) * width ** -.5)
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.positional_embedding = nn.Parameter(torch.randn((image // patch) ** 2 + 1, width) * width ** -.5)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block(width, heads, int(width * ratio)) for _ in range(layers))})

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        x = self.ln_pre(x)
        for b in self.transformer["resblocks"]: x = b(x)
        return self.ln_post(x)


class Connector(nn.Module):
    def __init__(self, width, dim, queries, heads):
        super().__init__()
        self.dense, self.latent_query, self.x_attn = nn.Linear(width, dim), nn.Parameter(torch.randn(queries, dim) * .5), Attention(dim, heads, False)

    def forward(self, x):
        q = self.latent_query.expand(len(x), -1, -1)
        return self.x_attn(q, torch.cat([self.dense(x), q], 1))


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("_float_tensor", torch.zeros(1))


class Decoder(nn.Module):
    """The MLLM: causal, fixed sinusoidal positions, image features in place of embeddings."""
    def __init__(self, vocab, dim, layers, heads, hidden):
        super().__init__()
        self.dim = dim
        self.embed_positions, self.embed_tokens = Positions(), nn.Embedding(vocab, dim, padding_idx=1)
        nn.init.normal_(self.embed_tokens.weight, 0, dim ** -.5)
        self.output_projection = nn.Linear(dim, vocab, bias=False); self.output_projection.weight = self.embed_tokens.weight
        self.self_attn_sope = nn.Module(); n = dim // heads
        self.self_attn_sope.register_buffer("scale", (torch.arange(0, n, 2) + .4 * n) / (1.4 * n))
        self.layers, self.layer_norm = nn.ModuleList(Layer(dim, heads, hidden) for _ in range(layers)), nn.LayerNorm(dim)

    def forward(self, tokens, features=None, image_mask=None):
        x = self.embed_tokens(tokens)
        if features is not None:
            x = x.clone(); x[image_mask] = features.reshape(-1, self.dim).to(x)
        pos = (tokens.ne(1).cumsum(1) + 1) * tokens.ne(1)
        half = self.dim // 2
        f = torch.exp(torch.arange(half, device=x.device) * -(math.log(10000) / (half - 1)))
        a = pos[..., None] * f
        x = x * math.sqrt(self.dim) + torch.cat([a.sin(), a.cos()], -1) * tokens.ne(1)[..., None]
        t = tokens.shape[1]
        mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        for l in self.layers: x = l(x, mask)
        return self.layer_norm(x)


class Stack(nn.Module):
    def __init__(self, dim, layers, heads, hidden, cross=False):
        super().__init__()
        self.layers, self.layer_norm = nn.ModuleList(Layer(dim, heads, hidden, cross) for _ in range(layers)), nn.LayerNorm(dim)

    def forward(self, x, mask=None, memory=None, memory_mask=None):
        for l in self.layers: x = l(x, mask, memory, memory_mask)
        return self.layer_norm(x)


class Aligner(nn.Module):
    def __init__(self, dim_in, dim, enc, dec, heads, hidden, positions, queries=77):
        super().__init__()
        self.encoder_proj = Stack(dim, enc, heads, hidden); self.encoder_proj.embed_tokens = nn.Linear(dim_in, dim)
        self.encoder_proj.embed_positions = nn.Embedding(positions, dim)
        self.encoder = Stack(dim, dec, heads, hidden, True)
        self.encoder_query = nn.Parameter(torch.randn(queries, dim))
        self.decoder = Stack(dim, dec, heads, hidden, True)
        self.decoder_query = nn.Parameter(torch.randn(positions, dim) * .5)
        self.decoder_proj = Stack(dim, enc, heads, hidden); self.decoder_proj.embed_positions = nn.Embedding(positions, dim)
        self.decoder_proj.output_projection = nn.Linear(dim, dim_in)
        for m in (self.encoder_proj, self.decoder_proj): nn.init.normal_(m.embed_positions.weight, 0, .3)

    def encode(self, x, pad):
        e, p = self.encoder_proj, self._mask(pad)
        h = (e.embed_tokens(x) + e.embed_positions.weight[2:x.shape[1] + 2]) * ~pad[..., None]
        h = e(h, p)
        return self.encoder(self.encoder_query.expand(len(x), -1, -1), None, h, p)

    def reconstruct(self, y, pad):
        t, d = pad.shape[1], self.decoder_proj
        h = self.decoder(self.decoder_query[:t].expand(len(y), -1, -1), None, y)
        return d.output_projection(d(h + d.embed_positions.weight[2:t + 2]))  # the reference masks nothing here

    @staticmethod
    def _mask(pad):
        return ~pad[:, None, None, :]


class KosmosG(nn.Module):
    def __init__(self, c):
        super().__init__()
        v, m, a = c["vision"], c["mllm"], c["aligner"]
        self.img_model = nn.ModuleDict({"visual": Visual(v["image_size"], v["patch_size"], v["width"], v["layers"], v["heads"], v["mlp_ratio"])})
        self.img_connector = Connector(v["width"], m["embed_dim"], c["connector"]["latent_query_num"], c["connector"]["heads"])
        self.gpt_model = nn.ModuleDict({"decoder": Decoder(m["vocab_size"], m["embed_dim"], m["layers"], m["heads"], m["ffn_dim"])})
        self.aligner = Aligner(m["embed_dim"], a["dim"], a["encoder_layers"], a["decoder_layers"], a["heads"], a["ffn_dim"], a["max_positions"], a["queries"])

    def see(self, pixels):
        return self.img_connector(F.normalize(self.img_model["visual"](pixels), dim=-1))

    def hidden(self, tokens, pixels=None, image_mask=None):
        return self.gpt_model["decoder"](tokens, None if pixels is None else self.see(pixels), image_mask)

    def forward(self, tokens, pixels=None, image_mask=None):
        return self.aligner.encode(self.hidden(tokens, pixels, image_mask), tokens.eq(1))
