"""Samplers that diffusers has no class for, by k-diffusion's formulas in f64: `dpmpp_2s_ancestral`, `dpmpp_sde` and
`dpmpp_3m_sde`.

They work in σ-space, x = x₀ + σ ε, on the levels of a scheduler of diffusers. Where k-diffusion draws noise from a Brownian
path these draw a fresh normal for each (part of a) step, in order: an increment of the path, divided by its deviation, has the
same distribution.
"""

import math

import numpy as np
import torch


class Denoiser:
    """(x, σ, t) → x₀ in f64, of a network that sees x / √(σ² + 1)."""

    def __init__(self, network, prediction, training_sigmas):
        self.network, self.prediction = network, prediction
        self.logarithms = np.log(np.asarray(training_sigmas, dtype=np.float64))

    def __call__(self, x, sigma, t=None):
        t = self.timestep(sigma) if t is None else t
        signal = 1 / math.sqrt(sigma**2 + 1)
        output = self.network(x * signal, t)
        if self.prediction == "epsilon":
            return x - sigma * output
        if self.prediction == "v_prediction":
            return x * signal**2 - output * sigma * signal
        return output

    def timestep(self, sigma):
        """Where σ lies among those of training, linearly in its logarithm."""
        return float(np.interp(math.log(sigma), self.logarithms, np.arange(len(self.logarithms))))


def ancestral(sigma, following):
    """(σ to go down to, deviation of the noise that leads up to `following` again)."""
    up = min(following, following * math.sqrt(max(sigma**2 - following**2, 0)) / sigma)
    return math.sqrt(following**2 - up**2), up


def towards(x, denoised, sigma, following):
    """The ODE's exact step while x₀ stays."""
    return following / sigma * x + (1 - following / sigma) * denoised


def dpmpp_2s_ancestral(denoise, x, levels, normals):
    for t, sigma, following in levels:
        denoised = denoise(x, sigma, t)
        down, up = ancestral(sigma, following)
        if down > 0:
            middle = math.sqrt(sigma * down)
            denoised = denoise(towards(x, denoised, sigma, middle), middle)
        x = towards(x, denoised, sigma, down)
        if following > 0:
            x = x + normals() * up
    return x


def dpmpp_sde(denoise, x, levels, normals):
    for t, sigma, following in levels:
        denoised = denoise(x, sigma, t)
        if following == 0:
            x = denoised
            continue
        middle = math.sqrt(sigma * following)
        down, up = ancestral(sigma, middle)
        halfway = towards(x, denoised, sigma, down) + normals() * up
        denoised = denoise(halfway, middle)
        down, up = ancestral(sigma, following)
        x = towards(x, denoised, sigma, down) + normals() * up
    return x


def dpmpp_3m_sde(denoise, x, levels, normals):
    known = []
    for t, sigma, following in levels:
        known.insert(0, (denoise(x, sigma, t), sigma))
        if following == 0:
            x = known[0][0]
            continue
        h = math.log(sigma / following)
        left = -math.expm1(-2 * h)
        start = x
        x = math.exp(-2 * h) * start + left * known[0][0]
        phi_2 = 1 - left / (2 * h)
        phi_3 = phi_2 / (2 * h) - 0.5
        if len(known) > 2:
            (newest, at), (before, at_before), (oldest, at_oldest) = known[:3]
            first, second = math.log(at_before / at) / h, math.log(at_oldest / at_before) / h
            late, early = (newest - before) / first, (before - oldest) / second
            slope = late + (late - early) * first / (first + second)
            x = x + phi_2 * slope - phi_3 * (late - early) / (first + second)
        elif len(known) > 1:
            (newest, at), (before, at_before) = known
            x = x + phi_2 * (newest - before) * h / math.log(at_before / at)
        x = x + normals() * following * math.sqrt(left)
    return x


LOOPS = {"dpmpp_2s_ancestral": dpmpp_2s_ancestral, "dpmpp_sde": dpmpp_sde, "dpmpp_3m_sde": dpmpp_3m_sde}
# Whose levels each is drawn on here.
LEVELS = {"dpmpp_2s_ancestral": "euler", "dpmpp_sde": "dpmpp_sde", "dpmpp_3m_sde": "dpmpp_2m"}


def levels(made):
    """[(timestep, σ, next σ)], without second looks."""
    sigmas, timesteps = made.sigmas.double().tolist(), made.timesteps.tolist()
    if made.order == 2:
        sigmas, timesteps = [sigmas[0], *sigmas[1:-1:2], sigmas[-1]], [timesteps[0], *timesteps[2::2]]
    return list(zip(timesteps, sigmas, sigmas[1:]))


def draw(name, made, x, network):
    """The latents that unit noise x ends as."""
    generator = torch.Generator("cpu").manual_seed(0)
    alphas = made.alphas_cumprod.double()
    denoise = Denoiser(network, made.config.prediction_type, ((1 - alphas) / alphas).sqrt().tolist())
    steps = levels(made)
    # Schedulers of DPM-Solver's kind keep latents at total variance 1.
    initial = float(made.init_noise_sigma) * (math.hypot(steps[0][1], 1) if name == "dpmpp_3m_sde" else 1)
    normals = lambda: torch.randn(x.shape, generator=generator).double()
    return LOOPS[name](denoise, x.double() * initial, steps, normals)
