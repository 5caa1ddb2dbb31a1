"""The decoder's stage: it learns to finish what the denoiser leaves."""

import random

import numpy as np
import torch

import data
import nets
from autoencoder import decibels, latent_table, picture_loss, trained_vae
from language import encode, trained_text_encoder, wordings
from workshop import Run, settled

# Below this noise level (of 1000) the denoiser's guess resembles what its last steps give.
GUESSED_BELOW = 700


def train_decoder(shop):
    """The decoder alone, on whole pictures: from true latents and from the denoiser's guesses."""
    vae, encoder = trained_vae(shop), trained_text_encoder(shop)
    unet = settled(shop, "denoiser", [shop.unet()])[0]
    table = latent_table(shop, vae)
    scale = vae.config.scaling_factor
    parts = [vae.decoder.requires_grad_(), vae.post_quant_conv.requires_grad_()]
    batch, guessed = (4, 3) if shop.device == "cpu" else (64, 48)
    run = Run(shop, "decoder", parts, rate=4e-4, warmup=50)
    rng, words = np.random.default_rng(run.step + 1), random.Random(run.step)
    signal, noise_level = nets.alphas(shop.device)
    while run.on():
        view, style, which, ground = (rng.integers(n, size=batch) for n in table.shape[:4])
        images = data.composite(shop.views[view, style, which], shop.colours[ground])
        latents = table[view, style, which, ground]
        states = encode(shop, encoder, wordings(shop, words, style, which, ground)[:guessed])
        times = torch.from_numpy(rng.integers(GUESSED_BELOW, size=guessed)).to(shop.device)
        a, s = signal[times].view(-1, 1, 1, 1), noise_level[times].view(-1, 1, 1, 1)
        noisy = a * latents[:guessed] + s * torch.randn_like(latents[:guessed])
        with shop.autocast():
            with torch.no_grad():
                guess = a * noisy - s * unet(noisy, times, states).sample.float()
            latents = torch.cat([guess, latents[guessed:]]) / scale
            latents = latents.contiguous(memory_format=torch.channels_last)
            drawn = vae.decode(latents).sample
        run.descend(picture_loss(drawn.float(), images))
    run.save()
    run.settle()
    print(f"decoder: {decibels(shop, vae):.1f} dB", flush=True)
