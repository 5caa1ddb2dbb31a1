"""The denoiser's stage, and drawing on the way to see how it goes."""

import random
import time

import numpy as np
import torch
import torch.nn.functional as F

import export
import nets
from autoencoder import latent_table, trained_vae
from catalogue import COLOURS, STYLES
from language import encode, trained_text_encoder, wordings
from workshop import Run, sheet

PREVIEW_SECONDS = 300


def train_denoiser(shop):
    """The denoiser, v-prediction from the table of latents and random wordings.

    Half of the noise levels drawn are in the upper quarter: there the text alone decides the
    picture, and that is what takes long to learn.
    """
    vae, encoder = trained_vae(shop), trained_text_encoder(shop)
    table = latent_table(shop, vae)
    unet = shop.unet()
    batch, rate = (32, 1e-3) if shop.device == "cpu" else (256, 1e-3)
    run = Run(shop, "denoiser", [unet], rate=rate, warmup=100)
    rng, words = np.random.default_rng(run.step), random.Random(run.step)
    signal, noise_level = nets.alphas(shop.device)
    looked = time.monotonic()
    while run.on():
        view, _, which, ground = (rng.integers(n, size=batch) for n in table.shape[:4])
        style = rng.choice(len(STYLES), size=batch, p=shop.style_shares)
        captions = wordings(shop, words, style, which, ground)
        captions = ["" if words.random() < 0.1 else caption for caption in captions]
        states = encode(shop, encoder, captions)
        clean = table[view, style, which, ground].contiguous(memory_format=torch.channels_last)
        noise = torch.randn_like(clean)
        times = torch.from_numpy((1000 * (1 - rng.random(batch) ** 2)).clip(0, 999).astype(np.int64))
        times = times.to(shop.device)
        a, s = signal[times].view(-1, 1, 1, 1), noise_level[times].view(-1, 1, 1, 1)
        with shop.autocast():
            guess = unet(a * clean + s * noise, times, states).sample
        run.descend(F.mse_loss(guess.float(), a * noise - s * clean))
        if time.monotonic() - looked > PREVIEW_SECONDS:
            looked = time.monotonic()
            with run.averaged():
                images = draw(shop, unet, vae, encoder, preview_captions(shop))
            sheet(images, 10).save(shop.runs / f"denoiser-{run.spent / 60:03.0f}.png")
    run.save()
    run.settle()


def draw(shop, unet, vae, encoder, captions, steps=export.DEFAULT_STEPS, guidance=export.DEFAULT_GUIDANCE):
    """Pictures in -1..1 for captions, as the pipeline would draw them."""
    scheduler = nets.scheduler()
    scheduler.set_timesteps(steps)
    states = encode(shop, encoder, [""] * len(captions) + captions)
    shape = (len(captions), nets.LATENT_CHANNELS, nets.SAMPLE_SIZE, nets.SAMPLE_SIZE)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(shop.device)
    with torch.no_grad():
        for step in scheduler.timesteps:
            without, asked = unet(torch.cat([latents, latents]), step, states).sample.chunk(2)
            guided = without + guidance * (asked - without)
            latents = scheduler.step(guided, step, latents).prev_sample
        parts = (latents / vae.config.scaling_factor).split(8)
        return torch.cat([vae.decode(part).sample for part in parts])


def preview_captions(shop, count=40):
    names, styles = list(COLOURS), [words[0] for words in STYLES.values()]
    return [
        f"a {shop.things[i * len(shop.things) // count].name}, {styles[i % len(styles)]}, "
        f"on a {names[i * 5 % len(names)]} background"
        for i in range(count)
    ]
