"""Writes sampler_settings.json: samplers with settings of their own, for the denoiser, the start and the noises of
samplers.json.

    python make_sampler_settings.py      (numpy, torch, k-diffusion 0.1.1)

Those of k-diffusion are its own code's, in f64. SA-Solver, ER-SDE and the other form of Euler's CFG++ are written out
here from their papers' equations, integrals by quadrature.
"""
import json
from pathlib import Path

import numpy
import torch
from k_diffusion import sampling

known = json.loads(Path(__file__).with_name("samplers.json").read_text())
shape = (2, 1, 4, 4)
start = numpy.array(known["x"]).reshape(shape)
noises = [numpy.array(noise).reshape(shape) for noise in known["noises"]]
schedules = known["schedules"]


def model(x, sigma):
    return numpy.tanh(x / (1 + sigma)) * 0.8 + x / (1 + sigma * sigma) * 0.3


def unconditional(x, sigma):
    return numpy.tanh(x / (1 + sigma)) * 0.5 + x / (1 + sigma * sigma) * 0.2 + 0.1


def torch_model(x, sigma, **_):
    sigma = sigma.reshape(-1, 1, 1, 1)
    return torch.tanh(x / (1 + sigma)) * 0.8 + x / (1 + sigma * sigma) * 0.3


def k_diffusion(name, levels, noise, **settings):
    sigmas = torch.tensor(levels, dtype=torch.float64)
    x = torch.tensor(start, dtype=torch.float64)

    def noise_sampler(*_):
        return torch.tensor(noise(), dtype=torch.float64)

    if name != "lms":
        settings["noise_sampler"] = noise_sampler
    if name == "dpm_adaptive":
        low = levels[-1] if levels[-1] > 0 else levels[-2]
        end = sampling.sample_dpm_adaptive(torch_model, x, low, levels[0], disable=True, **settings)
    else:
        run = getattr(sampling, f"sample_{name}")
        end = run(torch_model, x, sigmas, disable=True, **settings)
    return numpy.array(end)


def lagrange(nodes, j, at):
    value = numpy.ones_like(at)
    for k, node in enumerate(nodes):
        if k != j:
            value = value * (at - node) / (nodes[j] - node)
    return value


points, weights = numpy.polynomial.legendre.leggauss(60)


def integral(function, a, b):
    at = (a + b) / 2 + (b - a) / 2 * points
    return (b - a) / 2 * (weights * function(at)).sum()


def sa_solver(levels, noise, eta, begin, end, predictor, corrector, pece, simple, s_noise):
    """Equations 14 and 17 of arXiv 2309.05019, and appendix D for `simple`."""
    x, predicted, said, way = start, start, [], None
    to_zero = levels[-1] == 0

    def step(x, way, places, values):
        i, tau, drawn = way
        here, there = -numpy.log(levels[i]), -numpy.log(levels[i + 1])
        grown = 1 + tau * tau
        x = levels[i + 1] / levels[i] * numpy.exp(-tau * tau * (there - here)) * x + drawn
        nodes = [-numpy.log(levels[place]) for place in places]
        shares = [
            integral(lambda u: grown * numpy.exp(grown * (u - there)) * lagrange(nodes, j, u), here, there)
            for j in range(len(nodes))
        ]
        if simple and len(nodes) == 2:
            whole = -numpy.expm1(-grown * (there - here))
            if places[-1] > i:
                shares = [whole - grown * (there - here) / 2, grown * (there - here) / 2]
            else:
                first = grown * (there - here) ** 2 / 2 / (nodes[0] - nodes[1])
                shares = [first, whole - first]
        return x + sum(share * value for share, value in zip(shares, values))

    for i in range(len(levels) - 1):
        said.append(model(predicted, levels[i]))
        left = len(levels) - 1 - i
        order = min(corrector, len(said), max(predictor, corrector))
        order = min(order, left) if to_zero else order
        if way is None or (levels[i + 1] == 0 and not pece):
            order = 0
        x = predicted
        if order:
            x = step(way[0], way[1], range(i + 1 - order, i + 1), said[-order:])
            if pece:
                said[-1] = model(x, levels[i])
        if levels[i + 1] == 0:
            return said[-1]
        tau = eta if end <= levels[i + 1] <= begin else 0
        variance = 1 - (levels[i + 1] / levels[i]) ** (2 * tau * tau)
        drawn = noise() * s_noise * levels[i + 1] * variance**0.5 if tau else 0
        order = min(predictor, len(said), left - 1) if to_zero else min(predictor, len(said))
        way = (x, (i, tau, drawn))
        predicted = step(*way, range(i + 1 - order, i + 1), said[-order:])
    return predicted


def er_sde(levels, noise, scale, stages, s_noise):
    """Equations 20 to 22 of arXiv 2309.06169; the integrals by the left rule of 200 points, as its authors take them."""
    x, last, slope = start, None, None
    for i, (sigma, following) in enumerate(zip(levels, levels[1:])):
        x0 = model(x, sigma)
        if following == 0:
            return x0
        kept = scale(following) / scale(sigma)
        x = kept * x + (1 - kept) * x0
        own = None
        if last is not None and stages > 1:
            dt = following - sigma
            at = following + numpy.arange(200) * (-dt / 200)
            own = (x0 - last) / (sigma - levels[i - 1])
            x = x + (dt + (1 / scale(at)).sum() * (-dt / 200) * scale(following)) * own
            if slope is not None and stages > 2:
                moment = ((at - sigma) / scale(at)).sum() * (-dt / 200)
                bend = (own - slope) / ((sigma - levels[i - 2]) / 2)
                x = x + (dt * dt / 2 + moment * scale(following)) * bend
        last, slope = x0, own
        variance = following**2 - (sigma * kept) ** 2
        if s_noise and variance > 0:
            x = x + variance**0.5 * s_noise * noise()
    return x


def euler_pp(levels, noise):
    x = start
    for sigma, following in zip(levels, levels[1:]):
        x0 = model(x, sigma)
        x = x + (x - 2 * x0 + unconditional(x, sigma)) / sigma * (following - sigma)
    return x


def fast(sigma):
    return sigma * (numpy.exp(sigma**0.3) + 10)


kd = k_diffusion
cases = {
    "euler_ancestral": ("full", lambda s, n: kd("euler_ancestral", s, n, eta=0.5, s_noise=0.8)),
    "dpmpp_2s_ancestral": ("full", lambda s, n: kd("dpmpp_2s_ancestral", s, n, eta=0.5, s_noise=1.2)),
    "dpmpp_sde": ("full", lambda s, n: kd("dpmpp_sde", s, n, eta=0.7, s_noise=1.1, r=0.3)),
    "dpmpp_2m_sde": ("full", lambda s, n: kd("dpmpp_2m_sde", s, n, eta=0.4, s_noise=0.9)),
    "dpmpp_2m_sde_heun": (
        "full",
        lambda s, n: kd("dpmpp_2m_sde", s, n, eta=0.4, s_noise=0.9, solver_type="heun"),
    ),
    "dpmpp_3m_sde": ("full", lambda s, n: kd("dpmpp_3m_sde", s, n, eta=0.6, s_noise=1.1)),
    "lms 2": ("leftover", lambda s, n: kd("lms", s, n, order=2)),
    "lms 6": ("long", lambda s, n: kd("lms", s, n, order=6)),
    "dpm_adaptive 2": ("full", lambda s, n: kd("dpm_adaptive", s, n, order=2, rtol=0.3, h_init=0.2)),
    "dpm_adaptive pid": (
        "full",
        lambda s, n: kd("dpm_adaptive", s, n, pcoeff=0.2, icoeff=0.7, dcoeff=0.1, accept_safety=0.9),
    ),
    "dpm_adaptive noise": (
        "full",
        lambda s, n: kd("dpm_adaptive", s, n, rtol=0.3, atol=0.2, eta=0.5, s_noise=0.9),
    ),
    "er_sde 1": ("full", lambda s, n: er_sde(s, n, fast, 1, 0.9)),
    "er_sde 2": ("full", lambda s, n: er_sde(s, n, lambda x: x**1.5, 2, 1.1)),
    "er_sde ode": ("full", lambda s, n: er_sde(s, n, lambda x: x, 3, 0)),
    "sa_solver": ("full", lambda s, n: sa_solver(s, n, 0.6, 5.0, 0.5, 2, 3, False, False, 0.9)),
    "sa_solver simple": ("full", lambda s, n: sa_solver(s, n, 0.6, 5.0, 0.5, 2, 2, False, True, 1)),
    "sa_solver 5": ("full", lambda s, n: sa_solver(s, n, 1.0, 9.0, 0.2, 5, 6, True, False, 1)),
    "sa_solver alone": ("full", lambda s, n: sa_solver(s, n, 0.6, 5.0, 0.5, 3, 0, False, False, 1)),
    "euler_pp": ("full", lambda s, n: euler_pp(s, n)),
}
schedules["long"] = schedules["full"][:-1]
result = {}
for name, (schedule, run) in cases.items():
    draws = iter(noises)
    end = run(schedules[schedule], lambda: next(draws))
    result[name] = [float(f"{value:.10g}") for value in end.flatten()]
Path(__file__).with_name("sampler_settings.json").write_text(json.dumps(result) + "\n")
