"""The text encoder's stage: it learns to understand captions before anything is drawn."""

import random

import numpy as np
import torch
import torch.nn.functional as F

import data
import nets
import text
from catalogue import COLOURS
from workshop import Run, settled


def train_text(shop):
    """The text encoder, to tell from any wording the object, the colour and roughly the picture.

    All is read off by one linear layer from the positions that have seen the whole caption, the
    end's and the padding's, so that the denoiser's keys and values find it at once.
    """
    encoder = shop.text_encoder()
    small = F.avg_pool2d(
        data.composite(shop.rgba[:, None], shop.colours[None]).flatten(0, 1), data.IMAGE_SIZE // 16
    ).flatten(1)
    _, _, axes = torch.pca_lowrank(small, q=48, niter=4)
    rough = (small - small.mean(0)) @ axes
    rough = (rough / rough.std(0)).reshape(len(shop.things), len(COLOURS), -1)
    sizes = [len(shop.things), len(COLOURS), rough.shape[-1]]
    head = torch.nn.Linear(nets.TEXT_WIDTH, sum(sizes)).to(shop.device)
    run = Run(shop, "text", [encoder, head], rate=1e-3, warmup=100, average=0.99)
    rng, words = np.random.default_rng(run.step), random.Random(run.step)
    end = shop.tokenizer.eos_token_id
    batch, right = 64, 0.0
    while run.on():
        which, ground = (rng.integers(n, size=batch) for n in sizes[:2])
        tokens = text.tokenize(shop.tokenizer, wordings(shop, words, which, ground)).to(shop.device)
        whole = tokens == end
        which, ground = torch.from_numpy(which).to(shop.device), torch.from_numpy(ground).to(shop.device)
        spread = whole.nonzero()[:, 0]
        states = encoder(tokens).last_hidden_state[whole]
        thing, colour, picture = head(states).split(sizes, dim=-1)
        loss = (
            F.cross_entropy(thing, which[spread])
            + F.cross_entropy(colour, ground[spread])
            + F.mse_loss(picture, rough[which, ground][spread])
        )
        run.descend(loss)
        hit = (thing.argmax(-1) == which[spread]) & (colour.argmax(-1) == ground[spread])
        right = 0.95 * right + 0.05 * hit.float().mean().item()
    run.save()
    print(f"text: {right:.1%} of the last captions understood", flush=True)
    file = shop.runs / "text.pt"
    state = torch.load(file, weights_only=True)
    count = len(list(encoder.parameters()))
    torch.save({**state, "means": state["means"][:count]}, shop.runs / "text-encoder.pt")


def trained_text_encoder(shop):
    return settled(shop, "text-encoder", [shop.text_encoder()])[0]


def wordings(shop, rng, which, ground):
    """A random caption for each pair of an object and a colour."""
    names = list(COLOURS)
    return [data.caption(rng, shop.things[o], names[c]) for o, c in zip(which, ground)]


def encode(shop, encoder, captions):
    tokens = text.tokenize(shop.tokenizer, captions).to(shop.device)
    with torch.no_grad():
        return encoder(tokens).last_hidden_state
