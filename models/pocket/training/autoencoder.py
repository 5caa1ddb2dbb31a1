"""The autoencoder's stage, and the table of latents that the denoiser learns from."""

import numpy as np
import torch
import torch.nn.functional as F

import data
import nets
from catalogue import COLOURS
from workshop import Run, fingerprint, settled, sheet


def train_vae(shop):
    """The autoencoder, on crops, with a weak pull of its latents towards a unit spread."""
    vae = shop.vae()
    run = Run(shop, "vae", [vae], rate=7e-4)
    begun = run.step
    rng = np.random.default_rng(run.step)

    def reconstruct(images):
        moments = vae.encode(images).latent_dist
        latents = moments.mean + 0.03 * torch.randn_like(moments.mean)
        return vae.decode(latents).sample, moments.mean, moments.logvar

    batch = 8 if shop.device == "cpu" else 64
    while run.on():
        images = crops(shop, rng, batch, 64)
        with shop.autocast():
            drawn, mean, logvar = reconstruct(images)
        pull = mean.float().square().mean() + 0.1 * (logvar.float() + 6).square().mean()
        run.descend(picture_loss(drawn.float(), images) + 1e-3 * pull)
    run.save()
    run.settle()
    if run.step > begun:
        # What was learnt from other latents is of no use to these.
        for stage in ("denoiser", "decoder"):
            (shop.runs / f"{stage}.pt").unlink(missing_ok=True)
    print(f"vae: {decibels(shop, vae):.1f} dB", flush=True)


def trained_vae(shop):
    vae = shop.vae()
    if (shop.runs / "vae.pt").exists():
        vae.register_to_config(scaling_factor=1.0)
    settled(shop, "vae", [vae])
    settled(shop, "decoder", [vae.decoder, vae.post_quant_conv])
    return vae


def latent_table(shop, vae):
    """The latents of every picture, scaled to a spread of one: [view, style, object, colour, c, h, w].

    Sets the autoencoder's scaling factor, unless it is the shipped autoencoder, whose factor the
    shipped denoiser was trained with. The table is kept beside the checkpoints: it takes minutes.
    """
    file = shop.runs / "latents.pt"
    parts = [vae.encoder, vae.quant_conv]
    made_from = fingerprint(parts, [shop.views, shop.colours])
    kept = torch.load(file, map_location=shop.device) if file.exists() else {}
    if kept.get("made_from") != made_from:
        table = []
        with torch.no_grad():
            for picture in shop.views.flatten(0, 2):
                images = data.composite(picture[None], shop.colours)
                images = images.contiguous(memory_format=torch.channels_last)
                table.append(vae.encode(images).latent_dist.mean)
        table = torch.stack(table).unflatten(0, shop.views.shape[:3])
        kept = {"made_from": made_from, "table": table}
        torch.save(kept, file)
    table = kept["table"]
    if vae.config.scaling_factor == 1:
        vae.register_to_config(scaling_factor=round(1 / table.std().item(), 5))
    return table * vae.config.scaling_factor


def crops(shop, rng, batch, size):
    """Random crops of random pictures on colours, on the latents' grid, mirrored half the time."""
    span = (data.IMAGE_SIZE - size) // nets.FACTOR + 1
    pictures = shop.views.flatten(0, 2)
    which = rng.integers(len(pictures), size=batch)
    corner = rng.integers(span, size=(batch, 2)) * nets.FACTOR
    parts = torch.stack(
        [pictures[i, :, y : y + size, x : x + size] for i, (y, x) in zip(which, corner)]
    )
    mirrored = torch.from_numpy(rng.random(batch) < 0.5).to(shop.device)
    parts = torch.where(mirrored[:, None, None, None], parts.flip(-1), parts)
    colour = shop.colours[torch.from_numpy(rng.integers(len(COLOURS), size=batch)).to(shop.device)]
    images = data.composite(parts, colour)
    return images.contiguous(memory_format=torch.channels_last)


def picture_loss(drawn, asked):
    """L1, and L1 on the gradients, which keeps edges."""
    across = (drawn - asked).diff(dim=-1).abs().mean()
    down = (drawn - asked).diff(dim=-2).abs().mean()
    return F.l1_loss(drawn, asked) + across + down


def decibels(shop, vae, count=48):
    """The mean PSNR of whole pictures through the autoencoder."""
    images = crops(shop, np.random.default_rng(1), count, data.IMAGE_SIZE)
    with torch.no_grad():
        drawn = torch.cat([vae.decode(vae.encode(i).latent_dist.mean).sample for i in images.split(8)])
    errors = ((drawn.clamp(-1, 1) - images) / 2).square().mean(dim=(1, 2, 3))
    pair = torch.cat([images[:8], drawn[:8]]).clamp(-1, 1)
    sheet(pair, 8).save(shop.runs / "vae.png")
    return (-10 * errors.log10()).mean().item()
