"""Writes samplers.json: what ComfyUI's samplers and schedules compute for a closed-form denoiser.

    python make_samplers.py COMFYUI_FOLDER      (torch, torchsde, scipy; made with ComfyUI of January 2026)

Only the mathematics of ComfyUI is run: k_diffusion/sampling.py and deis.py, extra_samplers/uni_pc.py and the
schedulers of samplers.py, in f64, with recorded noises in the place of drawn ones.
"""
import importlib.util
import json
import math
import sys
import types
from pathlib import Path

import numpy
import scipy.stats
import torch

COMFY = Path(sys.argv[1]) / "comfy"


def module(name, **contents):
    made = types.ModuleType(name)
    made.__dict__.update(contents)
    made.__path__ = []
    sys.modules[name] = made
    return made


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def plain_range(count, **_):
    return range(count)


class CONST:
    pass


class Discrete:
    def noise_scaling(self, sigma, noise, latent, max_denoise=False):
        return latent + noise * sigma


comfy = module("comfy")
comfy.model_sampling = module("comfy.model_sampling", CONST=CONST)
comfy.model_patcher = module("comfy.model_patcher")
comfy.utils = module("comfy.utils", model_trange=plain_range)
module("comfy.memory_management")
module("tqdm.auto", tqdm=None, trange=plain_range)
k_diffusion = module("comfy.k_diffusion")
k_diffusion.utils = module(
    "comfy.k_diffusion.utils", append_dims=lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
)
k_diffusion.sa_solver = module("comfy.k_diffusion.sa_solver")
k_diffusion.deis = load("comfy.k_diffusion.deis", COMFY / "k_diffusion/deis.py")
sampling = load("comfy.k_diffusion.sampling", COMFY / "k_diffusion/sampling.py")
uni_pc = load("uni_pc", COMFY / "extra_samplers/uni_pc.py")
sampling.trange = uni_pc.trange = plain_range


class Model:
    class inner_model:
        class inner_model:
            model_sampling = Discrete()

        class model_patcher:
            @staticmethod
            def get_model_object(_):
                return Discrete()

    def __call__(self, x, sigma, **_):
        sigma = sigma.view(-1, *([1] * (x.ndim - 1)))
        return torch.tanh(x / (1 + sigma)) * 0.8 + x / (1 + sigma * sigma) * 0.3


def rounded(values):
    return [float(f"{value:.10g}") for value in values]


x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(7)).double() * 14.6
noises = torch.randn(16, 2, 1, 4, 4, generator=torch.Generator().manual_seed(8)).double()
schedules = {
    "full": [14.614642, 7.5, 4.1, 2.3, 1.3, 0.7, 0.3, 0.0291675, 0.0],
    "leftover": [14.614642, 7.5, 4.1, 2.3, 1.3],
    "partial": [2.3, 1.3, 0.7, 0.3, 0.0],
    "two": [14.614642, 1.0, 0.0],
    "one": [14.614642, 0.0],
}
deterministic = ["euler", "heun", "dpm_2", "lms", "dpmpp_2m", "ipndm", "deis"]
stochastic = ["euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"]
stochastic += ["dpmpp_2m_sde", "dpmpp_3m_sde", "ddpm", "lcm"]
samplers = {}
# uni_pc makes tensors of its own, of the default type.
torch.set_default_dtype(torch.float64)
for schedule, levels in schedules.items():
    for name in deterministic + stochastic + ["unipc", "unipc_bh2"]:
        if name.startswith("unipc") and schedule == "one":
            continue  # takes no step there
        draws = []

        def noise(*_):
            draws.append(noises[len(draws)])
            return draws[-1]

        more = {"noise_sampler": noise} if name in stochastic else {}
        source = uni_pc if name.startswith("unipc") else sampling
        function = getattr(source, f"sample_{name}")
        sigmas = torch.tensor(levels, dtype=torch.float64)
        end = function(Model(), x.clone(), sigmas, extra_args={}, disable=True, **more)
        key = f"{name.replace('unipc', 'uni_pc')}.{schedule}"
        samplers[key] = {"draws": len(draws), "x": rounded(end.flatten().tolist())}

torch.set_default_dtype(torch.float32)
brownian = {}
for seed in (0, 42, 2**40 + 5):
    low, high = torch.tensor(0.0291675), torch.tensor(14.614642)
    latents = torch.zeros(1, 4, 4, 4)
    tree = sampling.BrownianTreeNoiseSampler(latents, low, high, seed=seed, cpu=True)
    queries = [(14.614642, 7.5), (14.614642, 9.25), (7.5, 4.1), (0.3, 0.0291675)]
    queries += [(4.1, 4.0999), (14.614642, 0.0291675)]
    brownian[str(seed)] = [
        {
            "sigma": a,
            "next": b,
            "values": tree(torch.tensor(a), torch.tensor(b)).flatten().tolist()[:20],
        }
        for a, b in queries
    ]

# samplers.py imports all of ComfyUI; its schedulers need none of it.
text = (COMFY / "samplers.py").read_text()
scope = dict(math=math, torch=torch, numpy=numpy, scipy=scipy)
for name in ["simple", "ddim", "normal", "beta", "linear_quadratic", "kl_optimal"]:
    start = text.index(f"def {name}_schedule")
    ends = [text.find(mark, start) for mark in ("\ndef ", "\nclass ", "\n#")]
    exec(text[start : min(end for end in ends if end > 0)], scope)

betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
alphas_cumprod = torch.cumprod(1 - betas, 0)


class StableDiffusion:
    sigmas = (((1 - alphas_cumprod) / alphas_cumprod) ** 0.5).float()
    log_sigmas = sigmas.log()
    sigma_min, sigma_max = sigmas[0], sigmas[-1]

    def timestep(self, sigma):
        return (sigma.log() - self.log_sigmas[:, None]).abs().argmin(dim=0).view(sigma.shape)

    def sigma(self, timestep):
        t = torch.clamp(timestep.float(), min=0, max=999)
        low, high, part = t.floor().long(), t.ceil().long(), t.frac()
        return ((1 - part) * self.log_sigmas[low] + part * self.log_sigmas[high]).exp()


model = StableDiffusion()
ends = (float(model.sigma_min), float(model.sigma_max))
sigmas = {}
for steps in (1, 2, 3, 7, 20, 31):
    made = {
        "simple": scope["simple_scheduler"](model, steps),
        "sgm_uniform": scope["normal_scheduler"](model, steps, sgm=True),
        "karras": sampling.get_sigmas_karras(steps, *ends),
        "exponential": sampling.get_sigmas_exponential(steps, *ends),
        "ddim_uniform": scope["ddim_scheduler"](model, steps),
        "beta": scope["beta_scheduler"](model, steps),
        "normal": scope["normal_scheduler"](model, steps),
        "linear_quadratic": scope["linear_quadratic_schedule"](model, steps),
    }
    if steps > 1:  # divides by steps - 1
        made["kl_optimal"] = scope["kl_optimal_scheduler"](steps, *ends)
    sigmas |= {f"{name}.{steps}": rounded(values.tolist()) for name, values in made.items()}

result = {
    "x": x.flatten().tolist(),
    "noises": noises.flatten(1).tolist(),
    "schedules": schedules,
    "samplers": samplers,
    "brownian": brownian,
    "sigmas": sigmas,
}
Path(__file__).with_name("samplers.json").write_text(json.dumps(result) + "\n")
