"""Writes hypernetwork_*.pt, hypernetworks of weights by a formula, and prints what torch makes of them; run here with torch."""
import torch
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = {"mish": nn.Mish, "swish": nn.Hardswish, "tanh": nn.Tanh}


def number(i, k):
    return ((i * 37 + k * 11) % 23) / 11.5 - 1


def numbers(count, k, factor):
    return torch.tensor([number(i, k) * factor for i in range(count)])


def network(width, k, norm):
    layers, at, sizes = {}, 0, [width, 2 * width, width]
    for n in range(2):
        rows = sizes[n + 1]
        layers[f"linear.{at}.weight"] = numbers(rows * sizes[n], k + n, 0.5).reshape(rows, sizes[n])
        layers[f"linear.{at}.bias"] = numbers(rows, k + n + 5, 0.5)
        at += 2 - n
        if norm:
            layers[f"linear.{at}.weight"], layers[f"linear.{at}.bias"] = 1 + numbers(rows, k, 0.3), numbers(rows, k + 2, 0.2)
            at += 1
    return layers


def forward(layers, x, activation, norm, to_the_end):
    names = [name.removesuffix(".weight") for name in layers if name.endswith(".weight")]
    at = 0
    while at < len(names):
        is_last = at == len(names) - 1
        x = F.linear(x, layers[names[at] + ".weight"], layers[names[at] + ".bias"])
        if not is_last or to_the_end:
            x = ACTIVATIONS[activation]()(x)
        if norm:
            at += 1
            weight = layers[names[at] + ".weight"]
            x = F.layer_norm(x, weight.shape, weight, layers[names[at] + ".bias"])
        at += 1
    return x


k, v = (numbers(8, of, 2).reshape(1, 2, 4) for of in (1, 4))
for activation in ACTIVATIONS:
    norm, to_the_end = activation == "mish", activation == "tanh"
    file = {4: [network(4, 1, norm), network(4, 2, norm)], 6: [network(6, 3, norm), network(6, 4, norm)]}
    settings = {"activation_func": activation, "is_layer_norm": norm, "use_dropout": True, "activate_output": to_the_end,
                "last_layer_dropout": False, "step": 100, "name": "test", "layer_structure": [1, 2, 1]}
    torch.save(file | settings, f"hypernetwork_{activation}.pt")
    for name, x, layers in (("k", k, file[4][0]), ("v", v, file[4][1])):
        made = x + 0.5 * forward(layers, x, activation, norm, to_the_end)
        print(activation, name, [float(f"{value:.6g}") for value in made.flatten()])
