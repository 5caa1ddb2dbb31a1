"""Denoising loops in f64 for what diffusers has no scheduler for, around its own UNet.

They work in σ-space: x = x₀ + σ ε, and the UNet sees x / √(σ² + 1). Levels and fractional
timesteps are those of EulerDiscreteScheduler.
"""

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from diffusers.utils.torch_utils import randn_tensor

from samplers import scheduler


class Denoiser:
    """(x, σ, t) → ε in f64, with the prompt's guidance; the UNet itself runs in f32."""

    def __init__(self, pipe, case, embeddings):
        self.pipe, self.guidance = pipe, case["guidance_scale"]
        self.guided = self.guidance > 1
        self.rescale = case.get("guidance_rescale", 0.0)
        self.part = case.get("guidance_start", 0.0), case.get("guidance_end", 1.0)
        self.text, self.added = embeddings
        self.is_clamped = pipe.scheduler.config.get("rescale_betas_zero_snr", False)
        self.prediction = pipe.scheduler.config.prediction_type

    def output(self, x, sigma, t):
        """What the UNet gives, ε or v."""
        seen = x / (sigma**2 + 1) ** 0.5
        rows = 2 if self.guided else 1
        # The prompt is the last of what the network is told.
        told = {key: value[-rows:] for key, value in self.added.items()}
        batch = torch.cat([seen] * rows).float()
        output = self.pipe.unet(batch, t, self.text[-rows:], added_cond_kwargs=told).sample.double()
        if self.guided:
            without, with_prompt = output.chunk(2)
            output = without + self.guidance * (with_prompt - without)
            if self.rescale > 0:
                output = rescale_noise_cfg(output, with_prompt, self.rescale)
        return output

    def begin_step(self, number, count):
        """Says that step `number` of `count` begins: whether it is guided."""
        start, end = self.part
        self.guided = self.guidance > 1 and start <= number / count < end

    def epsilon(self, output, x, sigma):
        """ε of an output for the sample x."""
        if self.prediction == "v_prediction":
            seen = x / (sigma**2 + 1) ** 0.5
            return (output + sigma * seen) / (sigma**2 + 1) ** 0.5
        return output

    def __call__(self, x, sigma, t):
        return self.epsilon(self.output(x, sigma, t), x, sigma)


def euler(denoise, x, levels, _generator):
    """Deterministic DDIM, arXiv:2010.02502 eq. 12 with η = 0, in σ-space."""
    for number, (t, sigma, following) in enumerate(levels):
        denoise.begin_step(number, len(levels))
        x = x + (following - sigma) * denoise(x, sigma, t)
    return x


def euler_ancestral(denoise, x, levels, generator):
    """EulerAncestralDiscreteScheduler's step; noise is drawn at every step, the last included."""
    for number, (t, sigma, following) in enumerate(levels):
        denoise.begin_step(number, len(levels))
        up = following * (max(sigma**2 - following**2, 0) ** 0.5) / sigma
        down = (following**2 - up**2) ** 0.5
        x = x + (down - sigma) * denoise(x, sigma, t)
        x = x + up * torch.randn(x.shape, generator=generator).double()
    return x


def plms(denoise, x, levels, _generator):
    """PNDMScheduler.step_plms: outputs are combined as they are, and turned into ε at the sample.

    The first step is done twice, then up to four terms are used.
    """
    (t, sigma, following), rest = levels[0], levels[1:]
    history = [denoise.output(x, sigma, t)]
    ahead = x + (following - sigma) * denoise.epsilon(history[0], x, sigma)
    if not rest:
        return ahead
    mean = (history[0] + denoise.output(ahead, following, rest[0][0])) / 2
    x = x + (following - sigma) * denoise.epsilon(mean, x, sigma)
    for t, sigma, following in rest:
        history = [*history[-3:], denoise.output(x, sigma, t)]
        x = x + (following - sigma) * denoise.epsilon(combine(history), x, sigma)
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
        denoise.begin_step(index, len(levels))
        slope = denoise(x, sigma, t)
        predicted = x + (following - sigma) * slope
        if not (index == 0 and denoise.is_clamped) and following > 0:
            slope = (slope + denoise(predicted, following, levels[index + 1][0])) / 2
            predicted = x + (following - sigma) * slope
        x = predicted
    return x


LOOPS = {"ddim": euler, "euler": euler, "euler_ancestral": euler_ancestral, "pndm": plms, "heun": heun}


def euler_levels(config, karras, steps):
    """([(timestep, σ, next σ)], init_noise_sigma) of EulerDiscreteScheduler."""
    made = scheduler("euler", config, karras)
    made.set_timesteps(steps)
    sigmas = made.sigmas.double().tolist()
    return list(zip(made.timesteps, sigmas, sigmas[1:])), float(made.init_noise_sigma)


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
