"""One part of a picture in PyTorch on random weights: peers.py runs this in another Python, ../gpu/run.py on a GPU.

Prints the seconds of each call after one that warms up, and the largest resident size. On a GPU in f16, channels_last,
"eager" or "compiled".
"""

import json
import resource
import sys
import time

import torch

part, latent, batch, threads, repeat = sys.argv[1], *map(int, sys.argv[2:6])
device, mode = sys.argv[6:8] if len(sys.argv) > 6 else ("cpu", "eager")
torch.set_num_threads(threads)
torch.manual_seed(0)


def placed(network):
    """The network where it is timed."""
    if device == "cpu":
        return network
    network = network.to(device, torch.float16, memory_format=torch.channels_last)
    return torch.compile(network) if mode == "compiled" else network


def randn(*shape):
    x = torch.randn(*shape)
    return x if device == "cpu" else x.to(device, torch.float16)


def unet():
    from diffusers import UNet2DConditionModel

    network = placed(UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8).eval())
    x, context = randn(batch, 4, latent, latent), randn(batch, 77, 768)
    return lambda: network(x, 500, context)


def sdxl_unet():
    from diffusers import UNet2DConditionModel

    network = placed(
        UNet2DConditionModel(
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
    )
    x, context = randn(batch, 4, latent, latent), randn(batch, 77, 2048)
    edge = 8 * latent
    sizes = torch.tensor([[edge, edge, 0, 0, edge, edge]] * batch, device=x.device, dtype=x.dtype)
    added = {"text_embeds": randn(batch, 1280), "time_ids": sizes}
    return lambda: network(x, 500, context, added_cond_kwargs=added)


def vae_decode():
    from diffusers import AutoencoderKL

    network = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
    ).eval()
    network.decoder = placed(network.decoder)
    network = network if device == "cpu" else network.to(device, torch.float16)
    x = randn(batch, 4, latent, latent)
    return lambda: network.decode(x)


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


def mllm():
    network = torch.nn.Sequential(*(Layer() for _ in range(24)), torch.nn.LayerNorm(2048)).eval()
    network, x = placed(network), randn(1, 160, 2048)
    return lambda: network(x)


def clip():
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
    network = placed(CLIPTextModel(config).eval())
    ids = torch.arange(100, 177).repeat(batch, 1).to(device)
    return lambda: network(ids)


with torch.no_grad():
    run = {"unet": unet, "sdxl-unet": sdxl_unet, "vae-decode": vae_decode, "mllm": mllm, "clip": clip}[part]()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(json.dumps({"seconds": seconds, "peak_gb": peak}))
