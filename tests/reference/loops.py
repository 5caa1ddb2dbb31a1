"""Denoising loops in f64 for what diffusers has no scheduler for, around its own UNet.

They work in σ-space: x = x₀ + σ ε, and the UNet sees x / √(σ² + 1). Levels and fractional
timesteps are those of EulerDiscreteScheduler.
"""

import torch
from diffusers.utils.torch_utils import randn_tensor

from samplers import scheduler


class Denoiser:
    """(x, σ, t) → ε in f64, with the prompt's guidance; the UNet itself runs in f32."""

    def __init__(self, pipe, case, embeddings):
        self.pipe, self.guidance = pipe, case["guidance_scale"]
        self.guided = self.guidance > 1
        self.text, self.added = embeddings
        self.prediction = pipe.scheduler.config.prediction_type

    def __call__(self, x, sigma, t):
        seen = x / (sigma**2 + 1) ** 0.5
        batch = torch.cat([seen, seen] if self.guided else [seen]).float()
        output = self.pipe.unet(batch, t, self.text, added_cond_kwargs=self.added).sample.double()
        if self.guided:
            without, with_prompt = output.chunk(2)
            output = without + self.guidance * (with_prompt - without)
        if self.prediction == "v_prediction":
            return (output + sigma * seen) / (sigma**2 + 1) ** 0.5
        return output


def euler(denoise, x, levels, _generator):
    """Deterministic DDIM, arXiv:2010.02502 eq. 12 with η = 0, in σ-space."""
    for t, sigma, following in levels:
        x = x + (following - sigma) * denoise(x, sigma, t)
    return x


def euler_ancestral(denoise, x, levels, generator):
    """EulerAncestralDiscreteScheduler's step; noise is drawn at every step, the last included."""
    for t, sigma, following in levels:
        up = following * (max(sigma**2 - following**2, 0) ** 0.5) / sigma
        down = (following**2 - up**2) ** 0.5
        x = x + (down - sigma) * denoise(x, sigma, t)
        x = x + up * torch.randn(x.shape, generator=generator).double()
    return x


def plms(denoise, x, levels, _generator):
    """PNDMScheduler.step_plms on ε: the first step is done twice, then up to four terms are used."""
    (t, sigma, following), rest = levels[0], levels[1:]
    history = [denoise(x, sigma, t)]
    if not rest:
        return x + (following - sigma) * history[0]
    ahead = denoise(x + (following - sigma) * history[0], following, rest[0][0])
    x = x + (following - sigma) * (history[0] + ahead) / 2
    for t, sigma, following in rest:
        history = [*history[-3:], denoise(x, sigma, t)]
        x = x + (following - sigma) * combine(history)
    return x


def combine(e):
    """Adams–Bashforth of as many terms as there are, arXiv:2202.09778 eq. 12."""
    if len(e) == 2:
        return (3 * e[-1] - e[-2]) / 2
    if len(e) == 3:
        return (23 * e[-1] - 16 * e[-2] + 5 * e[-3]) / 12
    return (55 * e[-1] - 59 * e[-2] + 37 * e[-3] - 9 * e[-4]) / 24


def heun(denoise, x, levels, _generator):
    """HeunDiscreteScheduler's step, but a plain Euler step out of the clamped first level."""
    for index, (t, sigma, following) in enumerate(levels):
        slope = denoise(x, sigma, t)
        predicted = x + (following - sigma) * slope
        if index > 0 and following > 0:
            slope = (slope + denoise(predicted, following, levels[index + 1][0])) / 2
            predicted = x + (following - sigma) * slope
        x = predicted
    return x


LOOPS = {"ddim": euler, "euler_ancestral": euler_ancestral, "pndm": plms, "heun": heun}


def euler_levels(config, karras, steps):
    """([(timestep, σ, next σ)], init_noise_sigma) of EulerDiscreteScheduler."""
    made = scheduler("euler", config, karras)
    made.set_timesteps(steps)
    sigmas = made.sigmas.double().tolist()
    return list(zip(made.timesteps, sigmas, sigmas[1:])), float(made.init_noise_sigma)


def pndm_levels(config, steps):
    """PNDMScheduler's own levels, which know no zero SNR, in the same form."""
    made = scheduler("pndm", config)
    made.set_timesteps(steps)
    alphas, found = made.alphas_cumprod.double(), []
    for t in made.timesteps[:1].tolist() + made.timesteps[2:].tolist():
        previous = t - made.config.num_train_timesteps // steps
        pair = alphas[t], alphas[previous] if previous >= 0 else made.final_alpha_cumprod.double()
        found.append((torch.tensor(float(t)), *(float(((1 - a) / a) ** 0.5) for a in pair)))
    return found, (found[0][1] ** 2 + 1) ** 0.5


def has_loop(name, config, karras):
    """Whether a case is drawn by a loop of this file rather than by diffusers' scheduler."""
    if karras and name in ("ddim", "euler_ancestral", "pndm"):
        return True
    return name == "heun" and config.get("rescale_betas_zero_snr", False)


@torch.no_grad()
def draw(pipe, case, embeddings, levels, init_noise_sigma):
    """The final latents, f32."""
    generator = torch.Generator("cpu").manual_seed(case["seed"])
    factor = pipe.vae_scale_factor
    shape = (1, pipe.unet.config.in_channels, case["height"] // factor, case["width"] // factor)
    noise = randn_tensor(shape, generator=generator, dtype=torch.float32).double()
    loop = LOOPS[case["sampler"]]
    return loop(Denoiser(pipe, case, embeddings), noise * init_noise_sigma, levels, generator).float()
