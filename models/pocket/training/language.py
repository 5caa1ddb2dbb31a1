"""The text encoder's stage: it learns to understand captions before anything is drawn."""

import random

import numpy as np
import torch
import torch.nn.functional as F

import data
import nets
import text
from catalogue import COLOURS, STYLES
from workshop import Run, settled


def train_text(shop):
    """The text encoder, to tell from any wording object, style, colour and roughly the picture.

    All is read off by one linear layer from the positions that have seen the whole caption, the
    end's and the padding's, so that the denoiser's keys and values find it at once.
    """
    encoder = shop.text_encoder()
    rough = rough_pictures(shop)
    sizes = rough.shape[:3]
    parts = [*sizes, rough.shape[-1]]
    head = torch.nn.Linear(nets.TEXT_WIDTH, sum(parts)).to(shop.device)
    run = Run(shop, "text", [encoder, head], rate=1e-3, warmup=100, average=0.99)
    rng, words = np.random.default_rng(run.step), random.Random(run.step)
    end = shop.tokenizer.eos_token_id
    batch, right = 64, 0.0
    while run.on():
        style, which, ground = (rng.integers(n, size=batch) for n in sizes)
        captions = wordings(shop, words, style, which, ground)
        tokens = text.tokenize(shop.tokenizer, captions).to(shop.device)
        whole = tokens == end
        spread = whole.nonzero()[:, 0]
        style, which, ground = (
            torch.from_numpy(numbers).to(shop.device)[spread] for numbers in (style, which, ground)
        )
        *guesses, picture = head(encoder(tokens).last_hidden_state[whole]).split(parts, dim=-1)
        answers = (style, which, ground)
        loss = sum(F.cross_entropy(guess, answer) for guess, answer in zip(guesses, answers))
        run.descend(loss + F.mse_loss(picture, rough[style, which, ground]))
        hits = [guess.argmax(-1) == answer for guess, answer in zip(guesses, answers)]
        right = 0.95 * right + 0.05 * torch.stack(hits).all(0).float().mean().item()
    run.save()
    print(f"text: {right:.1%} of the last captions understood", flush=True)
    file = shop.runs / "text.pt"
    state = torch.load(file, weights_only=True)
    count = len(list(encoder.parameters()))
    torch.save({**state, "means": state["means"][:count]}, shop.runs / "text-encoder.pt")


def rough_pictures(shop, size=16, count=48):
    """Principal components of small pictures, with a spread of one: [style, object, colour, count]."""
    plain = shop.views[0]
    small = torch.stack(
        [F.avg_pool2d(data.composite(p, c), data.IMAGE_SIZE // size).flatten(1)
         for p in plain for c in shop.colours]
    )
    small = small.unflatten(0, (len(STYLES), len(COLOURS))).transpose(1, 2)
    shape, small = small.shape[:3], small.flatten(0, 2)
    _, _, axes = torch.pca_lowrank(small, q=count, niter=4)
    rough = (small - small.mean(0)) @ axes
    return (rough / rough.std(0)).reshape(*shape, count)


def trained_text_encoder(shop):
    return settled(shop, "text-encoder", [shop.text_encoder()])[0]


def wordings(shop, rng, style, which, ground):
    """A random caption for each style, object and colour."""
    styles, colours = list(STYLES), list(COLOURS)
    return [
        data.caption(rng, shop.things[o], styles[s], colours[c])
        for s, o, c in zip(style, which, ground)
    ]


def encode(shop, encoder, captions):
    tokens = text.tokenize(shop.tokenizer, captions).to(shop.device)
    with torch.no_grad():
        return encoder(tokens).last_hidden_state
