"""Writes samplers.json: what ComfyUI's samplers and schedules compute for a closed-form denoiser.

    python make_samplers.py COMFYUI_FOLDER      (torch, torchsde, scipy)

Made with ComfyUI of October 2025, but dpmpp_2s_ancestral_cfg_pp and what sa_solver returns above sigma 0 as
they are in 2026.

Only the mathematics of ComfyUI is run: k_diffusion/sampling.py, deis.py and sa_solver.py,
extra_samplers/uni_pc.py and the schedulers of samplers.py, in f64, with recorded noises in the place of drawn
ones; and, in f32 as there, whether a range of the schedule holds at a step whose level it begins or ends on.
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

    def percent_to_sigma(self, percent):
        return StableDiffusion().percent_to_sigma(percent)


class Bar:
    """The progress bar, without a bar."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, *_):
        pass


def with_post_cfg(options, function, disable_cfg1_optimization=False):
    return {**options, "post_cfg": function}


comfy = module("comfy")
comfy.model_sampling = module("comfy.model_sampling", CONST=CONST)
comfy.model_patcher = module(
    "comfy.model_patcher", set_model_options_post_cfg_function=with_post_cfg
)
comfy.utils = module("comfy.utils", model_trange=plain_range)
module("comfy.memory_management")
module("tqdm.auto", tqdm=Bar, trange=plain_range)
k_diffusion = module("comfy.k_diffusion")
k_diffusion.utils = module(
    "comfy.k_diffusion.utils", append_dims=lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
)
k_diffusion.sa_solver = load("comfy.k_diffusion.sa_solver", COMFY / "k_diffusion/sa_solver.py")
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

    def __call__(self, x, sigma, model_options={}, **_):
        sigma = sigma.view(-1, *([1] * (x.ndim - 1)))
        denoised = torch.tanh(x / (1 + sigma)) * 0.8 + x / (1 + sigma * sigma) * 0.3
        if "post_cfg" in model_options:
            uncond = torch.tanh(x / (1 + sigma)) * 0.5 + x / (1 + sigma * sigma) * 0.2 + 0.1
            model_options["post_cfg"]({"denoised": denoised, "uncond_denoised": uncond})
        return denoised


def rounded(values):
    return [float(f"{value:.10g}") for value in values]


x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(7)).double() * 14.6
noises = torch.randn(24, 2, 1, 4, 4, generator=torch.Generator().manual_seed(8)).double()
schedules = {
    "full": [14.614642, 7.5, 4.1, 2.3, 1.3, 0.7, 0.3, 0.0291675, 0.0],
    "leftover": [14.614642, 7.5, 4.1, 2.3, 1.3],
    "partial": [2.3, 1.3, 0.7, 0.3, 0.0],
    "two": [14.614642, 1.0, 0.0],
    "one": [14.614642, 0.0],
}
deterministic = ["euler", "heun", "dpm_2", "lms", "dpmpp_2m", "ipndm", "deis", "heunpp2", "ipndm_v"]
deterministic += ["dpm_fast", "dpm_adaptive", "res_multistep", "gradient_estimation", "euler_cfg_pp"]
deterministic += ["dpmpp_2m_cfg_pp", "res_multistep_cfg_pp", "gradient_estimation_cfg_pp"]
stochastic = ["euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde"]
stochastic += ["dpmpp_2m_sde", "dpmpp_3m_sde", "ddpm", "lcm", "dpmpp_2m_sde_heun"]
stochastic += ["euler_ancestral_cfg_pp", "dpmpp_2s_ancestral_cfg_pp", "res_multistep_ancestral"]
stochastic += ["res_multistep_ancestral_cfg_pp", "er_sde", "seeds_2", "seeds_3", "sa_solver"]
stochastic += ["sa_solver_pece"]


def by_name(name):
    """The sampler as ComfyUI's `ksampler` calls it."""
    if name.startswith("unipc"):
        return getattr(uni_pc, f"sample_{name}")
    function = getattr(sampling, f"sample_{name}")
    if name not in ("dpm_fast", "dpm_adaptive"):
        return function

    def between(model, x, sigmas, **more):
        low = sigmas[-1] if sigmas[-1] > 0 else sigmas[-2]
        count = [len(sigmas) - 1] if name == "dpm_fast" else []
        return function(model, x, low, sigmas[0], *count, **more)

    return between


betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
alphas_cumprod = torch.cumprod(1 - betas, 0)


class StableDiffusion:
    sigmas = (((1 - alphas_cumprod) / alphas_cumprod) ** 0.5).float()
    log_sigmas = (((1 - alphas_cumprod) / alphas_cumprod) ** 0.5).log().float()
    sigma_min, sigma_max = sigmas[0], sigmas[-1]

    def timestep(self, sigma):
        return (sigma.log() - self.log_sigmas[:, None]).abs().argmin(dim=0).view(sigma.shape)

    def sigma(self, timestep):
        t = torch.clamp(timestep.float(), min=0, max=999)
        low, high, part = t.floor().long(), t.ceil().long(), t.frac()
        return ((1 - part) * self.log_sigmas[low] + part * self.log_sigmas[high]).exp()

    def percent_to_sigma(self, percent):
        if percent <= 0:
            return 999999999.9
        return self.sigma(torch.tensor((1 - percent) * 999)).item() if percent < 1 else 0.0


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
        sigmas = torch.tensor(levels, dtype=torch.float64)
        end = by_name(name)(Model(), x.clone(), sigmas, extra_args={}, disable=True, **more)
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

# Where a percent is the level of a step, all but to the bit: steps, the step, the percent, and whether the
# level is above (1), the same (0) or below (-1).
ranges = []
for steps in range(2, 61):
    levels = scope["normal_scheduler"](model, steps)[:-1].tolist()
    for percent in [i / 200 for i in range(1, 200)]:
        i = round(percent * (steps - 1))
        boundary = model.percent_to_sigma(percent)
        if abs(levels[i] / boundary - 1) < 1e-5:
            above = (levels[i] > boundary) - (levels[i] < boundary)
            ranges.append([steps, i, percent, above])

result = {
    "x": x.flatten().tolist(),
    "noises": noises.flatten(1).tolist(),
    "schedules": schedules,
    "samplers": samplers,
    "brownian": brownian,
    "sigmas": sigmas,
    "ranges": ranges,
}
Path(__file__).with_name("samplers.json").write_text(json.dumps(result) + "\n")
