"""The networks that the peers time, on random weights: what diffusers and transformers build, and Kosmos-G's language model.

Each function gives a module and the tensors that it is called with, by position.
"""

import torch


class Called(torch.nn.Module):
    """A network behind a function of tensors alone, which is what can be converted."""

    def __init__(self, network, call):
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *inputs):
        return self.call(self.network, *inputs)


def unet(latent, batch):
    """SD 1.5's U-Net: latents [B, 4, L, L], step [B], condition [B, 77, 768]."""
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8).eval()
    inputs = torch.randn(batch, 4, latent, latent), torch.full([batch], 500), torch.randn(batch, 77, 768)
    return Called(network, lambda network, x, t, context: network(x, t, context, return_dict=False)[0]), inputs


def sdxl_unet(latent, batch):
    """SDXL's U-Net: the same with a pooled text [B, 1280] and the sizes [B, 6]."""
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(
        cross_attention_dim=2048,
        block_out_channels=[320, 640, 1280],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        attention_head_dim=[5, 10, 20],
        transformer_layers_per_block=[1, 2, 10],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ).eval()

    def call(network, x, t, context, pooled, sizes):
        added = {"text_embeds": pooled, "time_ids": sizes}
        return network(x, t, context, added_cond_kwargs=added, return_dict=False)[0]

    edge = 8.0 * latent
    sizes = torch.tensor([[edge, edge, 0, 0, edge, edge]] * batch)
    inputs = torch.randn(batch, 4, latent, latent), torch.full([batch], 500), torch.randn(batch, 77, 2048)
    return Called(network, call), (*inputs, torch.randn(batch, 1280), sizes)


def vae_decode(latent, batch):
    """The decoder of SD's VAE: latents [B, 4, L, L]."""
    from diffusers import AutoencoderKL

    network = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
    ).eval()
    decode = lambda network, x: network.decode(x, return_dict=False)[0]
    return Called(network, decode), (torch.randn(batch, 4, latent, latent),)


class Layer(torch.nn.Module):
    """A layer of Kosmos-G's language model (Magneto: norms within attention and feed-forward too)."""

    def __init__(self, width=2048, heads=32, hidden=8192):
        super().__init__()
        self.heads = heads
        linear, norm = torch.nn.Linear, torch.nn.LayerNorm
        self.q, self.k, self.v, self.out = (linear(width, width) for _ in range(4))
        self.norm_1, self.norm_2, self.inner = norm(width), norm(width), norm(width)
        self.fc_1, self.fc_2, self.norm_3 = linear(width, hidden), linear(hidden, width), norm(hidden)

    def forward(self, x):
        h = self.norm_1(x)
        split = lambda y: y.unflatten(2, (self.heads, -1)).transpose(1, 2)
        attend = torch.nn.functional.scaled_dot_product_attention
        h = attend(split(self.q(h)), split(self.k(h)), split(self.v(h)), is_causal=True)
        x = x + self.out(self.inner(h.transpose(1, 2).flatten(2)))
        return x + self.fc_2(self.norm_3(torch.nn.functional.gelu(self.fc_1(self.norm_2(x)))))


def mllm(latent, batch):
    """Kosmos-G's language model over 160 tokens: [1, 160, 2048]."""
    network = torch.nn.Sequential(*(Layer() for _ in range(24)), torch.nn.LayerNorm(2048)).eval()
    return network, (torch.randn(1, 160, 2048),)


def clip(latent, batch):
    """CLIP's text encoder over 77 tokens: ids [B, 77]."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
    network = CLIPTextModel(config).eval()
    states = lambda network, ids: network(ids, return_dict=False)[0]
    return Called(network, states), (torch.arange(100, 177).repeat(batch, 1),)


class Product(torch.nn.Module):
    """A matrix product and nothing else: what a floor is reckoned by."""

    def forward(self, a, b):
        return a @ b


def product(side, _):
    return Product(), (torch.randn(side, side), torch.randn(side, side))


BUILDERS = {"product": product, "unet": unet, "sdxl-unet": sdxl_unet, "vae-decode": vae_decode, "mllm": mllm, "clip": clip}
